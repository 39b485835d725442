"""A table with a known mechanism: one column is stable and one changes sign in one environment.

Without the change, the recommendation is an ordinary method.
"""

import json
import re
import shutil
import time

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures

import envariant
import processes
from envariant.algorithms import Composition, VREx
from envariant.cli import main
from envariant.comparison import compare
from envariant.comparison.drops import significant_drops
from envariant.comparison.formatting import the
from envariant.core.errors import EnvariantError
from envariant.core.printable import finite
from envariant.studies import Store
from envariant.training.option_text import text_of

SITES = ("north", "east", "south", "<b>city</b>")
TURNS = (0.05, 0.35, 0.2, 0.9)
SMALL = {"algorithms": ("vrex",), "n_trials": 1, "replicas": 4, "steps": 150}


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
    base = turned.results.baseline_method
    assert base in ("linear", "erm")
    own, vrex = (turned.results.cells[name]["<b>city</b>"] for name in (base, "vrex"))
    assert own.ood_score.mean < 0.55 < own.id_score.mean
    assert vrex.ood_score.mean > own.ood_score.mean + 0.1
    assert turned.recommended == "vrex"
    columns = turned.results.data.columns
    assert columns[0].column == "marker"
    assert [c.kind for c in columns] == ["changes sign", "stable", "stable"]
    assert turned.recommendation.headline == "Use V-REx for a new site"
    facts = (*turned.recommendation.bullets, *turned.recommendation.further_findings)
    assert any("relies on 'marker'" in fact for fact in facts)
    importance = turned.results.importance
    assert importance["vrex"]["marker"].in_domain < importance[base]["marker"].in_domain
    # In the city, the baseline does better with markers from other sites than with the city's own.
    assert importance[base]["marker"].replaced < importance[base]["severity"].replaced
    assert turned.results.data.shifts["<b>city</b>"].kind == "correlation"


def test_without_a_shift_the_recommendation_is_the_best_ordinary_method(tmp_path):
    table = structural((0.2,) * 4, rows=200, seed=1)
    few = {**SMALL, "algorithms": (), "replicas": 2}
    comparison = compare(table, target="died", environment="site", out=tmp_path, **few)
    base = comparison.results.baseline_method
    assert comparison.recommended == base
    assert comparison.recommendation.headline.startswith(f"Use {the(base)} for a new site")
    assert not significant_drops(comparison.results)
    assert not any(c.unstable for c in comparison.results.data.columns)


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


class Prevalence(BaseEstimator, ClassifierMixin):
    """Classifier of a user: the shares of the classes in training."""

    def fit(self, X, y):
        self.classes_, counts = np.unique(y, return_counts=True)
        self.shares_ = counts / len(y)
        return self

    def predict_proba(self, X):
        return np.tile(self.shares_, (len(X), 1))

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


def test_own_algorithms_and_candidates_are_compared(tmp_path):
    own = Composition(penalties=(VREx(coefficient=1.0),))
    table = structural((0.2,) * 4, rows=60).query("site != 'south'")
    short = {"n_trials": 1, "replicas": 1, "steps": 20, "out": tmp_path}
    roles = {"target": "died", "environment": "site"}
    comparison = compare(
        table, **roles, algorithms=(own, LogisticRegression()), candidates={"mine": Prevalence()}, **short
    )
    assert list(comparison.table.index) == [
        "linear", "boosted-trees", "erm", text_of(own), "LogisticRegression", "mine",
    ]  # fmt: skip
    assert comparison.table.notna().all(axis=None)
    with pytest.raises(EnvariantError, match="candidates: mine must be a predictor or a scikit-learn est"):
        compare(table, **roles, candidates={"mine": "linear model"}, **short)
    with pytest.raises(EnvariantError, match="candidates: the name 'linear' is taken"):
        compare(table, **roles, candidates={"linear": LogisticRegression()}, **short)


def test_the_recommended_estimator_of_a_user_is_kept_and_served(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 6))
    table = pd.DataFrame(x, columns=[*"abcdef"]).assign(y=(x**2).sum(axis=1) > 5.3)
    table["site"] = np.repeat(["a", "b", "c", "d"], 100)
    pipeline = make_pipeline(PolynomialFeatures(2), LogisticRegression(C=100))
    comparison = compare(
        table, target="y", environment="site", algorithms=(), candidates={"products": pipeline}, n_trials=1,
        replicas=3, steps=4, out=tmp_path,
    )  # fmt: skip
    assert comparison.recommended == "products"
    assert comparison.recommendation.headline == "Use products for a new site"
    here = comparison.best_model.predict(table)
    assert (here["prediction"] == table["y"]).mean() > 0.9
    pd.testing.assert_frame_equal(envariant.load_model(tmp_path / "model").predict(table), here)


def test_the_saved_model_is_trained_on_all_environments_and_predicts(turned):
    assert turned.best_model.environments == tuple(sorted(SITES))
    assert turned.best_model.predictor.algorithm == "vrex"
    new = structural(TURNS, rows=200, seed=9)
    predictions = envariant.load_model(turned.folder / "model").predict(new)
    correct = predictions["prediction"] == new["died"]
    assert correct.mean() > 0.6
    served = envariant.load_model(turned.folder / "model").serve(new)
    assert set(served.coverage) == set(SITES)
    assert served.score.contains(correct.mean())
    assert [name for name in served.table if name not in predictions] == ["set", "unlike"]


def test_the_answer_prints_paper_tables_and_draws_a_chart(turned):
    frame = turned.to_frame()
    for environment in turned.results.environments:
        for method, mean in turned.table[environment].items():
            assert frame.loc[method, (environment, "mean")] == pytest.approx(mean)
            assert frame.loc[method, (environment, "replicas")] == turned.results.n_replicas
    assert turned.to_latex(label="tab:a").count(r"\midrule") == 1
    assert turned.to_markdown(percent=True).startswith("| accuracy |")
    rows = turned.plot().to_dict(validate=False)["data"]["values"]
    drawn = {value for row in rows for value in row.values() if isinstance(value, str)}
    assert set(turned.results.environments) <= drawn
    for value in (turned, turned.results, turned.recommendation, turned.best_model, turned.study):
        assert len(repr(value).splitlines()) <= 8
        assert 'class="envariant"' in value._repr_html_()


def test_the_page_and_the_notebook_escape_names(turned):
    page = turned.page.read_text(encoding="utf-8")
    for text in (page, turned._repr_html_()):
        assert "<b>city" not in text
        assert "&lt;b&gt;city&lt;/b&gt;" in text
    # The last script is the library of the charts.
    assert not re.search(r'(?:src|href)="(?!data:|#)', page[: page.rindex("<script>")])
    numbers = json.loads((turned.folder / "comparison.json").read_text(encoding="utf-8"))
    expected = finite(turned.to_dict())
    assert {**numbers, "seconds": 0} == {**expected, "seconds": 0}
    assert numbers["recommended"] == "vrex"
    assert numbers["methods"]["linear"]["<b>city</b>"]["drop"] > 0.1
    assert set(numbers["methods"]["vrex"]["north"]) >= {
        "ood_score",
        "id_score",
        "gain_over_baseline",
        "p_value",
    }
    assert numbers["baseline"] == "majority-class baseline"
    assert set(numbers["baseline_scores"]) == set(SITES)
    assert numbers["possible_target_leakage"] == []
    assert numbers["columns"][0]["column"] == "marker"


@pytest.mark.verify
def test_a_killed_comparison_resumes_to_the_same_result(turned, tmp_path, here):
    path, out, output = tmp_path / "patients.csv", tmp_path / "out", tmp_path / "output"
    structural(TURNS).to_csv(path, index=False)
    arguments = ["compare", str(path), "--target", "died", "--environment", "site", "--out", str(out)]
    arguments += ["--algorithms", "vrex", "--n-trials", "1", "--replicas", "4", "--steps", "150", "--json"]
    killed = processes.start(main, arguments, output=output)
    while killed.is_alive() and _done(out) < 12:
        time.sleep(0.02)
    killed.kill()
    killed.join()
    assert "Traceback" not in output.read_text(encoding="utf-8")
    assert 12 <= _done(out) < 60
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


def test_two_processes_find_the_scores_of_one(tmp_path):
    frame = structural(TURNS, rows=60)[:120]
    options = {"algorithms": ("erm",), "n_trials": 1, "replicas": 1, "steps": 5}
    one, two = (
        compare(
            frame, target="died", environment="site", out=tmp_path / str(workers), workers=workers, **options
        )
        for workers in (1, 2)
    )
    pd.testing.assert_frame_equal(one.table, two.table, check_exact=True)
    assert one.verdict == two.verdict
