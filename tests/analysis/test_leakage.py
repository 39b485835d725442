"""Columns that nearly determine the target are found, by values, categories or missingness; others are not."""

import numpy as np
import pytest

from envariant.analysis.leakage import LeakyColumn, leaky_columns, leaky_group
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
    with pytest.raises(EnvariantError, match="'x' has 3 rows, but 'targets' has 2"):
        leaky_columns({"x": np.zeros(3)}, np.zeros(2), task="binary")


def test_a_sum_of_columns_leaks_and_the_smallest_group_is_named():
    rng = np.random.default_rng(0)
    casual, registered = rng.poisson((30, 300), size=(400, 2)).T
    columns = {"a": casual, "b": registered, "total": casual + registered + rng.normal(size=400) * 30}
    columns |= {f"noise {k}": rng.normal(size=400) for k in range(10)}
    found = leaky_group(columns, casual + registered, task="regression")
    assert found.columns == ("a", "b")
    assert found.score == pytest.approx(1)
    assert leaky_group(columns, casual + registered + rng.normal(size=400) * 10, task="regression") is None


def test_a_threshold_on_a_combination_leaks_a_class():
    rng = np.random.default_rng(0)
    x = rng.exponential(size=(500, 6))
    columns = dict(zip("abcdef", x.T, strict=True))
    for target in (x[:, 1] - 2 * x[:, 4] > 0, x[:, 1] + x[:, 4] > 2):
        found = leaky_group(columns, target.astype(int), task="binary")
        assert found.columns == ("b", "e")
        assert found.measure == "AUROC"


def test_a_good_model_and_more_columns_than_rows_are_no_leak():
    rng = np.random.default_rng(0)
    wide = {f"x{k}": rng.normal(size=100) for k in range(300)}
    assert leaky_group(wide, rng.normal(size=100), task="regression") is None
    assert leaky_group(wide, rng.integers(2, size=100), task="binary") is None
    x = rng.normal(size=(400, 8))
    columns = {f"x{k}": x[:, k] for k in range(8)}
    assert leaky_group(columns, x.sum(axis=1) + 0.5 * rng.normal(size=400), task="regression") is None
    assert leaky_group(columns, x.sum(axis=1) > 0.3 * rng.normal(size=400), task="binary") is None


@pytest.mark.parametrize("rows", [400, 100])
def test_a_sum_among_many_columns_is_found(rows):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 200))
    columns = {f"x{k}": x[:, k] for k in range(200)}
    found = leaky_group(columns, x[:, 3] + x[:, 70] + x[:, 150], task="regression")
    assert found.columns == ("x3", "x70", "x150")


def test_a_copy_of_the_class_as_a_number_leaks():
    rng = np.random.default_rng(0)
    classes = rng.integers(3, size=300)
    columns = {"copy": classes * 2.0 + 0.1 * rng.normal(size=300), "x": classes + rng.normal(size=300)}
    assert names(columns, classes, "multiclass") == ("copy",)


def test_a_lower_threshold_reports_more():
    rng = np.random.default_rng(0)
    y = rng.normal(size=300)
    assert names({"x": y + 0.2 * rng.normal(size=300)}, y, "regression") == ()
    assert names({"x": y + 0.2 * rng.normal(size=300)}, y, "regression", threshold=0.95) == ("x",)
