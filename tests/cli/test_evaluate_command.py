"""`envariant evaluate`: the numbers of `envariant.evaluate`, from a table."""

import json

import numpy as np
import pandas as pd
import pytest

import envariant
from envariant.core.errors import EnvariantWarning
from envariant.evaluation import evaluate_table


@pytest.fixture(scope="module")
def frame():
    rng = np.random.default_rng(0)
    z = rng.normal(size=240)
    p = 1 / (1 + np.exp(-z))
    return pd.DataFrame(
        {
            "site": np.array(["north", "south", "east"])[np.arange(240) % 3],
            "died": np.where(z + rng.logistic(size=240) > 0, "yes", "no"),
            "P(no)": 1 - p,
            "P(yes)": p,
            "label": np.where(p > 0.5, "yes", "no"),
            "coin": rng.random(240),
            "sex": rng.choice(["f", "m"], 240),
            "patient": np.arange(240) // 2,
        }
    )


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_report_numbers_and_printed_table_are_those_of_the_function(frame, ending, here, tmp_path):
    path = tmp_path / f"p.{ending}"
    frame.to_csv(path, index=False) if ending == "csv" else frame.to_parquet(path)
    command = ["evaluate", path, "-t", "died", "-e", "site", "-p", "P(no)", "P(yes)", "--group", "sex"]
    done = here(*command, "--out", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    expected = envariant.evaluate(
        frame[["P(no)", "P(yes)"]], frame["died"], frame["site"], groups=frame[["sex"]]
    )
    assert expected.headline in done.stdout
    assert "sex = f" in done.stdout
    assert f"page: {tmp_path / 'out' / 'report.html'}" in done.stdout
    numbers = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    for name, cell in expected.results.cells["model"].items():
        assert numbers["models"]["model"]["environments"][name]["score"]["mean"] == pytest.approx(
            cell.ood_score.mean
        )
    printed = json.loads(here(*command, "--json").stdout)
    assert printed == numbers


def test_each_column_is_a_model_unless_columns_are_named_for_the_classes(frame):
    models = evaluate_table(
        frame.assign(p=frame["P(yes)"]),
        target="died",
        environment="site",
        prediction=["p", "coin"],
        metric="accuracy",
    )
    assert models.results.models == ("p", "coin")
    assert models.results.cells["coin"]["north"].gain.mean < 0
    labels = evaluate_table(frame, target="died", environment="site", prediction="label", cluster="patient")
    assert labels.results.kind == "labels"
    assert labels.results.overall["label"].ood_score.mean == pytest.approx(
        np.mean(frame["label"] == frame["died"])
    )
    # The name of a single column tells which class it is the probability of.
    for column in ("P(no)", "P(yes)"):
        one = evaluate_table(frame, target="died", environment="site", prediction=column, metric="accuracy")
        assert one.results.overall[column].ood_score.mean == pytest.approx(
            np.mean(frame["label"] == frame["died"])
        )


def test_rows_without_target_or_environment_are_left_out_with_a_warning(frame):
    gaps = frame.copy()
    gaps.loc[[0, 3], "died"] = None
    gaps.loc[4, "site"] = None
    with pytest.warns(EnvariantWarning, match="without a value") as warned:
        found = evaluate_table(gaps, target="died", environment="site", prediction="P(yes)")
    assert [str(each.message).split(" without")[0] for each in warned] == [
        "data frame: 'died': target; 2 of 240 rows",
        "data frame: 'site': environment; 1 of 240 rows",
    ]
    kept = gaps.dropna(subset=["died", "site"])
    expected = envariant.evaluate(kept["P(yes)"], kept["died"], kept["site"])
    pd.testing.assert_frame_equal(found.to_frame().droplevel("model"), expected.to_frame().droplevel("model"))


def test_numbers_booleans_and_words_are_read_alike(frame, tmp_path):
    usual = envariant.evaluate(frame["P(yes)"], frame["died"] == "yes", frame["site"]).to_frame()
    for yes, no in ((1, 0), (True, False), ("T", "F"), (2, 1)):
        coded = frame.assign(died=np.where(frame["died"] == "yes", yes, no))
        coded.to_csv(tmp_path / "t.csv", index=False)
        for data in (coded, tmp_path / "t.csv"):
            found = evaluate_table(data, target="died", environment="site", prediction="P(yes)").to_frame()
            pd.testing.assert_frame_equal(found.droplevel("model"), usual.droplevel("model"))


def test_a_file_of_another_program_is_not_overwritten(frame, here, tmp_path):
    frame.to_csv(tmp_path / "p.csv", index=False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "evaluation.json").write_text('{"mine": 1}')
    done = here(
        "evaluate", tmp_path / "p.csv", "-t", "died", "-e", "site", "-p", "coin", "-o", tmp_path / "out"
    )
    assert done.returncode == 2
    assert "already exists with other content" in done.stderr
    assert not (tmp_path / "out" / "report.html").exists()
