"""Intervals and p-values from few replicas and sampled rows have their nominal level."""

import numpy as np
import pytest
from scipy import stats

from envariant.comparison import uncertainty
from envariant.core.metrics import METRICS
from envariant.core.tasks import Binary
from envariant.training.store import Predictions

VALUES = [0.1, 0.14, 0.08, 0.12, 0.06]


def test_without_row_noise_they_are_those_of_student():
    mean, error = np.mean(VALUES), np.std(VALUES, ddof=1) / np.sqrt(5)
    found = uncertainty.mean_interval(VALUES, 0.0)
    assert (found.mean, found.count) == (pytest.approx(mean), 5)
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 4, mean, error))
    assert uncertainty.p_value(VALUES, 0.0) == pytest.approx(stats.ttest_1samp(VALUES, 0).pvalue, rel=1e-4)


def test_if_replicas_agree_only_row_noise_counts():
    found = uncertainty.mean_interval([0.1] * 5, 0.04)
    assert found.high - found.mean == pytest.approx(0.04 * 1.984, rel=1e-3)
    assert uncertainty.p_value([0.1] * 5, 0.04) == pytest.approx(0.0141, abs=1e-3)
    assert uncertainty.p_value([0.1] * 5, 0.0) <= 1e-12
    assert uncertainty.p_value([0.0] * 5, 0.04) == 1.0


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.05])
def test_p_is_below_the_level_if_and_only_if_the_interval_excludes_zero(noise):
    for shift in np.linspace(-0.2, 0.2, 41):
        values = [value + shift for value in VALUES]
        found = uncertainty.mean_interval(values, noise)
        assert (found.low > 0 or found.high < 0) == (uncertainty.p_value(values, noise) < 0.05)


@pytest.mark.parametrize("rows", [0.0, 0.3, 1.0, 5.0])
def test_false_alarms_are_no_more_frequent_than_the_level(rows):
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(600):
        values = rng.normal(size=5) * np.sqrt(5) + rows * rng.normal()
        found += abs(float(np.mean(values))) > uncertainty.half_width(values, rows, 0.05)
    assert found <= 600 * 0.05 + 3 * np.sqrt(600 * 0.05 * 0.95)


def test_one_replica_gives_a_large_p_value():
    assert uncertainty.p_value([0.1], 0.04) > 0.2


def test_interval_of_a_given_model_is_that_of_the_sampled_rows_alone():
    """A single replica tells nothing about other replicas, unless it is the model of interest itself."""
    one = uncertainty.mean_interval([0.8], 0.01)
    given = uncertainty.mean_interval([0.8], 0.01, given_model=True)
    assert given.high - given.mean == pytest.approx(stats.t.ppf(0.975, 99) * 0.01)
    assert one.high - one.mean == pytest.approx(stats.t.ppf(0.975, 1) * 0.01)
    assert uncertainty.p_value([0.02], 0.01, given_model=True) == pytest.approx(
        2 * stats.t.sf(2, 99), rel=1e-3
    )
    assert uncertainty.mean_interval(VALUES, 0.01, given_model=True) == uncertainty.mean_interval(
        VALUES, 0.01
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_resampling_in_parts_of_limited_size_gives_the_same_error(weighted, monkeypatch):
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=300), rng.integers(2, size=300)
    own, other = (
        Predictions("", "test", 300, part.astype(np.float32), y.astype(np.float32)) for part in (z, z + y)
    )
    weights = rng.integers(3, size=300).astype(float) if weighted else None

    def error(**options):
        return uncertainty.row_standard_error(Binary(), METRICS["AUROC"], [own], **options)

    whole = error(weights=weights), error(reference=[other]), error(groups=np.arange(300) // 3)
    monkeypatch.setattr(uncertainty, "_DRAWN", 7 * 300)
    assert (error(weights=weights), error(reference=[other]), error(groups=np.arange(300) // 3)) == whole
