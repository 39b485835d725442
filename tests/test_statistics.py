"""Intervals, differences in pairs and slopes: against SciPy, a simulation, and cases known by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from envariant.statistics import Interval, difference, interval, slope

finite = st.floats(-1e3, 1e3)


def test_an_interval_is_students():
    values = [0.61, 0.66, 0.70, 0.65, 0.68]
    found = interval(values)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (found.mean, found.low, found.high, found.count) == pytest.approx((np.mean(values), low, high, 5))
    assert found.contains(found.low)
    assert not found.contains(high + 1e-9)
    assert interval(values, 0.99).low < found.low


def test_it_covers_the_truth_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(2.0, 3.0, (1000, 4))
    covered = np.mean([interval(list(values)).contains(2.0) for values in draws])
    # Four standard deviations of a share of 1,000 coins of 0.95.
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 1000)


def test_one_value_has_no_interval_and_says_so():
    found = interval([0.5])
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert str(found) == "0.5 (one replica, no interval)"
    assert math.isnan(interval([]).mean)


def test_pairs_remove_what_both_share():
    shared = np.random.default_rng(1).normal(0, 10, 6)
    found = difference(list(shared + 1 + 0.01 * np.arange(6)), list(shared))
    assert found.low > 1
    assert found.high < 1.06
    with pytest.raises(ValueError, match="zip"):
        difference([1.0, 2.0], [1.0])


@given(st.lists(st.tuples(finite, finite), min_size=3, max_size=20), finite, finite)
def test_a_slope_is_numpys_and_ignores_the_height(points, rise, height):
    x = [float(i) for i in range(len(points))]
    y = [rise * a + noise for a, (noise, _) in zip(x, points, strict=True)]
    expected = np.polyfit(x, y, 1)[0]
    assert slope(x, y) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert slope(x, [value + height for value in y]) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_a_slope_needs_two_places():
    with pytest.raises(ValueError, match="at two places at least"):
        slope([3, 3], [1.0, 2.0])


def test_an_interval_reads_as_people_write_it():
    assert str(Interval(0.66912, 0.6503, 0.688, 5)) == "0.669 [0.65, 0.688]"
