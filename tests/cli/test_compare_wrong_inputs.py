"""`envariant compare` with invalid input: one line that says what is wrong and how to fix it, and exit code 2.

Unusual but valid input is accepted, and its treatment is listed in the preprocessing log.
"""

import gzip
import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from envariant.cli import main
from envariant.saved_model import load_model

ODD = "<u>$x_{$ </u>"
TINY = ("--n-trials", 1, "--replicas", 2, "--max-rows", 60, "--algorithms", "erm")


def frame(rows=180, sites=("north", "south", "east")):
    draw = np.random.default_rng(0)
    x = draw.normal(size=rows)
    return pd.DataFrame(
        {
            "hospital": np.array(sites)[np.arange(rows) % len(sites)],
            "age": (50 + 10 * x).round(1),
            "ward": draw.choice(["A&E", "icu"], rows),
            "died": np.where(x + draw.normal(size=rows) > 0, "yes", "no"),
        }
    )


@pytest.fixture
def compare(capsys, tmp_path):
    def called(data, *more, target="died", environment="hospital", out=tmp_path / "out"):
        if isinstance(data, pd.DataFrame):
            data.to_csv(tmp_path / "x.csv", index=False)
            data = tmp_path / "x.csv"
        code = 0
        try:
            arguments = ("compare", data, "-t", target, "-e", environment, "-o", out, *more)
            main([*map(str, arguments)])
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return subprocess.CompletedProcess(data, code, captured.out, captured.err)

    return called


def check_rejected(done, *words):
    """Check for one line on standard error and nothing else."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("envariant: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def text(content, name="x.csv"):
    def write(folder):
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


GOOD = "hospital,age,ward,died\n" + "north,1,icu,yes\nsouth,2,icu,no\n" * 60


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (text(""), ["x.csv: is empty"]),
        (text("hospital,age,ward,died\n"), ["x.csv: holds no rows under its header"]),
        (text(GOOD.encode("utf-16")), ["x.csv: is not utf-8 text", "set its encoding, such as utf-16"]),
        (text(GOOD.replace("icu", "ü").encode("latin-1")), ["is not utf-8 text (it holds byte 0xfc)"]),
        (text(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "x.png"), ["x.png: is not utf-8 text", "if it is a text file, set its encoding"]),
        (text(b"PK\x03\x04\xff\xfe\x00", "x.xlsx"), ["x.xlsx: cannot be read as Excel", "save it as CSV"]),
        (text(b"PK\x03\x04", "x.zip"), ["x.zip: cannot be read as a table"]),
        (text(gzip.compress(GOOD.encode())[:60], "x.csv.gz"), ["x.csv.gz: cannot be read as a table"]),
        (text(GOOD.replace("age", "ward")), ["column name 'ward' is used twice; rename one"]),
        (text(GOOD.replace("died", "dead")), ["lacks target column 'died'", "its columns: hospital, age, ward, dead"]),
        (text(GOOD.replace("died", "DIED")), ["lacks target column 'died' (did you mean 'DIED'?)"]),
        (text(GOOD.replace("hospital", "hospitals")), ["lacks environment column 'hospital' (did you mean 'hospitals'?)"]),
        (text(GOOD.replace("south", "north")), ["column 'hospital' has 1 environment(s) of at least 50 rows", "two are needed, one of them for testing"]),
        (text(GOOD.replace(",yes", ",no")), ["target 'died' is 'no' in every row; there is nothing to predict"]),
        (text(GOOD.replace(",yes", ",").replace(",no\n", ",\n")), ["target 'died' is empty in all rows"]),
        (text(GOOD.replace("north,", ",").replace("south,", "?,")), ["environment 'hospital' is empty in all rows"]),
        (text(GOOD.replace("north,1", "north,one", 1)), ["column 'age': 1 of 120 values are not numbers (the first: 'one' in row 1)"]),
        (text(GOOD.replace("north,1", "north,1e308", 1)), ["column 'age': holds 1e+308 in row 1, too large"]),
        (text(GOOD.replace("south,2", "south,inf", 1)), ["column 'age': holds inf in row 2, too large"]),
        (text(GOOD.replace("south,2", "south,2,3", 1)), ["Expected 4 fields in line 3, saw 5"]),
        (text(GOOD + "north,'a\x00b\",1,\"\n"), ["x.csv: "]),
        (lambda folder: folder, ["is a folder; name a file (.csv or .parquet)"]),
        (lambda folder: folder / "nowhere.csv", ["nowhere.csv: there is no such file"]),
    ],
)  # fmt: skip
def test_unreadable_files(file, words, compare, tmp_path):
    check_rejected(compare(file(tmp_path)), *words)
    assert not (tmp_path / "out").exists(), "nothing is written"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--task", "clustering"], ["clustering"]),
        (["--algorithms", "imr"], ["unknown algorithm 'imr'; did you mean 'irm'?"]),
        (["--algorithms", "vrex(coefficient=many)"], ["unknown schedule 'many'"]),
        (["--metric", "acuracy"], ["unknown metric 'acuracy'; did you mean 'accuracy'?"]),
        (["--metric", "RMSE"], ["RMSE"]),
        (["--min-rows", 1000], ["has 0 environment(s) of at least 1000 rows (none)", "Lower min_rows"]),
        (["--max-rows", 0], ["max_rows: must be at least 5, got 0"]),
        (["--max-rows", 4], ["max_rows: must be at least 5, got 4"]),
        (["--seed", -1], ["seed must be a whole number in [0, 2³²); got -1"]),
        (["--n-trials", -1], ["n_trials"]),
        (["--n-trials", 0], ["n_trials"]),
        (["--n-trials", "2.5"], ["--n-trials: expected a whole number; got '2.5'"]),
        (["--replicas", 0], ["replicas"]),
        (["--budget", "soon"], ["budget: expected a duration such as 90s, 10m or 1.5h, got 'soon'"]),
        (["--budget=-5m"], ["budget: expected a duration"]),
        (["--exclude", "died"], ["target column 'died' cannot be excluded"]),
        (["--exclude", "hospital"], ["environment column 'hospital' cannot be excluded"]),
        (["--exclude", "wardd"], ["lacks column 'wardd' (did you mean 'ward'?)"]),
        (["--exclude", "age", "ward"], ["no column is left to predict 'died' from (left out: age, ward)"]),
        (["--ordered"], ["the order of column 'hospital' in time is unknown"]),
        (["--group", "patiend"], ["lacks group column 'patiend'"]),
        (["--group", "died"], ["a column can have one role only"]),
        (["--subgroups", "aje"], ["lacks subgroups column 'aje' (did you mean 'age'?)"]),
        (["--encoding", "klingon"], ["unknown encoding: klingon"]),
        (["--executor", "slurm"], ["slurm"]),
        (["--color", "red"], ["--color"]),
    ],
    ids=str,
)  # fmt: skip
def test_invalid_options(options, words, compare, tmp_path):
    check_rejected(compare(frame(), *options), *words)
    assert not (tmp_path / "out" / "study.sqlite").exists(), "nothing is written"
    assert not (tmp_path / "out" / "report.html").exists()


def test_target_and_environment_column_must_differ(compare):
    check_rejected(compare(frame(), target="hospital"), "a column can have one role only")


def test_target_and_metric_must_suit_the_task(compare):
    words = frame().assign(died=lambda f: np.where(f.died == "yes", "ill", "well"))
    check_rejected(
        compare(words, "--task", "regression"),
        "target 'died' holds text ('ill', …); a regression needs numbers",
    )
    numbers = frame().assign(died=np.arange(180) / 7)
    check_rejected(compare(numbers, "--metric", "accuracy"), "accuracy", "regression")
    check_rejected(compare(numbers, "--task", "binary"), "has 180 values; a binary task has two")


def test_identifier_columns_alone_are_rejected(compare):
    ids = frame()[["hospital", "died"]].assign(number=range(180), name=[f"n{k}" for k in range(180)], one=1)
    check_rejected(compare(ids), "no column is left to predict 'died' from (left out: number, name, one)")


def test_unwritable_folder(compare, tmp_path):
    (tmp_path / "file").write_text("")
    check_rejected(compare(frame(), *TINY, out=tmp_path / "file"), "file")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One comparison of everything that is unusual but valid."""
    folder = tmp_path_factory.mktemp("compared")
    given = frame(240, ("worst", "<script>alert(1)</script>", "a\nb")).assign(
        empty=np.nan,
        ward=lambda f: f.ward.replace("icu", "<img src=x onerror=alert(2)>"),
        constant=1,
        mixed=[1, "two", 3.0, None] * 60,
        id=[f"n{k}" for k in range(240)],
        **{ODD.replace(" ", "\n"): np.random.default_rng(1).normal(size=240)},
    )
    given.loc[0, "hospital"] = "alone"
    path = folder / "<b>x.csv"
    given.to_csv(path, index=False)
    arguments = ("compare", path, "-t", "died", "-e", "hospital", "-o", folder / "out", *TINY)
    main([*map(str, arguments)])
    return folder / "out", arguments


def test_unusual_columns_and_names_are_accepted_and_logged(done):
    folder, _ = done
    answer = json.loads((folder / "comparison.json").read_text())
    log = {}
    for line in answer["preprocessing_log"]:
        log.setdefault(line["column"], []).append(line["what"])
    assert log["empty"] == ["left out: it holds no value"]
    assert log["constant"] == ["left out: its value is the same in every row"]
    assert log["id"] == ["left out: 239 different texts in 239 rows: a name, not a category"]
    assert log["mixed"][0].startswith("category of 3; 25.1% missing")
    assert log["hospital"][0] == "1 of 4 environments have fewer than 50 rows (alone): left out, 1 rows"
    assert log[""] == ["methods are compared on 180 of 239 rows, at most 60 per environment"]
    assert set(answer["methods"]["erm"]) == {"'worst'", "<script>alert(1)</script>", "a b"}


def test_page_escapes_html_in_names(done):
    page = (done[0] / "report.html").read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert "&lt;u&gt;$x_{$ &lt;/u&gt;" in page
    for wrong in ("<script>alert", "<img src=x", "<b>x", "<u>$x"):
        assert wrong not in page


def test_unseen_category_at_prediction(done):
    model = load_model(done[0] / "model")
    fresh = frame(10).assign(ward="never seen", mixed="two", **{ODD: 0.5})
    predictions, drift = model.predict(fresh), model.resembles(fresh)
    assert np.isfinite(predictions["P(yes)"]).all()
    assert {c.name: c.unseen for c in drift.columns}["ward"] == {"never seen": 10}


def test_another_table_in_the_same_folder_is_rejected_and_changes_nothing(done, compare):
    folder, _ = done
    files = [path for path in folder.rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files if path.suffix in (".html", ".json", ".safetensors")}
    check_rejected(
        compare(frame(), *TINY, out=folder),
        "has runs on different data named 'table'",
        "use another folder",
    )
    wrong = ("--n-trials", 3, "--replicas", 2, "--max-rows", 0)
    check_rejected(compare(frame(), *wrong, out=folder), "max_rows: must be at least 5, got 0")
    assert {path: path.read_bytes() for path in before} == before


def test_two_environments_are_enough(compare, tmp_path):
    done = compare(frame(120, (1, 0)).rename(columns={"hospital": "0"}), *TINY, "--json", environment="0")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert set(answer["methods"]["erm"]) == {"0", "1"}
    assert answer["verdict"].split("\n- ") == [answer["headline"], *answer["bullets"]]
    assert "\n" not in answer["headline"]
    assert 1 <= len(answer["bullets"]) <= 4
    assert Path(answer["page"]).exists()
