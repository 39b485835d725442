"""Tests whether residuals of a regression have the same distribution in every environment."""

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from envariant.closed_forms.base import Array


def compare_with_the_rest(means: Array, squares: Array, rows: ArrayLike) -> tuple[Array, Array]:
    """Compare the residuals inside each environment with those of all other environments.

    For each environment e, Welch's t test compares the means. The F test compares the variances with
    F = s²_e / s²_{−e} (divisors n − 1) and has the p-value 2 min(P, 1 − P), where P is its upper tail
    (Peters, Bühlmann and Meinshausen 2016).

    Args:
        means: Mean of the residuals in each environment, `[..., environments]`.
        squares: Mean squared residual in each environment, `[..., environments]`.
        rows: Number of rows of each environment, `[environments]`.

    Returns:
        P-values of the t tests and of the F tests, both `[..., environments]`.
    """
    inside = np.asarray(rows, dtype=np.float64)
    outside = inside.sum() - inside
    # Relative sizes are exactly 1 if environments have equal sizes.
    share = inside / inside.mean()

    def of_the_others(values: Array) -> Array:
        return ((share * values).sum(axis=-1, keepdims=True) - share * values) / (share.sum() - share)

    def variance(mean: Array, square: Array, n: Array) -> Array:
        return np.maximum(square - mean**2, 0.0) * (n / (n - 1))

    other = of_the_others(means)
    a, b = variance(means, squares, inside), variance(other, of_the_others(squares), outside)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = a / b
        a, b = a / inside, b / outside
        freedom = (a + b) ** 2 / (a**2 / (inside - 1) + b**2 / (outside - 1))
        p_t = 2 * stats.t.sf(np.abs(means - other) / np.sqrt(a + b), freedom)
    tail = stats.f.sf(ratio, inside - 1, outside - 1)
    p_f = 2 * np.minimum(tail, 1 - tail)
    # Residuals that are 0 everywhere do not differ.
    return np.where(np.isnan(p_t), 1.0, p_t), np.where(np.isnan(p_f), 1.0, p_f)
