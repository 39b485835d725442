"""Encoding: equal to scikit-learn's, learned from the training environments alone."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from envariant.core.errors import EnvariantWarning
from envariant.data.tables import table as tables
from envariant.data.tables.columns import Column, infer_column, read_chunk
from envariant.data.tables.encoding import MOST_CATEGORIES, Encoder, fit
from envariant.data.tables.kinds import KINDS
from envariant.data.tables.source import TableSource

NAN = np.nan


def column(values, dtype=None, name="x"):
    return infer_column(name, [read_chunk(name, pd.Series(values, dtype=dtype))])


def encoded(column, encoder=None):
    return (encoder or fit([column])).encode({column.name: column})


def test_encoded_numbers_equal_scikit_learn():
    draw = np.random.default_rng(0)
    values = draw.gamma(2.0, size=500) * 100 + 3
    values[draw.random(500) < 0.1] = NAN
    # scikit-learn's scaler ignores missing values.
    scaler = StandardScaler().fit(values[:, None])
    filled = SimpleImputer(strategy="median").fit_transform(values[:, None])
    found = encoded(column(values))
    np.testing.assert_allclose(found[:, 0], scaler.transform(filled)[:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[:, 1], np.isnan(values))
    assert found.dtype == np.float32


def test_missing_values_do_not_change_the_scale_of_observed_ones():
    values = np.random.default_rng(0).normal(5, 2, size=1000)
    gaps = np.where(np.arange(1000) % 10, NAN, values)
    found = encoded(column(gaps))[::10, 0]
    assert (found.mean(), found.std()) == (pytest.approx(0, abs=1e-5), pytest.approx(1, rel=1e-4))


@pytest.mark.parametrize("dtype", [float, object])
def test_a_column_missing_nearly_everywhere_in_training_rows_is_left_out(dtype):
    values = np.array([1.0, 2.0] * 10 + [NAN] * 600)
    if dtype is object:
        values = np.where(np.isnan(values), None, values.astype(str) + "x")
    assert fit([column(values, dtype)]) == Encoder(())
    assert fit([column(values[:200], dtype)]).names
    assert fit([column(np.tile(values, 5), dtype)]).names


def test_a_column_observed_in_one_environment_is_used_where_that_one_is_trained_on():
    draw = np.random.default_rng(0)
    site = np.repeat(["A", "B", "C"], 200)
    frame = pd.DataFrame({"x": draw.normal(size=600), "site": site, "y": draw.integers(2, size=600)})
    frame["vessels"] = np.where(site == "A", draw.integers(4, size=600), NAN)
    table = tables.read(frame, "y", "site")
    said = {entry.column: entry.what for entry in table.preprocessing_log}
    assert (
        "not used if the test environment is A, because it is missing in nearly all others" in said["vessels"]
    )
    source = TableSource(table)
    assert source.with_test_environments(["A"]).encoder.names == ("x",)
    assert source.with_test_environments(["B"]).encoder.names == ("x", "vessels", "vessels: missing")
    frame["vessels"] = np.where(np.arange(600) < 5, 1.0, NAN)
    with pytest.warns(EnvariantWarning, match="'vessels' \\(99.2% of its values are missing"):
        left_out = tables.read(frame, "y", "site")
    assert [c.name for c in left_out.columns] == ["x"]


def test_frequent_categories_of_small_environments_keep_their_input():
    draw = np.random.default_rng(0)
    large = draw.integers(60, size=6000)
    texts = np.array([f"c{k:02}" for k in [*large, *([70] * 40), *range(60)]])
    environments = np.repeat([0, 1], [6000, 100])
    assert "x = c70" not in fit([column(texts, object)]).names
    names = fit([column(texts, object)], environments).names
    assert "x = c70" in names
    assert len(names) == MOST_CATEGORIES


@pytest.mark.parametrize("many", [1 + MOST_CATEGORIES // 4, MOST_CATEGORIES, 3 * MOST_CATEGORIES])
def test_encoded_categories_equal_scikit_learn_also_for_unseen_rows(many):
    draw = np.random.default_rng(0)
    texts = np.array([f"c{k}" for k in range(many)])
    seen, fresh = (texts[np.minimum(draw.geometric(3 / many, 4000) - 1, many - 1)] for _ in range(2))
    usual = OneHotEncoder(
        max_categories=MOST_CATEGORIES, handle_unknown="infrequent_if_exist", sparse_output=False
    )
    usual.fit(seen[:, None])
    encoder = fit([column(seen, object)])
    assert len(encoder.names) == min(len(set(seen)), MOST_CATEGORIES)
    assert [
        name.replace(" = ", "_").replace(": other", "_infrequent_sklearn") for name in encoder.names
    ] == list(usual.get_feature_names_out(["x"]))
    for rows in (seen, fresh, np.array(["never", "seen", seen[0]])):
        np.testing.assert_array_equal(encoded(column(rows, object), encoder), usual.transform(rows[:, None]))


def test_missing_categories_are_marked():
    found = column(["a", None, "b"], object)
    assert fit([found]).names == ("x = a", "x = b", "x: missing")
    np.testing.assert_array_equal(encoded(found), [[1, 0, 0], [0, 0, 1], [0, 1, 0]])


def test_dates_have_a_season():
    found = column(pd.date_range("2020-01-01", periods=731))
    encoder = fit([found])
    assert encoder.names == ("x", "x: season 1", "x: season 2")
    numbers = encoded(found)
    np.testing.assert_allclose(numbers[0, 1:], numbers[-1, 1:], atol=0.02)
    np.testing.assert_allclose((numbers[:, 1:] ** 2).sum(axis=1), 1, rtol=1e-5)
    before = encoded(column(pd.to_datetime(["1910-07-01", "2020-07-01"])), encoder)
    np.testing.assert_allclose(*before[:, 1:], atol=0.03)


@pytest.mark.parametrize(
    "values",
    [[3, 3, 3], [0.1, 0.1, 0.1], [0.3, 0.1 + 0.2, 0.3], [NAN, NAN], [0.0, 1e-40, 1e-42]],
)
def test_a_constant_column_is_left_out(values):
    assert fit([column(values)]) == Encoder(())


@pytest.mark.parametrize(
    ("offset", "step"), [(1e9, 0.5), (1.7e12, 1), (2.0**49, 1), (712345001, 1), (-1e6, 1e-4)]
)
def test_small_differences_of_large_numbers_are_kept(offset, step):
    values = offset + step * np.arange(40)
    expected = (np.arange(40) - 19.5) / np.std(np.arange(40))
    for each in (column(values), column([repr(v) for v in values.tolist()], object)):
        np.testing.assert_allclose(encoded(each)[:, 0], expected, rtol=1e-5)
    stamps = pd.Timestamp("2024-05-01 12:00") + pd.to_timedelta(np.arange(40), unit="ms")
    np.testing.assert_allclose(encoded(column(stamps))[:, 0], expected, rtol=1e-3)


@pytest.mark.parametrize("value", [0.1, 1e-40, 7e14, -3.3])
def test_a_constant_with_gaps_keeps_only_the_missing_indicator(value):
    found = column([value, NAN] * 50 + [value] * 7)
    encoder = fit([found])
    assert encoder.names == ("x", "x: missing")
    numbers = encoded(found)
    np.testing.assert_array_equal(numbers[:, 0], 0)
    np.testing.assert_array_equal(numbers[:, 1], found.missing)


FLOATS = st.floats(min_value=-(2.0**49), max_value=2.0**49, width=32) | st.just(NAN)


@given(st.lists(FLOATS, min_size=1, max_size=30), st.lists(FLOATS, min_size=1, max_size=30))
def test_inputs_are_finite_for_any_training_and_new_values(seen, fresh):
    for kind in ("number", "date"):
        learned, new = (Column("x", kind, np.array(values, dtype=np.float32)) for values in (seen, fresh))
        encoder = fit([learned])
        for each in (learned, new):
            numbers = encoded(each, encoder)
            assert np.isfinite(numbers).all()
            assert np.abs(numbers).max(initial=0) <= 10


ROWS = st.lists(
    st.tuples(FLOATS, st.sampled_from(["a", "b", "c", "new", None]), st.floats(-1e3, 1e3)), min_size=10, max_size=10
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(ROWS, st.booleans())
def test_a_test_environment_does_not_influence_the_encoding(changed, regression):
    draw = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "site": np.repeat(["north", "south", "new"], [20, 20, 10]),
            "number": draw.normal(size=50),
            "word": draw.choice(["a", "b", "c"], 50),
            "y": draw.normal(size=50) if regression else draw.integers(2, size=50).astype(float),
        }
    )
    other = frame.copy()
    # Integer targets would be classes.
    other.loc[40:, ["number", "word"]] = np.array([row[:2] for row in changed], dtype=object)
    other["number"] = other["number"].astype(float)
    if regression:
        other.loc[40:, "y"] = [row[2] for row in changed]
    drawn = []
    for each in (frame, other):
        source = TableSource(tables.read(each, "y", "site", min_rows=5)).with_test_environments(["new"])
        drawn.append((source.encoder, source.task, source.sample(0)))
    (encoder, task, usual), (encoder_, task_, moved) = drawn
    assert encoder == encoder_
    assert task == task_
    for name in ("north", "south"):
        old, new = (next(e for e in each.environments if e.name == name) for each in (usual, moved))
        assert torch.equal(old.inputs, new.inputs)
        assert torch.equal(old.targets, new.targets)


@pytest.mark.parametrize("rows", [3, 7, 128, 5_001])
@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("gaps", [False, True])
def test_numbers_are_scaled_as_scikit_learn_scales_the_observed_ones(rows, size, gaps):
    rng = np.random.default_rng(rows)
    values = size * (3 + rng.normal(size=rows))
    values[1::5] = np.nan if gaps else 0.0
    imputer = SimpleImputer(strategy="median").fit(values[:, None])
    scaler = StandardScaler().fit(values[:, None])
    encoding = KINDS["number"].fit("x", values, ())
    expected = (imputer.statistics_[0], scaler.mean_[0], np.sqrt(scaler.var_[0]))
    np.testing.assert_allclose((encoding.fill, encoding.center, encoding.scale), expected, rtol=1e-12)
