"""Commands overwrite only what they wrote before for the same purpose, and say so before any training."""

import json
import shutil
import time

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from envariant.core.errors import EnvariantError
from envariant.core.paths import check_overwrite
from envariant.reporting import charts, figures
from envariant.saved_model import load_model

MINE = "mine\n"
SWEEP = ["sweep", "--data", "colored-digits", "--algorithms", "erm", "--n-trials", 1, "--replicas", 1,
         "--steps", 2, "--model", "linear", "--out"]  # fmt: skip


def table(path):
    draw = np.random.default_rng(0)
    x = draw.normal(size=160)
    pd.DataFrame({"x": x, "site": np.repeat(["a", "b"], 80), "sick": (x > 0).astype(int)}).to_csv(
        path, index=False
    )
    return path


@pytest.fixture
def compare(here, tmp_path):
    options = [
        "-t",
        "sick",
        "-e",
        "site",
        "--algorithms",
        "erm",
        "--n-trials",
        1,
        "--replicas",
        2,
        "--steps",
        2,
    ]
    return lambda out: here("compare", table(tmp_path / "table.csv"), *options, "--out", out)


def refused(result, path, content=MINE):
    assert result.returncode == 2, result
    assert result.stderr.startswith(f"envariant: {path}: ")
    assert result.stderr.count("\n") == 1
    if content is not None:
        assert path.read_text() == content
    return result.stderr


@pytest.mark.parametrize(
    "name", ["report.html", "comparison.json", "model/model.safetensors", "model/model.json"]
)
def test_compare_refuses_before_training(name, compare, tmp_path):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text(MINE)
    refused(compare(tmp_path / "out"), path)
    assert not (tmp_path / "out" / "runs.sqlite").exists()


def test_sweep_refuses_before_training(here, tmp_path):
    (tmp_path / "report.html").write_text(MINE)
    refused(here(*SWEEP, tmp_path), tmp_path / "report.html")
    assert not (tmp_path / "runs.sqlite").exists()
    assert not (tmp_path / "jobs").exists()


def test_results_of_the_same_command_are_replaced_and_those_of_another_are_not(compare, here, tmp_path):
    out, study, page = tmp_path / "out", tmp_path / "study", tmp_path / "page.html"
    for _ in range(2):
        assert here(*SWEEP, study).returncode == 0
        assert compare(out).returncode == 0
    run = ["train", "--data", "colored-digits", "--steps", 2, "--model", "linear", "--out", tmp_path / "run"]
    assert here(*run).returncode == 0
    for _ in range(2):
        assert here("report", tmp_path / "run", "--out", page).returncode == 0
    refused(here("report", tmp_path / "run", "--out", study / "report.html"), study / "report.html", None)
    refused(here(*SWEEP, out), out / "report.html", None)
    shutil.copy(page, study / "report.html")
    refused(here(*SWEEP, study), study / "report.html", None)
    assert "holds a single run, not a study" in here(*SWEEP, tmp_path / "run").stderr

    model, new = out / "model", tmp_path / "new.csv"
    table(new)
    text = new.read_text()
    predictions = tmp_path / "predictions.csv"
    for _ in range(2):
        assert here("predict", model, new, "--out", predictions).returncode == 0
    assert "is the input" in refused(here("predict", model, new, "--out", new), new, text)
    (tmp_path / "link.csv").hardlink_to(new)
    assert "is the input" in refused(
        here("predict", model, new, "-o", tmp_path / "link.csv"), tmp_path / "link.csv", text
    )
    refused(here("predict", model, new, "-o", tmp_path / "table.csv"), tmp_path / "table.csv", text)

    for suffix in ("csv", "parquet"):
        export = ["runs", "export", study, "--out", tmp_path / f"export.{suffix}"]
        assert here(*export).returncode == here(*export).returncode == 0
        (tmp_path / f"mine.{suffix}").write_text(MINE)
        refused(here(*export[:-1], tmp_path / f"mine.{suffix}"), tmp_path / f"mine.{suffix}")
    pd.DataFrame({"run": [1]}).to_parquet(tmp_path / "mine.parquet")
    refused(here("runs", "export", study, "-o", tmp_path / "mine.parquet"), tmp_path / "mine.parquet", None)


def test_reports_refuse_runs_and_other_files(here, tmp_path):
    run = tmp_path / "run"
    assert (
        here("train", "--data", "colored-digits", "--steps", 2, "--model", "linear", "--out", run).returncode
        == 0
    )
    before = (run / "runs.sqlite").read_bytes()
    refused(here("report", run, "--out", run / "runs.sqlite"), run / "runs.sqlite", None)
    assert (run / "runs.sqlite").read_bytes() == before
    (tmp_path / "mine.html").write_text(MINE)
    refused(here("report", run, "--out", tmp_path / "mine.html"), tmp_path / "mine.html")


def test_demos_and_reproductions_refuse_before_training(here, tmp_path):
    (tmp_path / "report.html").write_text(MINE)
    start = time.process_time()
    refused(
        here("demo", "--data", "colored-digits", "--steps", 2, "--out", tmp_path), tmp_path / "report.html"
    )
    refused(here("reproduce", "sjtu-2023", "--out", tmp_path), tmp_path / "report.html")
    (tmp_path / "report.html").unlink()
    (tmp_path / "report.md").write_text(MINE)
    refused(here("reproduce", "sjtu-2023", "--out", tmp_path), tmp_path / "report.md")
    assert time.process_time() - start < 10
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.md"]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_pictures(suffix, tmp_path):
    chart = charts.lines({"a": ([1, 2], [3, 4])}, "x", "y")
    path = tmp_path / f"picture{suffix}"
    for save, picture in ((figures.save, Figure()), (charts.save, chart), (charts.save, chart)):
        save(picture, path)
    path.write_text(MINE)
    for save, picture in ((figures.save, Figure()), (charts.save, chart)):
        with pytest.raises(EnvariantError, match="already exists with other content"):
            save(picture, path)
    assert path.read_text() == MINE


def test_models_and_exports(compare, tmp_path):
    assert compare(tmp_path / "out").returncode == 0
    model = load_model(tmp_path / "out" / "model")
    (tmp_path / "model.json").write_text(MINE)
    for call, path in ((model.save, tmp_path), (model.to_onnx, tmp_path / "model.onnx")):
        with pytest.raises(EnvariantError, match=r"model.json: already exists with other content"):
            call(path)
    other = json.loads((tmp_path / "out" / "model" / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**other, "target": "other"}, indent=1))
    with pytest.raises(EnvariantError, match=r"model.json: already exists"):
        model.to_onnx(tmp_path / "model.onnx")
    (tmp_path / "model.json").unlink()
    (tmp_path / "model.onnx").write_text(MINE)
    with pytest.raises(EnvariantError, match=r"model.onnx: already exists"):
        model.to_onnx(tmp_path / "model.onnx")


def test_missing_and_empty_files_may_be_written(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("empty", "missing", "dangling", "a" * 5000, "no/folder"):
        check_overwrite(tmp_path / name, "x", [tmp_path / "other"])
    with pytest.raises(EnvariantError, match="is a pipe, a socket or a device; give the name of a file"):
        check_overwrite(tmp_path / "/dev/null", "x")
