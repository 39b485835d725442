"""Pool per-environment estimates by a random-effects model, with a prediction for the next environment.

The estimates can be drops, scores or slopes that were estimated separately in several environments.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.optimize import brentq, minimize_scalar

from envariant.core.errors import EnvariantError, unknown_name

Array = NDArray[np.float64]
Heterogeneity = Literal["paule-mandel", "dersimonian-laird", "reml"]


@final
@dataclass(frozen=True)
class PooledEstimate:
    """Random-effects mean of per-environment estimates.

    Attributes:
        mean: Random-effects mean, weighted by 1 / (s_e² + τ²), where s_e is the standard error of the
            estimate for environment e.
        error: Hartung–Knapp standard error of `mean`.
        low, high: Confidence interval of `mean`; infinite for a single environment.
        next_low, next_high: Prediction interval of the true value in the next environment; infinite for fewer
            than three environments.
        between_sd: Standard deviation τ of the true values between environments.
        fixed_mean: Mean weighted by 1 / s_e², which ignores differences between environments.
        fixed_error: Standard error of `fixed_mean`.
        q: Cochran's Q, the weighted sum of squared deviations from `fixed_mean`.
        p_value: P-value of Cochran's Q test that all environments have the same true value.
        i2: Share I² of the variation of the estimates that is due to differences between environments.
        n_environments: Number of environments.
    """

    mean: float
    error: float
    low: float
    high: float
    next_low: float
    next_high: float
    between_sd: float
    fixed_mean: float
    fixed_error: float
    q: float
    p_value: float
    i2: float
    n_environments: int

    def __str__(self) -> str:
        text = f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"
        if self.n_environments < 3:
            return f"{text}, no prediction interval (fewer than 3 environments)"
        return f"{text}, next environment [{self.next_low:.3g}, {self.next_high:.3g}]"


def pool_estimates(
    estimates: ArrayLike,
    errors: ArrayLike,
    *,
    level: float = 0.95,
    heterogeneity: Heterogeneity = "paule-mandel",
) -> PooledEstimate:
    """Pool estimates of E environments and predict the true value in the next environment.

    The mean is μ̂ = Σ w_e θ_e / Σ w_e with w_e = 1 / (s_e² + τ²), where τ² is the variance between
    environments. The confidence interval is μ̂ ± t_{E−1} s with s² = max(1, Σ w_e (θ_e − μ̂)² / (E−1)) / Σ w_e
    (Hartung & Knapp 2001, with the lower bound of Röver, Knapp & Friede 2015). The prediction interval is
    μ̂ ± t_{E−2} √(τ² + 1/Σ w_e) (Higgins, Thompson & Spiegelhalter 2009, eq. 12); it assumes that environments
    are a random sample from a population. t_k is the quantile of Student's t with k degrees of freedom.

    Args:
        estimates: Estimate θ_e of each environment, `[environments]`.
        errors: Standard error s_e of each estimate, positive, `[environments]`.
        level: Level of both intervals, between 0 and 1.
        heterogeneity: Estimator of τ²: "paule-mandel" (1982), "dersimonian-laird" (1986) or "reml".

    Raises:
        EnvariantError: If there are no estimates, lengths differ, an estimate is not finite, an error is not
            positive, or `heterogeneity` is unknown.

    Example:
        >>> drops, errors = [0.02, 0.05, 0.11, 0.04, 0.08], [0.02, 0.03, 0.02, 0.02, 0.03]
        >>> pooled = pool_estimates(drops, errors)
        >>> print(pooled)
        0.0593 [0.0133, 0.105], next environment [-0.0456, 0.164]
        >>> round(pooled.p_value, 3), round(pooled.i2, 2)
        (0.019, 0.66)
    """
    theta, s = np.asarray(estimates, dtype=np.float64), np.asarray(errors, dtype=np.float64)
    if theta.ndim != 1 or not len(theta) or theta.shape != s.shape:
        raise EnvariantError(
            f"pool_estimates: needs at least one estimate, and one standard error per estimate; got shapes "
            f"{theta.shape} and {s.shape}"
        )
    if not (np.isfinite(theta).all() and np.isfinite(s).all() and (s > 0).all()):
        raise EnvariantError(
            "pool_estimates: estimates must be finite, and standard errors finite and positive"
        )
    if not 0 < level < 1:
        raise EnvariantError(f"pool_estimates: level must be between 0 and 1, got {level}")
    if heterogeneity not in _ESTIMATORS:
        raise unknown_name("heterogeneity", heterogeneity, _ESTIMATORS, "pool_estimates")
    n, tail = len(theta), (1 - level) / 2
    fixed_mean, q, total = _weighted(theta, s**2, 0.0)
    between = _ESTIMATORS[heterogeneity](theta, s**2) if n > 1 else 0.0
    mean, scatter, precision = _weighted(theta, s**2, between)
    error = math.sqrt(max(1.0, scatter / max(1, n - 1)) / precision)
    half = error * float(stats.t.isf(tail, n - 1)) if n > 1 else math.inf
    next_half = math.inf
    if n > 2:
        next_half = float(stats.t.isf(tail, n - 2)) * math.sqrt(between + 1 / precision)
    return PooledEstimate(
        mean, error, mean - half, mean + half, mean - next_half, mean + next_half, math.sqrt(between),
        fixed_mean, math.sqrt(1 / total), q,
        float(stats.chi2.sf(q, n - 1)) if n > 1 else 1.0,
        max(0.0, 1 - (n - 1) / q) if n > 1 and q > 0 else 0.0, n,
    )  # fmt: skip


def _weighted(theta: Array, variances: Array, between: float) -> tuple[float, float, float]:
    """Return the mean with weights 1 / (s² + τ²), the weighted sum of squared deviations, and Σ weights."""
    weights = 1 / (variances + between)
    total = float(weights.sum())
    mean = float(weights @ theta) / total
    return mean, float(weights @ (theta - mean) ** 2), total


def _dersimonian_laird(theta: Array, variances: Array) -> float:
    """Return τ² = max(0, (Q − (E−1)) / (Σw − Σw²/Σw)) for Cochran's Q, E environments and w = 1/s²."""
    weights = 1 / variances
    scale = weights.sum() - (weights**2).sum() / weights.sum()
    return max(0.0, float((_weighted(theta, variances, 0.0)[1] - (len(theta) - 1)) / scale))


def _paule_mandel(theta: Array, variances: Array) -> float:
    """Return the solution τ² of Σ w (θ − μ̂)² = E − 1, with weights w = 1 / (s² + τ²); 0 if there is none."""

    def excess(between: float) -> float:
        return _weighted(theta, variances, between)[1] - (len(theta) - 1)

    if excess(0.0) <= 0:
        return 0.0
    # At τ² = Σ(θ − θ̄)², the sum is at most 1, because the weights are below 1/τ².
    top = float(np.square(theta - theta.mean()).sum())
    root: Any = brentq(excess, 0.0, top, xtol=1e-14 * top)
    return float(root)


def _restricted_likelihood(theta: Array, variances: Array) -> float:
    """Return the τ² that maximizes the restricted likelihood −½ [Σ ln(s² + τ²) + ln Σw + Σ w (θ − μ̂)²]."""
    top = float(np.square(theta - theta.mean()).sum())

    def loss(root: float) -> float:
        between = root**2
        _, scatter, precision = _weighted(theta, variances, between)
        return float(np.log(variances + between).sum()) + math.log(precision) + scatter

    # The likelihood may have a second maximum at 0.
    found = minimize_scalar(loss, bounds=(0.0, math.sqrt(top)), method="bounded", options={"xatol": 1e-10})
    root = float(found.x)
    return root**2 if loss(root) < loss(0.0) else 0.0


_ESTIMATORS = {
    "paule-mandel": _paule_mandel,
    "dersimonian-laird": _dersimonian_laird,
    "reml": _restricted_likelihood,
}
