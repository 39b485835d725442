"""Drift of arrays: new values, unseen categories, dates and missing values are reported; equal rows are not."""

import numpy as np
import pytest

from envariant.analysis.drift import measure_drift
from envariant.core.errors import EnvariantError

HOSPITAL = np.repeat(["north", "south", "east"], 200)


def columns(rows, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "age": rng.normal(50, 10, rows),
        "ward": rng.choice(["icu", "er", "surgery"], rows).astype(object),
        "smoker": rng.random(rows) < 0.3,
        "seen": np.datetime64("2020-01-01") + rng.integers(0, 365, rows),
    }


def test_rows_of_the_same_distribution_resemble_training():
    drift = measure_drift(columns(600), HOSPITAL, columns(200, seed=1))
    assert drift.kind == "alike"
    assert drift.environments == ("east", "north", "south")
    assert drift.verdict == "New rows resemble the training environments"


def test_each_kind_of_column_drifts():
    new = columns(200, seed=1)
    new["age"] += 30
    new["ward"][:80] = "<new>"
    new["smoker"][:] = True
    new["seen"] += np.timedelta64(400, "D")
    training = columns(600)
    first, last = (str(f(training["seen"])) for f in (np.min, np.max))
    drift = measure_drift(training, HOSPITAL, new)
    assert drift.differing == ("age", "ward", "smoker", "seen")
    by_name = {column.name: column for column in drift.columns}
    assert by_name["ward"].unseen == {"<new>": 80}
    assert by_name["seen"].outside == 200
    assert by_name["seen"].training_range == (first, last)
    assert by_name["smoker"].training_range == ("false", "true")
    assert f"seen: 200 rows outside the training range {first} … {last}" in drift.remarks


def test_missing_values_are_reported():
    new = columns(200, seed=1)
    new["age"][:100] = np.nan
    new["ward"][:100] = None
    drift = measure_drift(columns(600), HOSPITAL, new)
    assert drift.differing == ("age", "ward")
    assert "age: 100 rows with a missing value, although no training row has one" in drift.remarks


def test_a_difference_that_training_environments_have_too_is_not_drift():
    training = columns(600)
    training["age"] += 20 * (HOSPITAL == "north")
    drift = measure_drift(training, HOSPITAL, columns(200, seed=1))
    assert drift.columns[0].standing == "within"
    assert drift.kind == "alike"


def test_few_rows_are_not_compared():
    drift = measure_drift(columns(600), HOSPITAL, columns(19))
    assert drift.kind == "too few rows"
    assert "19 rows: too few" in drift.verdict


def test_unusable_columns_are_rejected():
    with pytest.raises(EnvariantError, match="new rows lack column 'age'"):
        measure_drift(columns(600), HOSPITAL, {})
    with pytest.raises(
        EnvariantError, match="column 'age' is a number in training and a category in new rows"
    ):
        measure_drift(columns(600), HOSPITAL, {**columns(50), "age": ["young"] * 50})
