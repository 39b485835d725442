"""Intervals and p-values of a few replicas and known rows: never too narrow, and not far too wide."""

import numpy as np
import pytest
from scipy import stats

from envariant.comparison import results

VALUES = [0.1, 0.14, 0.08, 0.12, 0.06]


def test_without_noise_of_rows_they_are_students():
    mean, error = np.mean(VALUES), np.std(VALUES, ddof=1) / np.sqrt(5)
    found = results._interval(VALUES, 0.0)
    assert (found.mean, found.count) == (pytest.approx(mean), 5)
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 4, mean, error))
    assert results._p_value(VALUES, 0.0) == pytest.approx(stats.ttest_1samp(VALUES, 0).pvalue, rel=1e-4)


def test_where_replicas_agree_the_rows_alone_count_with_their_own_quantile():
    found = results._interval([0.1] * 5, 0.04)
    assert found.high - found.mean == pytest.approx(0.04 * 1.984, rel=1e-3)
    assert results._p_value([0.1] * 5, 0.04) == pytest.approx(0.0141, abs=1e-3)
    assert results._p_value([0.1] * 5, 0.0) <= 1e-12
    assert results._p_value([0.0] * 5, 0.04) == 1.0


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.05])
def test_a_p_value_is_below_a_twentieth_where_the_interval_leaves_out_zero(noise):
    for shift in np.linspace(-0.2, 0.2, 41):
        values = [value + shift for value in VALUES]
        found = results._interval(values, noise)
        assert (found.low > 0 or found.high < 0) == (results._p_value(values, noise) < 0.05)


@pytest.mark.parametrize("rows", [0.0, 0.3, 1.0, 5.0])
def test_false_alarms_are_as_rare_as_said(rows):
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(600):
        values = rng.normal(size=5) * np.sqrt(5) + rows * rng.normal()
        found += abs(float(np.mean(values))) > results._half(values, rows, 0.05)
    assert found <= 600 * 0.05 + 3 * np.sqrt(600 * 0.05 * 0.95)


def test_one_replica_says_little():
    assert results._p_value([0.1], 0.04) > 0.2
