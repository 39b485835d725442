"""A table whose truth is known: one column holds everywhere and one turns in a place. The answer says so.

And the same table in which nothing turns: the answer is to stay with ERM.
"""

import json
import re
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

import envariant
from envariant.comparison import compare
from envariant.studies import Store

SITES = ("north", "east", "south", "<b>city</b>")
TURNS = (0.05, 0.35, 0.2, 0.9)
SMALL = {"algorithms": ("vrex",), "n_trials": 2, "replicas": 4}


def structural(flips, rows=500, seed=0):
    """x → y → marker: the marker is wrong about y with a probability that each site has of its own."""
    rng = np.random.default_rng(seed)
    parts = []
    for site, flip in zip(SITES, flips, strict=True):
        x = rng.normal(size=rows)
        y = x + 0.9 * rng.normal(size=rows) > 0
        marker = np.where(rng.random(rows) < flip, ~y, y) * 2 - 1 + 0.3 * rng.normal(size=rows)
        parts.append(
            pd.DataFrame(
                {"severity": x, "marker": marker, "noise": rng.normal(size=rows), "died": y, "site": site}
            )
        )
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def turned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared") / "turned"
    return compare(structural(TURNS), target="died", environment="site", out=folder, **SMALL)


def test_the_column_that_turns_is_named_and_a_method_that_does_not_fall_is_recommended(turned):
    erm, vrex = (turned.evidence.cells[name]["<b>city</b>"] for name in ("erm", "vrex"))
    assert erm.score.mean < 0.55 < erm.inside.mean
    assert vrex.score.mean > erm.score.mean + 0.1
    assert turned.recommended == "vrex"
    assert turned.columns[0].column == "marker"
    assert [c.kind for c in turned.columns] == ["turns", "stable", "stable"]
    assert "ERM leans on 'marker'" in turned.verdict
    assert "use V-REx" in turned.verdict
    leaning = turned.evidence.reliance
    assert leaning["vrex"]["marker"].within < leaning["erm"]["marker"].within
    # With the marker of other places ERM is better off in the city than with its own.
    assert leaning["erm"]["marker"].elsewhere < leaning["erm"]["severity"].elsewhere
    assert turned.shifts["<b>city</b>"].kind == "correlation"


def test_the_same_table_without_a_shift_stays_with_erm(tmp_path):
    answer = compare(structural((0.2,) * 4, seed=1), target="died", environment="site", out=tmp_path, **SMALL)
    assert answer.recommended == "erm"
    assert "stay with ERM" in answer.verdict
    assert not any(c.unstable for c in answer.columns)
    assert "holds at places that it was not trained on" in answer.verdict


def test_the_table_shows_every_place_and_the_worst(turned):
    assert list(turned.table.columns) == [*sorted(SITES), "worst", "mean"]
    assert turned.table.loc["erm", "worst"] == turned.table.loc["erm", list(SITES)].min()
    assert turned.table.index.name == "accuracy"


def test_asked_again_it_trains_nothing_and_answers_the_same(turned):
    before = {path: path.stat().st_mtime_ns for path in turned.folder.glob("batches/*/*.safetensors")}
    again = compare(structural(TURNS), target="died", environment="site", out=turned.folder, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in turned.folder.glob("batches/*/*.safetensors")} == before
    assert again.verdict == turned.verdict
    pd.testing.assert_frame_equal(again.table, turned.table)


def test_the_model_that_is_kept_is_of_all_places_and_predicts(turned):
    assert turned.best_model.environments == tuple(sorted(SITES))
    assert turned.best_model.predictor.algorithm == "vrex"
    new = structural(TURNS, rows=200, seed=9)
    told = envariant.load_model(turned.folder / "model").predict(new)
    right = told["prediction"] == new["died"].map({True: "true", False: "false"})
    assert right.mean() > 0.6


def test_the_page_and_the_notebook_escape_what_people_wrote(turned):
    page = turned.page.read_text(encoding="utf-8")
    for text in (page, turned._repr_html_()):
        assert "<b>city" not in text
        assert "&lt;b&gt;city&lt;/b&gt;" in text
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    told = json.loads((turned.folder / "answer.json").read_text(encoding="utf-8"))
    assert told["recommended"] == "vrex"
    assert told["methods"]["erm"]["<b>city</b>"]["drop"] > 0.1
    assert told["columns"][0]["column"] == "marker"


def test_killed_in_the_middle_it_goes_on_to_the_same_answer(turned, tmp_path):
    path, out = tmp_path / "patients.csv", tmp_path / "out"
    structural(TURNS).to_csv(path, index=False)
    words = [str(path), "--target", "died", "--environment", "site", "--out", str(out), "--json"]
    words += ["--algorithms", "vrex", "--draws", "2", "--replicas", "4"]
    command = [sys.executable, "-m", "envariant", "compare", *words]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while killed.poll() is None and _done(out) < 12:
        time.sleep(0.05)
    killed.kill()
    assert not killed.communicate()[1]
    assert 12 <= _done(out) < 48
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert told["recommended"] == "vrex"
    assert _done(out) == 64


def _done(folder):
    try:
        with Store(folder) as store:
            return store.counts()["done"]
    except envariant.EnvariantError:
        return 0
