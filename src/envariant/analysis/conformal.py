"""Conformal prediction for environments: thresholds, prediction sets and intervals with a given coverage.

Thresholds are computed from the non-conformity scores of calibration rows, on which the model was not
trained. A score is the absolute residual |y − prediction|, possibly divided by a scale, or 1 − probability of
the true class. A larger score means a worse prediction.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from envariant.core.errors import EnvariantError

Array = NDArray[np.float64]

# Cumulative weights are compared with a level up to this rounding error.
_ROUNDING = 1e-12


@final
@dataclass(frozen=True)
class ConformalThreshold:
    """Threshold of the non-conformity score.

    Attributes:
        value: Threshold: a prediction set contains all targets with scores up to this value. Infinite if
            `level` is above `finest_level`.
        level: Requested coverage, 1 − alpha.
        finest_level: Highest coverage that is attainable with the calibration rows.
        guarantee: Condition under which the coverage holds.
    """

    value: float
    level: float
    finest_level: float
    guarantee: str

    def __str__(self) -> str:
        if math.isfinite(self.value):
            return f"{self.value:.3g} for {self.level:.0%} coverage ({self.guarantee})"
        limit = f"at most {self.finest_level:.1%} is attainable"
        return f"no finite threshold for {self.level:.1%} coverage; {limit}"


def finest_level(n: int) -> float:
    """Return the highest coverage attainable with n calibration units, n / (n + 1).

    Args:
        n: Number of calibration units: rows, or environments if the next row is from a new environment.

    Example:
        >>> finest_level(3)
        0.75
    """
    return n / (n + 1)


def split_threshold(scores: ArrayLike, alpha: float) -> ConformalThreshold:
    """Return the split-conformal threshold: the ⌈(m+1)(1−α)⌉-th smallest of m scores.

    See Vovk et al. 2005 and Lei et al. 2018.

    Args:
        scores: Scores of the calibration rows, `[m]`.
        alpha: Allowed share of rows whose target is not covered, between 0 and 1.

    Raises:
        EnvariantError: If `alpha` is not between 0 and 1, or a score is missing.

    Example:
        >>> split_threshold([0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.8, 1.1, 1.5], alpha=0.2).value
        1.1
    """
    r = _checked("split_threshold", scores, alpha)
    guarantee = "if new rows are exchangeable with the calibration rows"
    return ConformalThreshold(_quantile(r, alpha), 1 - alpha, finest_level(len(r)), guarantee)


def mondrian_thresholds(
    scores: ArrayLike, groups: ArrayLike, alpha: float
) -> Mapping[str, ConformalThreshold]:
    """Return one split-conformal threshold per group (Vovk et al. 2005).

    Groups can be environments, classes or categories.

    Args:
        scores: Scores of the calibration rows, `[m]`.
        groups: Group of each row, `[m]`.
        alpha: Allowed share of rows whose target is not covered in each group, between 0 and 1.

    Raises:
        EnvariantError: If `alpha` is not between 0 and 1, a score is missing, or lengths differ.

    Example:
        >>> thresholds = mondrian_thresholds([0.1, 0.2, 0.3, 0.6, 0.7], ["A", "A", "A", "B", "B"], alpha=0.3)
        >>> {name: threshold.value for name, threshold in thresholds.items()}
        {'A': 0.3, 'B': inf}
    """
    r = _checked("mondrian_thresholds", scores, alpha)
    names, codes = _groups("mondrian_thresholds", groups, len(r))
    parts = [r[codes == k] for k in range(len(names))]
    return {
        name: ConformalThreshold(
            _quantile(part, alpha), 1 - alpha, finest_level(len(part)), f"new rows of group '{name}'"
        )
        for name, part in zip(names, parts, strict=True)
    }


def weighted_thresholds(scores: ArrayLike, weights: ArrayLike, new_weights: ArrayLike, alpha: float) -> Array:
    """Return one threshold per new row under covariate shift (Tibshirani et al. 2019, arXiv 1904.06019).

    The threshold of a new row with weight w is the smallest score s such that w_i / (Σ_j w_j + w), summed
    over the calibration rows i with scores up to s, reaches 1 − α; infinite if there is none. Weights are
    ratios of the density of new rows to the density of calibration rows, for example π / (1 − π) with a
    classifier's probability π that a row is new.

    Args:
        scores: Scores of the calibration rows, `[m]`.
        weights: Weight w_i of each calibration row, `[m]`.
        new_weights: Weight w of each new row, `[rows]`.
        alpha: Allowed share of rows whose target is not covered, between 0 and 1.

    Raises:
        EnvariantError: If `alpha` is not between 0 and 1, a score is missing, or weights are negative.

    Example:
        >>> weighted_thresholds([0.1, 0.2, 0.3, 0.4], [1, 1, 1, 1], [1, 4], alpha=0.4).tolist()
        [0.3, inf]
    """
    r = _checked("weighted_thresholds", scores, alpha)
    w, new = np.asarray(weights, dtype=np.float64), np.asarray(new_weights, dtype=np.float64)
    if w.shape != r.shape or not (w >= 0).all() or not (new >= 0).all():
        raise EnvariantError("weighted_thresholds: weights must be non-negative, with one weight per score")
    order = np.argsort(r, kind="stable")
    cumulated = np.cumsum(w[order])
    needed = (1 - alpha - _ROUNDING) * (cumulated[-1] + new)
    return np.append(r[order], np.inf)[np.searchsorted(cumulated, needed)]


def pooled_cdf_threshold(scores: ArrayLike, environments: ArrayLike, alpha: float) -> ConformalThreshold:
    """Return the smallest t such that the share of scores ≤ t, averaged over environments, is ≥ 1 − α.

    The method is CDF pooling (Dunn, Wasserman & Ramdas 2022, arXiv 1809.07441). Environments have equal
    weight, whatever their size.

    Args:
        scores: Scores of the calibration rows, `[m]`.
        environments: Environment of each row, `[m]`.
        alpha: Allowed share of rows whose target is not covered, between 0 and 1.

    Raises:
        EnvariantError: If `alpha` is not between 0 and 1, a score is missing, or lengths differ.

    Example:
        >>> pooled_cdf_threshold([0.1, 0.2, 0.3, 0.9], ["A", "A", "A", "B"], alpha=0.5).value
        0.3
    """
    r = _checked("pooled_cdf_threshold", scores, alpha)
    guarantee = "for a new environment drawn like the others, if there are many environments"
    value = _pooled("pooled_cdf_threshold", r, environments, alpha, extra=0)[0]
    return ConformalThreshold(value, 1 - alpha, 1.0, guarantee)


def new_environment_threshold(scores: ArrayLike, environments: ArrayLike, alpha: float) -> ConformalThreshold:
    """Return a threshold for rows of a new environment (Lee, Barber & Willett 2023).

    The threshold is the smallest t with Σ_e (share of scores ≤ t in environment e) / (E+1) ≥ 1 − α, for E
    environments. The method is hierarchical conformal prediction (HCP): CDF pooling with one more
    environment, whose scores are infinite. The coverage is guaranteed for any E if the environments are
    exchangeable with the new one, and each environment is scored by a model that was not trained on it. The
    highest possible coverage is E / (E+1).

    Args:
        scores: Scores of the calibration rows, `[m]`, each by a model not trained on the row's environment.
        environments: Environment of each row, `[m]`.
        alpha: Allowed share of rows whose target is not covered, between 0 and 1.

    Raises:
        EnvariantError: If `alpha` is not between 0 and 1, a score is missing, or lengths differ.

    Example:
        >>> scores, hospital = [0.1, 0.3, 0.2, 0.4, 0.6, 0.8], ["A", "A", "B", "B", "C", "C"]
        >>> print(new_environment_threshold(scores, hospital, alpha=0.3))
        0.8 for 70% coverage (for a new environment that is exchangeable with the 3 others)
        >>> print(new_environment_threshold(scores, hospital, alpha=0.1))
        no finite threshold for 90.0% coverage; at most 75.0% is attainable
    """
    r = _checked("new_environment_threshold", scores, alpha)
    value, count = _pooled("new_environment_threshold", r, environments, alpha, extra=1)
    guarantee = f"for a new environment that is exchangeable with the {count} others"
    return ConformalThreshold(value, 1 - alpha, finest_level(count), guarantee)


def held_out_threshold(
    scores: ArrayLike, environments: ArrayLike, alpha: float
) -> tuple[ConformalThreshold, Mapping[str, float]]:
    """Return a threshold calibrated by leaving out one environment at a time.

    `pooled_cdf_threshold` gives the smallest threshold with a mean coverage over environments of at least
    1 − α. Let q be this threshold for all scores, and q_{−e} the threshold for the scores of all environments
    except e. The result is c q, where the factor c is the same kind of threshold for the ratios
    r_i / q_{−e(i)}. Here, r_i is the score of row i and e(i) is its environment. Applied to each left-out
    environment e, the thresholds c q_{−e} therefore have a mean coverage of at least 1 − α. Unlike
    `new_environment_threshold`, the method is not conservative with few environments, and gives a finite
    threshold for any α; its coverage is an estimate, not a guarantee.

    Args:
        scores: Non-conformity scores of the calibration rows, `[m]`. The score of a row comes from a model
            that was not trained on its environment.
        environments: Environment of each row, `[m]`; at least two environments.
        alpha: Allowed share of rows whose target is not covered, between 0 and 1.

    Returns:
        The threshold c q, and the coverage of c q_{−e} in each environment e.

    Raises:
        EnvariantError: If `alpha` is not between 0 and 1, a score is missing or negative, lengths differ, or
            there is only one environment.

    Example:
        >>> scores, hospital = [0.1, 0.3, 0.2, 0.4, 0.6, 0.8], ["A", "A", "B", "B", "C", "C"]
        >>> threshold, coverage = held_out_threshold(scores, hospital, alpha=0.3)
        >>> print(threshold)
        1.2 for 70% coverage (for a new environment, on average over 3 environments left out in turn)
        >>> coverage
        {'A': 1.0, 'B': 1.0, 'C': 0.5}
    """
    where = "held_out_threshold"
    r = _checked(where, scores, alpha)
    names, codes = _groups(where, environments, len(r))
    if len(names) < 2 or (r < 0).any():
        raise EnvariantError(f"{where}: needs at least two environments, and non-negative scores")
    ratios = np.empty_like(r)
    for k in range(len(names)):
        others = codes != k
        pooled = _pooled(where, r[others], codes[others], alpha, extra=0)[0]
        ratios[~others] = r[~others] / max(pooled, np.finfo(np.float64).tiny)
    factor = _pooled(where, ratios, codes, alpha, extra=0)[0]
    value = factor * _pooled(where, r, codes, alpha, extra=0)[0]
    guarantee = f"for a new environment, on average over {len(names)} environments left out in turn"
    coverage = {name: float((ratios[codes == k] <= factor).mean()) for k, name in enumerate(names)}
    return ConformalThreshold(value, 1 - alpha, 1.0, guarantee), coverage


def environment_jackknife(
    residuals: ArrayLike,
    environments: ArrayLike,
    predictions: Mapping[str, ArrayLike],
    alpha: float,
) -> tuple[Array, Array]:
    """Return jackknife+ prediction intervals for rows of a new environment.

    Let μ_{−e} be the model trained without environment e, e(i) the environment of row i, R_i the absolute
    residual of row i, and E the number of environments. The upper end for a new row x is the weighted
    (1−α)-quantile of μ_{−e(i)}(x) + R_i over all training rows i; the lower end is the weighted α-quantile of
    μ_{−e(i)}(x) − R_i. Each of the n_e rows of environment e has weight 1 / ((E+1) n_e); the remaining weight
    1 / (E+1) is at +∞ for the upper end and at −∞ for the lower end. Coverage is at least 1 − 2α, usually
    about 1 − α (Barber et al. 2021; Lee et al. 2023). The ends are infinite if α < 1 / (E+1).

    Args:
        residuals: Absolute residual |y_i − μ_{−e(i)}(x_i)| of each training row, `[m]`.
        environments: Environment of each row, `[m]`.
        predictions: Predictions of μ_{−e} for the new rows, `[rows]`, by name of environment e.
        alpha: Nominal share of rows whose target is outside the interval, between 0 and 1.

    Returns:
        Lower and upper ends, each `[rows]`.

    Raises:
        EnvariantError: If `alpha` is not between 0 and 1, a residual is missing, lengths differ, or an
            environment has no predictions.

    Example:
        >>> low, high = environment_jackknife(
        ...     [0.1, 0.2, 0.3, 0.1], ["A", "A", "B", "B"], {"A": [1.0], "B": [1.5]}, alpha=0.4
        ... )
        >>> round(float(low[0]), 3), round(float(high[0]), 3)
        (0.8, 1.8)
    """
    r = _checked("environment_jackknife", residuals, alpha)
    names, codes = _groups("environment_jackknife", environments, len(r))
    missing = [name for name in names if name not in predictions]
    if missing:
        raise EnvariantError(
            f"environment_jackknife: predictions of the model trained without environment '{missing[0]}' are "
            f"missing"
        )
    center = np.stack([np.asarray(predictions[name], dtype=np.float64) for name in names])
    sizes = np.bincount(codes)
    weights = 1 / ((len(names) + 1) * sizes[codes])
    return -_upper(-center, r, codes, weights, alpha), _upper(center, r, codes, weights, alpha)


def prediction_sets(probabilities: ArrayLike, threshold: float | ArrayLike) -> NDArray[np.bool_]:
    """Return prediction sets, `[rows, classes]`: true for classes with 1 − probability ≤ threshold.

    Args:
        probabilities: Class probabilities, `[rows, classes]`.
        threshold: One threshold, or one per row.

    Example:
        >>> prediction_sets([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]], 0.7).tolist()
        [[True, False, False], [True, True, False]]
    """
    limit: Any = np.asarray(threshold, dtype=np.float64)
    return 1 - np.asarray(probabilities) <= (limit[:, None] if limit.ndim else limit) + _ROUNDING


def prediction_intervals(
    predictions: ArrayLike, threshold: float | ArrayLike, scale: float | ArrayLike = 1.0
) -> tuple[Array, Array]:
    """Return the lower and upper ends of the intervals prediction ± threshold · scale.

    Args:
        predictions: Predicted values, `[rows]`.
        threshold: One threshold, or one per row.
        scale: Scale by which residuals were divided to obtain scores: one number, or one per row.

    Example:
        >>> low, high = prediction_intervals([1.0, 2.0], 0.5)
        >>> low.tolist(), high.tolist()
        ([0.5, 1.5], [1.5, 2.5])
    """
    center = np.asarray(predictions, dtype=np.float64)
    half = np.asarray(threshold, dtype=np.float64) * np.asarray(scale, dtype=np.float64)
    return center - half, center + half


def _upper(center: Array, r: Array, codes: NDArray[np.int64], weights: Array, alpha: float) -> Array:
    """Return the weighted (1 − alpha)-quantile of center + residual for each new row."""
    ends = center[codes] + r[:, None]
    order = np.argsort(ends, axis=0, kind="stable")
    reached = np.cumsum(weights[order], axis=0) >= 1 - alpha - _ROUNDING
    sorted_ends = np.take_along_axis(ends, order, axis=0)
    first = np.take_along_axis(sorted_ends, reached.argmax(axis=0)[None], axis=0)[0]
    return np.where(reached[-1], first, np.inf)


def _pooled(where: str, r: Array, environments: ArrayLike, alpha: float, extra: int) -> tuple[float, int]:
    """Return the threshold of CDF pooling, and the number of environments.

    `extra` is the number of environments with infinite scores to add.
    """
    names, codes = _groups(where, environments, len(r))
    order = np.argsort(r, kind="stable")
    cumulated = np.cumsum((1 / ((len(names) + extra) * np.bincount(codes)[codes]))[order])
    reached = cumulated >= 1 - alpha - _ROUNDING
    return (float(r[order][reached.argmax()]) if reached[-1] else math.inf), len(names)


def _quantile(r: Array, alpha: float) -> float:
    rank = math.ceil((len(r) + 1) * (1 - alpha) - _ROUNDING * (len(r) + 1))
    return math.inf if rank > len(r) else float(np.partition(r, rank - 1)[rank - 1])


def _groups(where: str, groups: ArrayLike, n: int) -> tuple[list[str], NDArray[np.int64]]:
    labels = np.asarray(groups)
    if len(labels) != n:
        raise EnvariantError(f"{where}: needs one group per score, got {n} scores and {len(labels)} groups")
    names, codes = np.unique(labels, return_inverse=True)
    return [str(name) for name in names], codes


def _checked(where: str, scores: ArrayLike, alpha: float) -> Array:
    if not 0 < alpha < 1:
        raise EnvariantError(f"{where}: alpha must be between 0 and 1, got {alpha}")
    r = np.asarray(scores, dtype=np.float64)
    if r.ndim != 1 or not len(r) or np.isnan(r).any():
        raise EnvariantError(f"{where}: scores must be one-dimensional, not empty and without missing values")
    return r
