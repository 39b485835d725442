"""Intervals, paired differences, slopes and rankings against SciPy, simulations and hand-computed cases."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from envariant.analysis.statistics import (
    Interval,
    bootstrap,
    difference,
    friedman,
    holm,
    interquartile_mean,
    interval,
    probability_of_improvement,
    signed_rank,
    slope,
)

finite = st.floats(-1e3, 1e3)


def test_an_interval_is_that_of_student():
    values = [0.61, 0.66, 0.70, 0.65, 0.68]
    found = interval(values)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (found.mean, found.low, found.high, found.count) == pytest.approx((np.mean(values), low, high, 5))
    assert found.contains(found.low)
    assert not found.contains(high + 1e-9)
    assert interval(values, 0.99).low < found.low


def test_an_interval_has_its_nominal_coverage():
    draws = np.random.default_rng(0).normal(2.0, 3.0, (1000, 4))
    covered = np.mean([interval(list(values)).contains(2.0) for values in draws])
    # Four standard deviations of a share of 1,000 coins of 0.95.
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 1000)


def test_a_single_value_has_no_interval():
    found = interval([0.5])
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert str(found) == "0.5 (one replica, no interval)"
    assert math.isnan(interval([]).mean)


def test_a_paired_difference_removes_shared_variation():
    shared = np.random.default_rng(1).normal(0, 10, 6)
    found = difference(list(shared + 1 + 0.01 * np.arange(6)), list(shared))
    assert found.low > 1
    assert found.high < 1.06
    with pytest.raises(
        ValueError, match="^difference: both sequences must have the same length, got 2 and 1$"
    ):
        difference([1.0, 2.0], [1.0])


@given(st.lists(st.tuples(finite, finite), min_size=3, max_size=20), finite, finite)
def test_a_slope_equals_numpys_and_ignores_the_intercept(points, rise, height):
    x = [float(i) for i in range(len(points))]
    y = [rise * a + noise for a, (noise, _) in zip(x, points, strict=True)]
    expected = np.polyfit(x, y, 1)[0]
    assert slope(x, y) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert slope(x, [value + height for value in y]) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_a_slope_needs_two_positions():
    with pytest.raises(ValueError, match="two or more distinct positions"):
        slope([3, 3], [1.0, 2.0])


def test_an_interval_as_text():
    assert str(Interval(0.66912, 0.6503, 0.688, 5)) == "0.669 [0.65, 0.688]"


def test_a_bootstrap_interval_has_its_nominal_coverage():
    rng = np.random.default_rng(0)
    hits = [bootstrap(rng.normal(1.0, 2.0, 30).tolist(), seed=k).contains(1.0) for k in range(200)]
    assert 0.88 <= np.mean(hits) <= 0.99
    assert bootstrap([1.0, 2.0, 4.0]) == bootstrap([1.0, 2.0, 4.0])
    assert bootstrap([3.0]).low == -math.inf


def test_the_interquartile_mean_ignores_the_extremes():
    assert interquartile_mean([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1000.0]) == 3.5
    assert math.isnan(interquartile_mean([]))


def test_the_probability_of_improvement_counts_ties_half():
    assert probability_of_improvement([1, 2, 3, 4], [0, 2, 4, 3]) == (1 + 0.5 + 0 + 1) / 4


def test_the_signed_rank_test_equals_scipys_and_is_one_for_equal_pairs():
    first, second = [0.9, 0.8, 0.85, 0.95, 0.7, 0.6], [0.5, 0.6, 0.55, 0.4, 0.65, 0.5]
    assert signed_rank(first, second) == pytest.approx(2 / 2**6), "all six pairs point one way"
    assert signed_rank(first, first) == 1.0


def test_holms_correction_computed_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_friedmans_ranks_and_the_critical_difference_equal_demsars():
    table = [[0.9, 0.8, 0.7]] * 4 + [[0.8, 0.9, 0.7]]
    found = friedman(table)
    assert found.ranks == pytest.approx((1.2, 1.8, 3.0))
    # q of Demšar's table for three methods at 0.05 is 2.343.
    assert found.critical_difference == pytest.approx(2.343 * math.sqrt(3 * 4 / (6 * 5)), rel=1e-3)
    assert found.p_value < 0.05
    assert friedman([[1.0, 1.0, 1.0]] * 3).p_value == 1.0
    with pytest.raises(ValueError, match="three methods and two data sets"):
        friedman([[1.0, 2.0]])
