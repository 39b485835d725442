"""Random-effects pooling against published values, an independent implementation and simulations."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize

from envariant.analysis.random_effects import pool_estimates
from envariant.core.errors import EnvariantError

# 13 trials of the BCG vaccine (Colditz et al. 1994): cases and others, vaccinated and not. Published values of
# the log risk ratio are those of the R package metafor (Viechtbauer 2010).
BCG = np.array([
    (4, 119, 11, 128), (6, 300, 29, 274), (3, 228, 11, 209), (62, 13536, 248, 12619), (33, 5036, 47, 5761),
    (180, 1361, 372, 1079), (8, 2537, 10, 619), (505, 87886, 499, 87892), (29, 7470, 45, 7232),
    (17, 1699, 65, 1600), (186, 50448, 141, 27197), (5, 2493, 3, 2338), (27, 16886, 29, 17825),
])  # fmt: skip


@pytest.mark.parametrize(
    ("heterogeneity", "tau2", "mean"),
    [("reml", 0.3132, -0.7145), ("dersimonian-laird", 0.3088, -0.7141), ("paule-mandel", 0.3181, -0.7150)],
)
def test_the_bcg_trials_give_the_published_values(heterogeneity, tau2, mean):
    cases, others, control_cases, control_others = BCG.T
    vaccinated, controls = cases + others, control_cases + control_others
    ratios = np.log(cases / vaccinated / (control_cases / controls))
    errors = np.sqrt(1 / cases - 1 / vaccinated + 1 / control_cases - 1 / controls)
    pooled = pool_estimates(ratios, errors, heterogeneity=heterogeneity)
    assert pooled.between_sd**2 == pytest.approx(tau2, abs=1e-4)
    assert pooled.mean == pytest.approx(mean, abs=1e-4)
    assert pooled.q == pytest.approx(152.233, abs=1e-3)
    assert pooled.fixed_mean == pytest.approx(-0.4303, abs=1e-4)
    assert pooled.p_value < 1e-20


def reference(theta, s, between):
    """Generalized least squares with explicit matrices."""
    theta, precision = np.asarray(theta), np.diag(1 / (np.asarray(s) ** 2 + between))
    ones = np.ones((len(theta), 1))
    variance = np.linalg.inv(ones.T @ precision @ ones)
    mean = (variance @ ones.T @ precision @ theta).item()
    residual = theta - mean
    return mean, (residual @ precision @ residual).item(), variance.item()


@pytest.mark.parametrize("seed", range(5))
def test_pooling_equals_generalized_least_squares(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 9))
    s = rng.uniform(0.1, 0.5, n)
    theta = rng.normal(1, 0.4, n) + s * rng.normal(size=n)
    pooled = pool_estimates(theta, s, level=0.9)
    between = pooled.between_sd**2
    mean, scatter, variance = reference(theta, s, between)
    assert scatter == pytest.approx(n - 1) or (between == 0 and scatter < n - 1)
    error = math.sqrt(max(1, scatter / (n - 1)) * variance)
    assert (pooled.mean, pooled.error) == pytest.approx((mean, error))
    assert (pooled.low, pooled.high) == pytest.approx(stats.t.interval(0.9, n - 1, mean, error))
    expected = stats.t.interval(0.9, n - 2, mean, math.sqrt(between + variance))
    assert (pooled.next_low, pooled.next_high) == pytest.approx(expected)
    fixed, q, fixed_variance = reference(theta, s, 0.0)
    assert (pooled.fixed_mean, pooled.q, pooled.fixed_error**2) == pytest.approx((fixed, q, fixed_variance))
    assert pooled.i2 == pytest.approx(max(0, (q - n + 1) / q))

    def deviance(parameters):
        variances = s**2 + parameters[1] ** 2
        value = np.log(variances).sum() + np.log((1 / variances).sum())
        return value + ((theta - parameters[0]) ** 2 / variances).sum()

    best = min((minimize(deviance, [1, start], method="BFGS") for start in (0.05, 0.5)), key=lambda r: r.fun)
    reml = pool_estimates(theta, s, heterogeneity="reml")
    assert deviance([reml.mean, reml.between_sd]) == pytest.approx(best.fun, abs=1e-6)


def test_the_prediction_interval_covers_the_next_environment():
    rng = np.random.default_rng(0)
    covered = mean_covered = 0
    for _ in range(150):
        truth = rng.normal(0, 0.3, 11)
        s = rng.uniform(0.05, 0.2, 10)
        pooled = pool_estimates(truth[:10] + s * rng.normal(size=10), s)
        covered += pooled.next_low <= truth[10] <= pooled.next_high
        mean_covered += pooled.low <= 0 <= pooled.high
    # Four standard deviations of a share of 150 coins of 0.95 are 0.071.
    assert abs(covered / 150 - 0.95) < 0.071
    assert abs(mean_covered / 150 - 0.95) < 0.071


def test_few_environments_have_no_prediction_interval():
    pooled = pool_estimates([0.1, 0.2], [0.05, 0.05])
    assert (pooled.next_low, pooled.next_high) == (-math.inf, math.inf)
    assert "no prediction interval (fewer than 3 environments)" in str(pooled)
    single = pool_estimates([0.1], [0.05])
    assert (single.mean, single.low, single.p_value, single.i2) == (pytest.approx(0.1), -math.inf, 1.0, 0.0)


def test_equal_estimates_keep_their_uncertainty():
    pooled = pool_estimates([0.1, 0.1, 0.1, 0.1], [0.05] * 4)
    assert pooled.error == pytest.approx(0.025)
    assert pooled.between_sd == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], []), "at least one estimate"),
        (([1.0], [1.0, 2.0]), "one standard error per estimate"),
        (([1.0, 2.0], [1.0, 0.0]), "finite and positive"),
        (([1.0, math.nan], [1.0, 1.0]), "must be finite"),
    ],
)
def test_wrong_input_is_an_error(arguments, message):
    with pytest.raises(EnvariantError, match=message):
        pool_estimates(*arguments)
    with pytest.raises(EnvariantError, match="did you mean 'reml'"):
        pool_estimates([1.0], [1.0], heterogeneity="REML")
    with pytest.raises(EnvariantError, match="level must be"):
        pool_estimates([1.0], [1.0], level=95)
