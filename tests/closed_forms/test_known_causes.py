"""Fast version of benchmarks/closed_forms.py: guarantees on linear models with known causes.

A rate whose guarantee holds exceeds its bound here with probability below 0.001.
"""

import numpy as np
import pytest
from scipy import stats

from benchmarks.closed_forms import (
    ALPHA,
    LinearModel,
    anchor_risks,
    dantzig_coverage,
    drig_risks,
    measure_icp,
    over_seeds,
)

SEEDS = 40


def most(probability, count=SEEDS):
    """Return the largest plausible rate of an event with at most this probability."""
    return stats.binom.isf(0.001, count, probability) / count


@pytest.mark.parametrize("options", [{}, {"correction": "comparisons"}, {"test": "exact"}])
def test_icp_includes_no_false_cause_and_its_intervals_cover(options):
    rates = measure_icp(SEEDS, 200, **options)
    assert rates["false inclusion"] <= most(ALPHA)
    assert 1 - rates["share of covered coefficients"] <= most(1.5 * ALPHA)
    # The guarantee would also hold if nothing were ever selected.
    assert rates["exactly the parents"] > 0.4


@pytest.mark.parametrize("gamma", [1.0, 16.0])
def test_worst_risk_of_anchor_regression_is_that_of_the_theory_and_smallest_at_its_gamma(gamma):
    risks = over_seeds(lambda seed: anchor_risks(LinearModel(seed, hidden=1.0), gamma, 2000), 8)
    assert risks["risk / theory"] == pytest.approx(1, abs=0.08)
    assert risks["smallest over γ"] >= 0.8
    assert risks["risk / least squares"] <= (1 if gamma == 1 else 0.8)


def test_risk_of_drig_is_that_of_the_theory_and_below_those_of_least_squares_and_anchor_regression():
    risks = over_seeds(lambda seed: drig_risks(LinearModel(seed, hidden=1.0), 4.0, 2000), 8)
    assert risks["risk / theory"] == pytest.approx(1, abs=0.15)
    assert risks["risk / pooled"] < 0.95
    assert risks["risk / anchor"] < 0.95


def test_intervals_of_the_causal_dantzig_cover_confounded_effects():
    rates = dantzig_coverage(SEEDS, 2000, strength=1.5)
    assert 1 - rates["coverage"] <= most(ALPHA)
    assert rates["refused"] <= 0.1


def test_models_are_the_same_for_the_same_seed_and_have_the_stated_coefficients():
    x, y, site = LinearModel(3).sample(20_000)
    for mine, again in zip((x, y, site), LinearModel(3).sample(20_000), strict=True):
        assert np.array_equal(mine, again)
    slopes = np.linalg.lstsq(np.column_stack([x[:, 1:3], np.ones(len(y))]), y, rcond=None)[0]
    assert slopes[:2] == pytest.approx(LinearModel(3).coefficients[1:3], abs=0.03)
