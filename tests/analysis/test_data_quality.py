"""Codes for missing values, identifiers and columns tied to environments are found; ordinary columns are not."""

import numpy as np
import pytest

from envariant.analysis import data_quality
from envariant.analysis.data_quality import (
    identifiers,
    local_categories,
    missing_codes,
    missingness_differences,
    naming_columns,
)
from envariant.core.errors import EnvariantError

SITE = np.repeat(["A", "B", "C"], 100)
RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("values", "code"),
    [
        (RNG.normal(220, 40, 300).round(), 0),
        (RNG.integers(1, 6, 300).astype(float), 9),
        (RNG.integers(1, 90, 300).astype(float), 999),
        (RNG.poisson(3, 300).astype(float), -1),
        (RNG.normal(size=300), -999),
        (RNG.poisson(20, 300).astype(float), 99),
    ],
)
def test_codes_for_missing_values(values, code):
    coded = values.copy()
    coded[180:230] = code
    (found,) = missing_codes({"x": coded}, SITE)
    assert (found.code, found.rows) == (code, {"B": 20, "C": 30})
    assert missing_codes({"x": values}, SITE) == ()


@pytest.mark.parametrize(
    "values",
    [
        np.where(RNG.random(300) < 0.8, 0, RNG.exponential(5000, 300)),  # Income of few.
        RNG.poisson(4, 300).astype(float),
        RNG.integers(0, 10, 300).astype(float),
        RNG.integers(0, 100, 300).astype(float),
        RNG.integers(-1, 2, 300).astype(float),
        RNG.integers(0, 2, 300).astype(float),
        np.append(RNG.normal(220, 40, 299), 0.0),
        RNG.standard_t(2, 300),
    ],
)
def test_ordinary_numbers_are_no_codes(values):
    assert missing_codes({"x": values}, SITE) == ()


def test_columns_that_name_environments():
    rng = np.random.default_rng(0)
    columns = {
        "device": np.char.add("d", (np.arange(300) // 50).astype(str)),
        "beds": np.repeat([120.0, 80.0, 300.0], 100),
        "time": np.arange(300.0),
        "mostly": np.where(rng.random(300) < 0.2, "x", np.repeat(["p", "q", "r"], 100)),
        "shifted": rng.normal(size=300) + np.repeat([0, 3, 6], 100),
        "text": rng.integers(10**6, size=300).astype(str),
        "huge": rng.normal(size=300) * 1e300,
    }
    found = naming_columns(columns, SITE)
    assert [each.column for each in found] == ["device", "beds", "time"]
    assert found[0].environments == ("A", "B", "C")
    assert naming_columns({"code": np.repeat([3, 1, 2], 100)}, SITE, categorical=["code"])
    two = SITE[:200]
    assert naming_columns({"x": rng.normal(size=200) + np.repeat([0, 4], 100)}, two) == ()


def test_a_column_that_names_one_environment_of_three_is_no_name():
    assert naming_columns({"x": np.repeat(["old", "old", "new"], 100)}, SITE) == ()


def test_missingness_must_differ_much_and_significantly():
    rng = np.random.default_rng(0)
    half = np.where(rng.random(300) < np.repeat([0.1, 0.1, 0.6], 100), np.nan, 1.0)
    found = missingness_differences({"half": half, "none": np.ones(300)}, SITE)
    assert [each.column for each in found] == ["half"]
    assert found[0].shares["C"] == pytest.approx(0.6, abs=0.15)
    small = np.repeat(np.arange(40), 30)
    at_random = {f"x{k}": np.where(rng.random(1200) < 0.5, np.nan, 1.0) for k in range(30)}
    assert missingness_differences(at_random, small) == ()
    assert missingness_differences({"c": np.where(SITE == "A", -1, 0)}, SITE, categorical=["c"])


def test_local_categories():
    rng = np.random.default_rng(0)
    word = rng.choice(["u", "v"], 300).astype(object)
    assert local_categories({"word": word}, SITE) == ()
    word[:20] = "w"
    word[250] = "once"
    (found,) = local_categories({"word": word}, SITE)
    assert (found.environment, found.categories) == ("A", ("w",))
    assert local_categories({"site": SITE}, SITE) == ()


def test_identifiers():
    rng = np.random.default_rng(0)
    columns = {
        "patientID": rng.choice(10**5, 300, replace=False),
        "phone": rng.choice(9 * 10**8, 300, replace=False) + 10**8,
        "row": rng.permutation(300),
        "name": [f"n{k}" for k in range(300)],
        "income": rng.integers(10**6, size=300),
        "humid": rng.integers(10**6, size=300),
        "height": rng.normal(size=300),
        "zip_code": rng.integers(100, size=300),
    }
    assert [(i.column, i.kind) for i in identifiers(columns)] == [
        ("patientID", "number"),
        ("phone", "number"),
        ("row", "row number"),
        ("name", "text"),
    ]


@pytest.mark.parametrize(
    "name", ["missing_codes", "naming_columns", "missingness_differences", "local_categories"]
)
def test_unequal_lengths_are_rejected(name):
    with pytest.raises(EnvariantError, match=f"{name}: 'x' has 2 rows, but 'environments' has 300"):
        getattr(data_quality, name)({"x": [1, 2]}, SITE)
