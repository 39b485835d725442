"""Conformal thresholds against worked values, loops over rows, and simulated coverage."""

import math

import numpy as np
import pytest

from envariant.analysis.conformal import (
    environment_jackknife,
    finest_level,
    held_out_threshold,
    mondrian_thresholds,
    new_environment_threshold,
    pooled_cdf_threshold,
    prediction_intervals,
    prediction_sets,
    split_threshold,
    weighted_thresholds,
)
from envariant.core.errors import EnvariantError

R = [0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.8, 1.1, 1.5]
BY_ENVIRONMENT = [0.1, 0.3, 0.5, 0.7, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4]
ENVIRONMENTS = np.repeat(["a", "b", "c"], [4, 2, 5])
TABLE = {
    "0": [
        (-0.8, -0.8),
        (-1.3, -1.1),
        (-0.2, -0.2),
        (0.4, 0),
        (1.1, 1.2),
        (0.1, 1.0),
        (-0.6, -0.8),
        (-0.8, -2.1),
    ],
    "1": [(2.4, 3.6), (2.8, 4.0), (0.4, 0.1), (1.7, 2.4), (1.0, 1.0), (1.8, 2.0), (0.7, 1.2), (2.0, 2.4)],
    "2": [
        (-1.5, -1.5),
        (-1.5, -2.0),
        (0.9, 2.6),
        (-3.4, -4.8),
        (0.5, 1.2),
        (-3.2, -4.4),
        (-1.7, -2.9),
        (-2.7, -4.1),
    ],
}


@pytest.mark.parametrize(("alpha", "value"), [(0.2, 1.1), (0.1, 1.5), (0.05, math.inf)])
def test_split(alpha, value):
    assert split_threshold(R, alpha).value == value


def test_mondrian():
    thresholds = mondrian_thresholds(R, ["a"] * 5 + ["b"] * 4, 0.2)
    assert {name: t.value for name, t in thresholds.items()} == {"a": 0.5, "b": 1.5}
    assert thresholds["a"].finest_level == finest_level(5) == 5 / 6


@pytest.mark.parametrize(("alpha", "values"), [(0.2, [1.1, 1.5]), (0.1, [1.5, math.inf])])
def test_weighted(alpha, values):
    w = [0.5, 0.5, 1, 1, 1, 2, 2, 1, 1]
    assert weighted_thresholds(R, w, [1, 2], alpha).tolist() == values

    def reference(new):
        total, cumulated = sum(w) + new, 0.0
        for r, weight in sorted(zip(R, w, strict=True)):
            cumulated += weight / total
            if cumulated >= 1 - alpha - 1e-12:
                return r
        return math.inf

    new = np.random.default_rng(0).uniform(0, 5, 30)
    assert weighted_thresholds(R, w, new, alpha).tolist() == [reference(v) for v in new]


@pytest.mark.parametrize(("alpha", "value"), [(0.1, 1.2), (0.2, 0.8), (0.3, 0.7), (0.4, 0.6)])
def test_pooled_cdf(alpha, value):
    assert pooled_cdf_threshold(BY_ENVIRONMENT, ENVIRONMENTS, alpha).value == value


@pytest.mark.parametrize(
    ("alpha", "value", "pooled"),
    [(0.2, math.inf, 1.2), (0.3, 1.2, 1.0), (0.4, 0.8, None), (0.1, math.inf, 1.4)],
)
def test_new_environment(alpha, value, pooled):
    threshold = new_environment_threshold(BY_ENVIRONMENT, ENVIRONMENTS, alpha)
    assert threshold.value == value
    assert threshold.finest_level == 0.75
    assert ("at most 75.0%" in str(threshold)) == math.isinf(value)
    if pooled is not None:
        assert split_threshold(BY_ENVIRONMENT, alpha).value == pooled


def test_pooled_thresholds_equal_a_search_over_scores():
    rng = np.random.default_rng(1)
    r, e = rng.exponential(size=40), rng.integers(0, 5, 40)
    for alpha in (0.2, 0.35, 0.5):
        for extra, threshold in ((0, pooled_cdf_threshold), (1, new_environment_threshold)):
            reached = [
                t
                for t in sorted(r)
                if sum((r[e == k] <= t).mean() for k in range(5)) / (5 + extra) >= 1 - alpha - 1e-12
            ]
            assert threshold(r, e, alpha).value == (reached[0] if reached else math.inf)


@pytest.mark.parametrize(
    ("alpha", "ends"), [(0.25, (-0.1134334449, 2.7331673876)), (0.4, (0.7414073986, 2.4100683965))]
)
def test_environment_jackknife(alpha, ends):
    fits = {
        left: np.polyfit(*np.array([row for e, rows in TABLE.items() if e != left for row in rows]).T, 1)
        for left in TABLE
    }
    assert fits["0"] == pytest.approx([1.4110541582, 0.0323618230])
    residuals = [abs(y - np.polyval(fits[e], x)) for e, rows in TABLE.items() for x, y in rows]
    predictions = {e: np.polyval(fit, [1.0, 0.5]) for e, fit in fits.items()}
    low, high = environment_jackknife(residuals, np.repeat(list(TABLE), 8), predictions, alpha)
    assert (low[0], high[0]) == pytest.approx(ends)
    low, high = environment_jackknife(residuals, np.repeat(list(TABLE), 8), predictions, 0.2)
    assert np.isinf(low).all()
    assert np.isinf(high).all()


def test_a_new_environment_is_covered_and_pooled_rows_promise_too_much():
    rng = np.random.default_rng(2)
    covered = {"pooled": [], "new": []}
    environments = np.repeat(np.arange(10), 30)
    for _ in range(200):
        shift = rng.normal(0, 2, 11)
        scores = np.abs(shift[environments] + rng.normal(size=300))
        new = np.abs(shift[10] + rng.normal(size=200))
        covered["pooled"].append((new <= split_threshold(scores, 0.2).value).mean())
        covered["new"].append((new <= new_environment_threshold(scores, environments, 0.2).value).mean())
    # The standard error is about 0.02.
    assert np.mean(covered["new"]) > 0.74
    assert np.mean(covered["new"]) > np.mean(covered["pooled"])


def test_sets_and_intervals():
    assert prediction_sets([[0.7, 0.3], [0.2, 0.8]], [0.3, 0.1]).tolist() == [[True, False], [False, False]]
    low, high = prediction_intervals([1.0, 2.0], [0.5, 1.0], [2.0, 1.0])
    assert (low.tolist(), high.tolist()) == ([0.0, 1.0], [2.0, 3.0])
    assert prediction_sets([[0.6, 0.4]], math.inf).all()


def test_wrong_input_is_an_error():
    with pytest.raises(EnvariantError, match="alpha must be between 0 and 1, got 95"):
        split_threshold(R, 95)
    with pytest.raises(EnvariantError, match="without missing values"):
        split_threshold([math.nan], 0.1)
    with pytest.raises(EnvariantError, match="needs one group per score, got 9 scores and 2 groups"):
        mondrian_thresholds(R, ["a", "b"], 0.1)
    with pytest.raises(EnvariantError, match="trained without environment 'b' are missing"):
        environment_jackknife([0.1, 0.2], ["a", "b"], {"a": [1.0]}, 0.5)
    with pytest.raises(EnvariantError, match="weights must be non-negative"):
        weighted_thresholds([0.1], [-1.0], [1.0], 0.5)


def held_out_by_loops(scores, environments, alpha):
    """Second implementation: the smallest pooled quantile, found by trying every score."""

    def pooled(values, names):
        for t in np.sort(values):
            shares = [np.mean(values[names == name] <= t) for name in np.unique(names)]
            if np.mean(shares) >= 1 - alpha - 1e-12:
                return t
        raise AssertionError

    ratios = np.zeros(len(scores))
    for name in np.unique(environments):
        own = environments == name
        ratios[own] = scores[own] / pooled(scores[~own], environments[~own])
    return pooled(ratios, environments) * pooled(scores, environments)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.35, 0.6])
def test_held_out_threshold_is_that_of_loops(alpha):
    scores = np.array(BY_ENVIRONMENT)
    threshold, coverage = held_out_threshold(scores, ENVIRONMENTS, alpha)
    assert threshold.value == pytest.approx(held_out_by_loops(scores, ENVIRONMENTS, alpha), rel=1e-12)
    assert set(coverage) == {"a", "b", "c"}
    assert np.mean(list(coverage.values())) >= 1 - alpha - 1e-12


@pytest.mark.parametrize(("spread", "location"), [(0.0, 0.0), (0.5, 0.0), (0.3, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("count", [4, 12])
def test_held_out_threshold_covers_a_new_environment_on_average(count, spread, location):
    draw, covered, pooled = np.random.default_rng(count), [], []
    names = np.repeat(np.arange(count), 60)
    for _ in range(150):
        scale = np.exp(spread * draw.normal(size=count + 1))
        center = location * draw.normal(size=count + 1)
        r = np.abs(center[:, None] + scale[:, None] * draw.normal(size=(count + 1, 60)))
        threshold = held_out_threshold(r[:count].ravel(), names, 0.1)[0].value
        covered.append(np.mean(r[count] <= threshold))
        pooled.append(np.mean(r[count] <= split_threshold(r[:count].ravel(), 0.1).value))
    error = np.std(covered) / np.sqrt(len(covered))
    assert np.mean(covered) == pytest.approx(0.9, abs=0.01 + 3 * error)
    # Split conformal on the pooled rows covers less.
    assert np.mean(covered) > np.mean(pooled) - 0.005


def test_held_out_threshold_needs_two_environments_and_scores_that_are_not_negative():
    with pytest.raises(EnvariantError, match="held_out_threshold: needs at least two environments"):
        held_out_threshold([0.1, 0.2], ["a", "a"], 0.1)
    with pytest.raises(EnvariantError, match="non-negative scores"):
        held_out_threshold([0.1, -0.2], ["a", "b"], 0.1)
    assert held_out_threshold([0.0, 0.0, 1.0], ["a", "b", "b"], 0.5)[0].value == 0.0
