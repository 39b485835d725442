"""Scores of constant predictions, classes of one environment, and leaky columns of a table."""

import numpy as np
import pandas as pd
import pytest

from envariant.comparison import baselines
from envariant.comparison.data_summary import summarize
from envariant.core.metrics import METRICS
from envariant.data.tables import table as tables
from envariant.data.tables.source import TableSource

FOLDS = [("a",), ("b",), ("c",)]


def read(target, **columns):
    frame = pd.DataFrame({"target": target, **columns, "place": np.repeat(["a", "b", "c"], len(target) // 3)})
    table = tables.read(frame, "target", "place")
    return table, TableSource(table, "table").task


def summary(table):
    return summarize(TableSource(table, "table"), FOLDS, {}, (), table.environments, seed=0)


def test_the_baseline_predicts_the_mean_or_majority_class_of_other_environments():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=300)
    table, task = read(noise + np.repeat([0.0, 0.0, 6.0], 100), x=rng.normal(size=300))
    found = baselines.baseline_scores(table, task, METRICS["RMSE"], FOLDS)
    assert found["c"] == pytest.approx(6.0, abs=0.3)
    assert found["a"] == pytest.approx(3.2, abs=0.3)
    assert summary(table).n_rows == {"a": 100, "b": 100, "c": 100}
    table, task = read([*"xxxy" * 25, *"xxxy" * 25, *"yyyx" * 25], x=rng.normal(size=300))
    found = baselines.baseline_scores(table, task, METRICS["accuracy"], FOLDS)
    assert found == pytest.approx({"a": 0.25, "b": 0.25, "c": 0.25}, abs=0.5)
    assert found["c"] == pytest.approx(0.25)


def test_a_class_of_one_fold_is_unseen():
    table, task = read([*"xy" * 50, *"xy" * 50, *"xz" * 50], x=np.random.default_rng(2).normal(size=300))
    assert baselines.unseen_classes(table, task, FOLDS) == {"c": ("z",)}
    assert baselines.unseen_classes(table, task, [("a", "b"), ("c",)]) == {
        "a": ("y",),
        "b": ("y",),
        "c": ("z",),
    }


def test_the_baseline_covers_a_multiclass_task_with_two_classes():
    frame = pd.DataFrame({"x": np.random.default_rng(0).normal(size=300), "y": [0, 1, 1] * 100})
    frame["place"] = np.repeat(["a", "b", "c"], 100)
    table = tables.read(frame, "y", "place", task="multiclass")
    found = baselines.baseline_scores(table, TableSource(table, "table").task, METRICS["accuracy"], FOLDS)
    assert found == pytest.approx({"a": 2 / 3, "b": 2 / 3, "c": 2 / 3}, abs=0.01)


def test_a_column_that_is_derived_from_the_target_leaks():
    rng = np.random.default_rng(1)
    wage = np.exp(rng.normal(size=300))
    columns = {"wage": wage, "school": np.log(wage) + rng.normal(size=300)}
    assert summary(read(np.log(wage), **columns)[0]).leaky_columns == ("wage",)
    works = wage > 1
    columns = {"hours": works * rng.integers(1, 60, size=300), "pay": np.where(works, wage, np.nan)}
    columns |= {"kind": np.where(works, "paid", "none such"), "age": rng.normal(size=300) + works}
    table, _ = read(works, **columns)
    assert summary(table).leaky_columns == ("hours", "pay", "kind")


def test_a_rare_class_and_a_column_with_few_gaps_do_not_leak():
    rng = np.random.default_rng(0)
    rare, gaps = np.zeros(3000, dtype=int), rng.normal(size=3000)
    rare[rng.choice(3000, 15, replace=False)] = 1
    gaps[rng.choice(3000, 9, replace=False)] = np.nan
    words = rng.choice(["u", "v", "w"], 3000)
    table, _ = read(rare, gaps=gaps, words=words)
    assert summary(table).leaky_columns == ()
    classes = np.where(rare == 1, rng.choice(["p", "q"], 3000), "usual")
    table, _ = read(classes, words=words, told=classes)
    assert summary(table).leaky_columns == ("told",)
