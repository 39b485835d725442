"""`envariant predict`: predictions on standard output, remarks on standard error."""

import io
import json
import sys

import numpy as np
import pandas as pd
import pytest

import envariant
from envariant.data.tables import table as tables
from envariant.data.tables.source import TableSource
from envariant.saved_model import SavedModel
from envariant.saved_model.served import WITHOUT_SERVING


def rows(count=300, seed=0, older=0.0):
    draw = np.random.default_rng(seed)
    site = draw.choice(["a", "b", "c"], count)
    age = draw.normal(50 + older, 10, count).round(2)
    ward = draw.choice(["<b>x</b>", "ü", "z"], count)
    ill = np.where(age + draw.normal(0, 5, count) > 50 + older, "yes", "no")
    return pd.DataFrame({"site": site, "age": age, "ward": ward, "ill": ill})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    source = TableSource(tables.read(rows(), "ill", "site"))
    result = envariant.train(source, steps=20, test_environments=["c"], precision="float32")
    folder = tmp_path_factory.mktemp("stored") / "model"
    SavedModel.of(source, result).save(folder)
    return folder


@pytest.fixture
def new(tmp_path):
    def written(frame):
        frame.to_csv(tmp_path / "new.csv", index=False)
        return tmp_path / "new.csv"

    return written


def test_predictions_go_to_standard_output_as_csv(model, here, new):
    path = new(rows(50, seed=1).drop(columns=["ill", "site"]))
    done = here("predict", model, path)
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "envariant: 0 of 50 rows are unlike the training environments (0 %; 1 % expected)",
        "envariant: New rows resemble the training environments",
        f"envariant: not given: {WITHOUT_SERVING}",
    ]
    answer = pd.read_csv(io.StringIO(done.stdout))
    expected = envariant.load_model(model).predict(path)
    assert (
        list(answer.columns) == ["prediction", "P(no)", "P(yes)", "unlike"] == [*expected.columns, "unlike"]
    )
    np.testing.assert_array_equal(answer["P(yes)"].astype(np.float32), expected["P(yes)"])


def test_predictions_go_to_a_file_and_remarks_to_standard_error(model, here, new, tmp_path):
    frame = rows(100, seed=1, older=30)
    frame.loc[0, "ward"] = "<i>new</i>"
    done = here("predict", model, new(frame), "-o", tmp_path / "out" / "predictions.csv")
    assert (done.returncode, done.stdout) == (0, "")
    flagged, first, *others = done.stderr.splitlines()
    assert flagged == "envariant: 21 of 100 rows are unlike the training environments (21 %; 1 % expected)"
    assert first.startswith("envariant: New rows differ in age")
    assert any(
        "ward: 1 row with a category that is not in the training data ('<i>new</i>')" in line
        for line in others
    )
    assert len(pd.read_csv(tmp_path / "out" / "predictions.csv")) == 100
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["predictions.csv"]


def test_check_shows_every_column(model, here, new):
    done = here("predict", model, new(rows(100, seed=1)), "--check")
    assert done.returncode == 0
    for word in ("age", "ward", "between training", "New rows resemble the training environments."):
        assert word in done.stdout
    assert "P(yes)" not in done.stdout


def test_json_is_one_object(model, here, new, tmp_path):
    path = new(rows(30, seed=1, older=30))
    answer = json.loads(here("predict", model, path, "--json").stdout)
    assert answer["model"]["target"] == "ill"
    assert answer["drift"]["differing"] == ["age"]
    assert len(answer["predictions"]) == 30
    assert set(answer["predictions"][0]) == {"prediction", "P(no)", "P(yes)", "unlike"}
    assert answer["serving"]["unlike"]["rows"] == sum(row["unlike"] for row in answer["predictions"])
    assert "predictions" not in json.loads(here("predict", model, path, "--check", "--json").stdout)
    out = tmp_path / "p.csv"
    assert json.loads(here("predict", model, path, "-o", out, "--json").stdout)["predictions"] == str(out)


def test_empty_table_gives_a_header(model, here, new):
    done = here("predict", model, new(rows(30).iloc[:0]))
    assert (done.returncode, done.stdout) == (0, "prediction,P(no),P(yes),unlike\n")


def test_onnx_is_written(model, here, tmp_path):
    pytest.importorskip("onnxscript")
    done = here("predict", model, "--onnx", tmp_path / "net.onnx", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["onnx"] == str(tmp_path / "net.onnx")
    assert (tmp_path / "net.json").exists()


def test_invalid_input_gives_one_line_and_exit_code_2(model, here, new, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    path = new(rows(30))
    renamed = tmp_path / "renamed.csv"
    rows(30).rename(columns={"age": "Age"}).to_csv(renamed, index=False)
    for arguments, message in (
        ([tmp_path / "nowhere", path], "holds no model"),
        ([model, renamed], "lacks column 'age' (did you mean 'Age'?)"),
        ([model, tmp_path / "no.csv"], "there is no such file"),
        ([model], "give a table to predict, or --onnx FILE"),
        ([model, path, "-o", "x.parquet"], "must end in .csv"),
        ([model, "--onnx", tmp_path / "x.onnx"], "pip install onnx onnxscript"),
        ([model, path, "--level", "1.5"], "serve: level must be between 0 and 1, got 1.5"),
        ([model, path, "--unlike-level", "0"], "serve: unlike_level must be between 0 and 1, got 0.0"),
        ([model, path, "-o", "/dev/null/x.csv"], "cannot be written"),
    ):
        done = here("predict", *arguments)
        assert done.returncode == 2, arguments
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert done.stdout == ""
