"""Columns that nearly determine the target are found, by values, categories or missingness; others are not."""

import numpy as np
import pytest

from envariant.analysis.leakage import LeakyColumn, leaky_columns
from envariant.core.errors import EnvariantError


def names(columns, targets, task, **more):
    return tuple(leak.column for leak in leaky_columns(columns, targets, task=task, **more))


def test_a_monotone_transform_of_a_real_target_leaks():
    rng = np.random.default_rng(1)
    wage = np.exp(rng.normal(size=300))
    columns = {"wage": wage, "school": np.log(wage) + rng.normal(size=300)}
    assert leaky_columns(columns, np.log(wage), task="regression") == (
        LeakyColumn("wage", "rank correlation", pytest.approx(1.0)),
    )


def test_values_missingness_and_categories_leak_a_binary_target():
    rng = np.random.default_rng(1)
    wage = np.exp(rng.normal(size=300))
    works = wage > 1
    columns = {
        "hours": works * rng.integers(1, 60, size=300),
        "pay": np.where(works, wage, np.nan),
        "kind": np.where(works, "paid", "unpaid"),
        "age": rng.normal(size=300) + works,
    }
    leaks = leaky_columns(columns, works, task="binary")
    assert [(leak.column, leak.measure) for leak in leaks] == [
        ("hours", "AUROC"),
        ("pay", "missingness"),
        ("kind", "accuracy"),
    ]


def test_codes_of_categories_are_not_numbers():
    rng = np.random.default_rng(0)
    codes = rng.integers(3, size=300)
    target = np.array([5.0, 1.0, 3.0])[codes] + 0.01 * rng.normal(size=300)
    assert names({"codes": codes}, target, "regression", categorical=["codes"]) == ("codes",)
    assert names({"codes": codes}, target, "regression") == ()
    gaps = np.where(rng.random(300) < 0.3, -1, codes)
    (leak,) = leaky_columns({"codes": gaps}, target, task="regression", categorical=["codes"])
    assert leak.measure == "R²"
    assert leak.score > 0.99


def test_a_rare_class_and_few_missing_values_do_not_leak():
    rng = np.random.default_rng(0)
    rare, gaps = np.zeros(3000, dtype=int), rng.normal(size=3000)
    rare[rng.choice(3000, 15, replace=False)] = 1
    gaps[rng.choice(3000, 9, replace=False)] = np.nan
    words = rng.choice(["u", "v", "w"], 3000)
    assert names({"gaps": gaps, "words": words}, rare, "binary") == ()
    classes = np.where(rare == 1, rng.integers(1, 3, 3000), 0)
    assert names({"words": words, "copy": classes.astype(str)}, classes, "multiclass") == ("copy",)


def test_identifiers_constants_and_short_columns_do_not_leak():
    target = np.arange(300) % 2
    columns = {"id": np.arange(300).astype(str), "constant": np.ones(300), "none": np.full(300, np.nan)}
    assert names(columns, target, "binary") == ()
    assert names({"x": target[:20]}, target[:20], "binary") == ()
    assert names({"when": np.datetime64("2020-01-01") + target}, target, "binary") == ("when",)


def test_unequal_lengths_are_rejected():
    with pytest.raises(EnvariantError, match="'x' has 3 rows, but targets have 2"):
        leaky_columns({"x": np.zeros(3)}, np.zeros(2), task="binary")
