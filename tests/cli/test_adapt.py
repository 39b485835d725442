"""`envariant adapt`, and `envariant predict` with ordinary saved models."""

import io
import json

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from envariant.data.tables import table as tables
from envariant.data.tables.source import TableSource
from envariant.predictors import predictor
from envariant.saved_model import SavedModel, load_model


def rows(count=240, seed=0, shift=0.0):
    draw = np.random.default_rng(seed)
    age, risk = draw.normal(50, 10, count).round(2), draw.normal(size=count)
    return pd.DataFrame(
        {
            "site": draw.choice(["a", "b", "c"], count),
            "age": age,
            "ward": draw.choice(["x", "ü"], count),
            "ill": np.where((age - 50) / 5 + risk + shift > 0, "yes", "no"),
            "days": 100 + age + risk + 10 * shift,
        }
    )


def fitted(target, method):
    frame = rows().drop(columns="days" if target == "ill" else "ill")
    return SavedModel.of_predictor(TableSource(tables.read(frame, target, "site")), predictor(method))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored") / "model"
    fitted("ill", "linear").save(folder)
    return folder


@pytest.fixture
def few(tmp_path):
    rows(30, 1, shift=3.0).assign(site="new").to_csv(tmp_path / "few.csv", index=False)
    return tmp_path / "few.csv"


def test_labels_of_several_environments_are_one_line(folder, here, tmp_path):
    rows(30, 1, shift=3.0).to_csv(tmp_path / "few.csv", index=False)
    done = here("adapt", folder, tmp_path / "few.csv", "--out", tmp_path / "adapted")
    assert done.returncode == 0
    assert done.stderr.startswith(
        "envariant: adapt: the labels come from 3 environments (column 'site': a, b, c)"
    )
    assert len(done.stderr.splitlines()) == 1


def test_an_adapted_model_is_written_and_what_was_done_is_said(folder, few, here, tmp_path):
    out = tmp_path / "adapted"
    done = here("adapt", folder, few, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    facts = load_model(out).adaptation
    assert done.stdout.splitlines() == [*facts.summary, f"model: {out}"]
    assert facts.after["accuracy"] > facts.before["accuracy"] + 0.1
    new = rows(200, 2, shift=3.0)
    new.to_csv(tmp_path / "new.csv", index=False)
    printed = here("predict", out, tmp_path / "new.csv").stdout
    assert (pd.read_csv(io.StringIO(printed))["prediction"] == new["ill"]).mean() > 0.8
    answer = json.loads(here("adapt", folder, few, "--out", out, "--json").stdout)
    assert answer["model"] == str(out)
    assert answer["adaptation"]["n_labels"] == 30
    assert answer["adaptation"]["after"] == dict(facts.after)


def test_the_default_folder_is_beside_the_model(folder, few, here):
    assert here("adapt", folder, few).returncode == 0
    assert load_model(folder.with_name("model-adapted")).adaptation is not None


def test_adapt_overwrites_only_adapted_models(folder, few, here, tmp_path):
    content = (folder / "model.safetensors").read_bytes()
    other = tmp_path / "other"
    fitted("ill", "majority-class").save(other)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "model.safetensors").write_text("mine")
    for out, message in (
        (folder, "contains a model that is not an adapted one; choose another folder"),
        (other, "contains a model that is not an adapted one; choose another folder"),
        (mine, "already exists with other content"),
        (few, "is"),
        ("/dev/null/x", "cannot be written"),
    ):
        done = here("adapt", folder, few, "--out", out)
        assert (done.returncode, done.stdout) == (2, ""), out
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert (folder / "model.safetensors").read_bytes() == content
    assert (mine / "model.safetensors").read_text() == "mine"
    assert few.read_text().startswith("site,")


def test_wrong_input_is_one_line_and_nothing_is_written(folder, few, here, tmp_path):
    frame = rows(30, 1)
    unlabeled, strange = tmp_path / "unlabeled.csv", tmp_path / "strange.csv"
    frame.drop(columns="ill").rename(columns={"days": "Ill"}).to_csv(unlabeled, index=False)
    frame.assign(ill="maybe").to_csv(strange, index=False)
    out = tmp_path / "out"
    for arguments, message in (
        ([tmp_path / "none", few], "holds no model"),
        ([folder, tmp_path / "none.csv"], "there is no such file"),
        ([folder, unlabeled], "lacks column 'ill' (did you mean 'Ill'?)"),
        ([folder, strange], "got 0 of 30; 30 with an unknown class ('maybe')"),
        ([folder], "labels: needs a value"),
    ):
        done = here("adapt", *arguments, "--out", out)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert message.lower() in done.stderr.lower()
        assert len(done.stderr.strip().splitlines()) == 1
        assert not out.exists()


PIPELINE = make_pipeline(
    ColumnTransformer([("ward", OneHotEncoder(), ["ward"]), ("age", "passthrough", ["age"])]),
    LogisticRegression(),
)


@pytest.mark.parametrize(
    ("target", "method"),
    [("ill", "boosted-trees"), ("days", "linear"), ("days", "boosted-trees"), ("ill", PIPELINE)],
    ids=["trees", "linear-regression", "trees-regression", "pipeline"],
)
def test_ordinary_models_predict_on_the_command_line(target, method, here, tmp_path):
    model = fitted(target, method)
    model.save(tmp_path / "model")
    new = rows(40, 3)
    new.to_csv(tmp_path / "new.csv", index=False)
    done = here("predict", tmp_path / "model", tmp_path / "new.csv", "-o", tmp_path / "p.csv")
    assert (done.returncode, done.stdout) == (0, "")
    answer = pd.read_csv(tmp_path / "p.csv")
    expected = model.serve(new).table
    assert list(answer.columns) == list(expected.columns)
    if target == "days":
        np.testing.assert_allclose(answer["prediction"], expected["prediction"], rtol=1e-5)
    else:
        assert (answer["prediction"] == expected["prediction"]).all()
    again = here("predict", tmp_path / "model", tmp_path / "new.csv", "-o", tmp_path / "p.csv")
    assert again.returncode == 0, "earlier predictions are replaced"
    if method != "linear":
        refused = here("predict", tmp_path / "model", "--onnx", tmp_path / "m.onnx")
        assert refused.returncode == 2
        assert "is neither a network nor a linear model" in refused.stderr
