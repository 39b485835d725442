"""A table with a known mechanism: one column is stable and one changes sign in one environment.

Without the change, the recommendation is to stay with ERM.
"""

import json
import re
import shutil
import time

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

import envariant
import processes
from envariant.algorithms import Composition, VREx
from envariant.cli import main
from envariant.comparison import compare
from envariant.reporting.tables import finite
from envariant.studies import Store
from envariant.training.run_spec import text_of

SITES = ("north", "east", "south", "<b>city</b>")
TURNS = (0.05, 0.35, 0.2, 0.9)
SMALL = {"algorithms": ("vrex",), "n_trials": 2, "replicas": 4, "steps": 150}


def structural(flips, rows=500, seed=0):
    """Draw rows with x → y → marker, where the marker contradicts y with a probability that depends on the site."""
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


def test_the_unstable_column_is_named_and_a_robust_method_recommended(turned):
    erm, vrex = (turned.results.cells[name]["<b>city</b>"] for name in ("erm", "vrex"))
    assert erm.ood_score.mean < 0.55 < erm.id_score.mean
    assert vrex.ood_score.mean > erm.ood_score.mean + 0.1
    assert turned.recommended == "vrex"
    columns = turned.results.data.columns
    assert columns[0].column == "marker"
    assert [c.kind for c in columns] == ["changes sign", "stable", "stable"]
    assert turned.recommendation.headline == "Use V-REx for a new site"
    facts = (*turned.recommendation.bullets, *turned.recommendation.further_findings)
    assert any("ERM relies on 'marker'" in fact for fact in facts)
    importance = turned.results.importance
    assert importance["vrex"]["marker"].in_domain < importance["erm"]["marker"].in_domain
    # In the city, ERM does better with markers from other sites than with the city's own.
    assert importance["erm"]["marker"].replaced < importance["erm"]["severity"].replaced
    assert turned.results.data.shifts["<b>city</b>"].kind == "correlation"


def test_without_a_shift_the_recommendation_is_erm(tmp_path):
    table = structural((0.2,) * 4, seed=1)
    comparison = compare(table, target="died", environment="site", out=tmp_path, **SMALL)
    assert comparison.recommended == "erm"
    assert comparison.recommendation.headline == "Stay with ERM: no significant drop at a new site"
    assert not any(c.unstable for c in comparison.results.data.columns)
    assert "ERM has no significant drop; worst at " in comparison.verdict


def test_the_table_has_every_environment_and_the_worst(turned):
    assert list(turned.table.columns) == [*sorted(SITES), "worst", "mean"]
    assert turned.table.loc["erm", "worst"] == turned.table.loc["erm", list(SITES)].min()
    assert turned.table.index.name == "accuracy"


def test_a_repeated_call_trains_nothing_even_if_the_folder_was_moved(turned, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(turned.folder, moved)
    before = listing(turned.folder)
    again = compare(structural(TURNS), target="died", environment="site", out=moved, **SMALL)
    pd.testing.assert_frame_equal(listing(moved), before)
    assert again.verdict == turned.verdict
    assert again.best_model.predictor.algorithm == "vrex"
    pd.testing.assert_frame_equal(again.table, turned.table)


def listing(folder):
    """Return all runs with their durations, which change if one is trained again."""
    with Store(folder) as store:
        return store.listing()


def test_own_algorithms_and_estimators_are_compared(tmp_path):
    own = Composition(penalties=(VREx(coefficient=1.0),))
    methods = (own, LogisticRegression())
    table = structural((0.2,) * 4, rows=60).query("site != 'south'")
    comparison = compare(
        table,
        target="died",
        environment="site",
        algorithms=methods,
        n_trials=1,
        replicas=1,
        steps=20,
        out=tmp_path,
    )
    assert list(comparison.table.index) == ["erm", text_of(own), text_of(methods[1])]
    assert comparison.results.predictors == (text_of(methods[1]),)
    assert comparison.table.notna().all(axis=None)


def test_the_saved_model_is_trained_on_all_environments_and_predicts(turned):
    assert turned.best_model.environments == tuple(sorted(SITES))
    assert turned.best_model.predictor.algorithm == "vrex"
    new = structural(TURNS, rows=200, seed=9)
    predictions = envariant.load_model(turned.folder / "model").predict(new)
    correct = predictions["prediction"] == new["died"]
    assert correct.mean() > 0.6


def test_the_page_and_the_notebook_escape_names(turned):
    page = turned.page.read_text(encoding="utf-8")
    for text in (page, turned._repr_html_()):
        assert "<b>city" not in text
        assert "&lt;b&gt;city&lt;/b&gt;" in text
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    numbers = json.loads((turned.folder / "comparison.json").read_text(encoding="utf-8"))
    expected = finite(turned.to_dict())
    assert {**numbers, "seconds": 0} == {**expected, "seconds": 0}
    assert numbers["recommended"] == "vrex"
    assert numbers["methods"]["erm"]["<b>city</b>"]["drop"] > 0.1
    assert set(numbers["methods"]["vrex"]["north"]) >= {"ood_score", "id_score", "gain_over_erm", "p_value"}
    assert numbers["baseline"] == "majority-class baseline"
    assert set(numbers["baseline_scores"]) == set(SITES)
    assert numbers["possible_target_leakage"] == []
    assert numbers["columns"][0]["column"] == "marker"


def test_a_killed_comparison_resumes_to_the_same_result(turned, tmp_path, here):
    path, out, output = tmp_path / "patients.csv", tmp_path / "out", tmp_path / "output"
    structural(TURNS).to_csv(path, index=False)
    arguments = ["compare", str(path), "--target", "died", "--environment", "site", "--out", str(out)]
    arguments += ["--algorithms", "vrex", "--n-trials", "2", "--replicas", "4", "--steps", "150", "--json"]
    killed = processes.start(main, arguments, output=output)
    while killed.is_alive() and _done(out) < 12:
        time.sleep(0.02)
    killed.kill()
    killed.join()
    assert "Traceback" not in output.read_text(encoding="utf-8")
    assert 12 <= _done(out) < 48
    done = here(*arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["recommended"] == "vrex"
    assert _done(out) == 64


def _done(folder):
    try:
        with Store(folder) as store:
            return store.counts()["done"]
    except envariant.EnvariantError:
        return 0
