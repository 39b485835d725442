"""Measure calibration in one environment, and how much of a performance drop recalibration would remove.

Scores are logits (one per row for two classes, one per class otherwise) or predictions of real-valued
targets. They must come from rows that the model was not trained on.
"""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from envariant.analysis._groups import group_numbers, group_sums
from envariant.analysis._logistic import (
    LogisticFits,
    checked_scores,
    fit_logistic,
    logistic_loss,
    recalibration_design,
)
from envariant.analysis.statistics import LEVEL, Interval

Array = NDArray[np.float64]

# Precision of the prior of intercepts and slope: keeps them finite when one class is absent.
_PRECISION = 1e-3


@final
@dataclass(frozen=True)
class Calibration:
    """Calibration of the scores of one environment.

    Attributes:
        intercepts: Intercepts a of logit p = z + a for scores z, one per class except the first; for
            regression, the mean of target − prediction. 0 is perfect.
        intercept_errors: Standard errors of the intercepts.
        slope: Slope b of logit p = a + b z (regression: y = a + b z). 1 is perfect; a slope below 1 means
            overconfident scores.
        slope_error: Standard error of the slope.
        intercept_p_value: P-value of the test that all intercepts are 0, given slope 1.
        slope_p_value: P-value of the test that the slope is 1, given free intercepts.
        bias: Mean predicted probability minus observed share, one per class except the first; for regression,
            mean prediction minus mean target.
        bias_errors: Standard errors of the bias.
        regression: Whether targets are real-valued.
    """

    intercepts: tuple[float, ...]
    intercept_errors: tuple[float, ...]
    slope: float
    slope_error: float
    intercept_p_value: float
    slope_p_value: float
    bias: tuple[float, ...]
    bias_errors: tuple[float, ...]
    regression: bool = False

    def __str__(self) -> str:
        what = "predictions" if self.regression else "predicted probabilities"
        worst = int(np.abs(self.bias).argmax())
        which = f" of class {worst + 1}" if len(self.bias) > 1 else ""
        return f"{what}{which} are {_too(self.bias[worst])}"


@final
@dataclass(frozen=True)
class DropParts:
    """Difference in mean loss between an environment and in-domain rows, split into four additive parts.

    A positive value means that the loss is higher in the environment.

    Attributes:
        total: Difference in log loss, error rate or squared error: the sum of the four parts.
        level: Part removed by adjusting the intercept, for example after a change of prevalence.
        slope: Further part removed by also adjusting the calibration slope.
        ranking: Part that no recalibration removes. It is positive if the advantage of the recalibrated model
            over a constant prediction is smaller in the environment than on in-domain rows.
        outcome: Difference in the loss of the best constant prediction. This loss is the entropy of the
            target, the share of rows outside the most frequent class, or the variance of the target.
    """

    total: Interval
    level: Interval
    slope: Interval
    ranking: Interval
    outcome: Interval


@final
@dataclass(frozen=True)
class DropSplit:
    """Performance drop in one environment, split into parts.

    Attributes:
        loss: Parts of the increase in log loss (regression: mean squared error).
        error_rate: Parts of the increase in error rate; None for regression.
        calibration: Calibration of the scores in the environment.
    """

    loss: DropParts
    error_rate: DropParts | None
    calibration: Calibration


def measure_calibration(
    scores: ArrayLike, targets: ArrayLike, *, regression: bool = False, groups: ArrayLike | None = None
) -> Calibration:
    """Estimate calibration intercept and slope with standard errors (Cox 1958).

    The intercept a is fitted in logit p = z + a for scores z, and the slope b in logit p = a + b z. With
    several classes, there is one intercept per class except the first, and one common slope. P-values come
    from likelihood ratio tests (regression: t-tests).

    Args:
        scores: Logits `[rows]` or `[rows, classes]`, or predictions of real-valued targets `[rows]`.
        targets: Class indices from 0, or real-valued targets, `[rows]`.
        regression: Whether targets are real-valued.
        groups: Group of each row, `[rows]`, such as the patient. If given, standard errors of the bias are
            cluster-robust; all other standard errors and p-values still treat rows as independent.

    Raises:
        EnvariantError: If lengths differ, values are not finite, or targets are not class indices.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> z = rng.normal(size=2000)
        >>> y = (z + 1.5 + rng.logistic(size=2000) > 0).astype(int)
        >>> calibration = measure_calibration(z, y)
        >>> print(calibration)
        predicted probabilities are 0.28 too low
        >>> round(calibration.intercepts[0], 1), round(calibration.slope, 1)
        (1.5, 1.0)
    """
    z, y, n_classes = checked_scores("measure_calibration", scores, targets, regression=regression)
    if not n_classes:
        return _linear_calibration(z[:, 0], y[:, 0], groups)
    level, both = _fit(z, y, np.ones((1, len(z))))
    raw, adjusted, recalibrated = (
        float(logistic_loss(logits, y).sum())
        for logits in (z, *(part[0] for part in _logits(z, level, both)))
    )
    p = np.exp(-logistic_loss(z[:, None], np.eye(z.shape[1])[None]))
    difference = p - y
    return Calibration(
        tuple(level.coefficients[0].tolist()), tuple(level.errors[0].tolist()),
        float(both.coefficients[0, -1]), float(both.errors[0, -1]),
        float(stats.chi2.sf(max(0.0, 2 * (raw - adjusted)), n_classes - 1)),
        float(stats.chi2.sf(max(0.0, 2 * (adjusted - recalibrated)), 1)),
        tuple(difference.mean(0).tolist()), tuple(_mean_errors(difference, groups).tolist()),
    )  # fmt: skip


def split_drop(
    in_domain: tuple[ArrayLike, ArrayLike],
    environment: tuple[ArrayLike, ArrayLike],
    *,
    regression: bool = False,
    n_resamples: int = 300,
    level: float = LEVEL,
    seed: int = 0,
    groups: tuple[ArrayLike, ArrayLike] | None = None,
    sample_weight: tuple[ArrayLike, ArrayLike] | None = None,
) -> DropSplit:
    """Split the difference in loss and error rate between an environment and in-domain rows into four parts.

    Let L be the mean loss in the environment and z the scores. The intercepts a and a' and the slope b are
    fitted in the environment. The level part is L(z) − L(z + a), the slope part L(z + a) − L(a' + b z), the
    ranking part L(a' + b z) − L(constant), and the outcome part L(constant). The same four parts of the
    in-domain loss are subtracted. Fitting p parameters to n rows lowers the log loss by p / 2n on average;
    this optimism is removed. Percentile intervals come from a bootstrap of both the in-domain rows and the
    environment's rows.

    Args:
        in_domain: Scores and targets of in-domain rows, from the training environments; shapes as in
            `measure_calibration`.
        environment: Scores and targets of the rows of the environment with the drop.
        regression: Whether targets are real-valued.
        n_resamples: Number of bootstrap resamples.
        level: Confidence level of the intervals.
        seed: Seed of the resampling.
        groups: Groups of the in-domain rows and of the environment's rows, such as patients; whole groups
            are resampled. Default: single rows are resampled.
        sample_weight: Case weights of the in-domain rows and of the environment's rows. The attribute
            `calibration` ignores them. Default: equal weights.

    Raises:
        EnvariantError: If lengths differ, values are not finite, or targets are not class indices.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> z, noise = rng.normal(size=(2, 2000)), rng.logistic(size=(2, 2000))
        >>> y = (z + [[0], [2]] + noise > 0).astype(int)
        >>> parts = split_drop((z[0], y[0]), (z[1], y[1])).loss
        >>> parts.level.low > 0.1, parts.slope.high < 0.01
        (True, True)
    """
    generator = np.random.default_rng(seed)
    values: list[Array] = []
    for side, (scores, targets) in enumerate((in_domain, environment)):
        z, y, n_classes = checked_scores("split_drop", scores, targets, regression=regression)
        group = group_numbers(None if groups is None else groups[side], len(z))
        n_groups = int(group.max()) + 1
        counts = generator.multinomial(n_groups, np.full(n_groups, 1 / n_groups), n_resamples)[:, group]
        weights = np.concatenate([np.ones((1, len(z))), counts])
        if sample_weight is not None:
            weights = weights * np.asarray(sample_weight[side], dtype=np.float64)
        weights = weights / np.maximum(weights.sum(1, keepdims=True), 1e-300)
        parts = _loss_parts(z, y, weights, n_classes)
        values.append(np.concatenate([parts.sum(-1, keepdims=True), parts], axis=-1))
    difference = values[1] - values[0]
    low, high = np.quantile(difference[1:], [(1 - level) / 2, (1 + level) / 2], axis=0)
    n = len(np.asarray(environment[1]))
    results: list[DropParts] = []
    for m in range(difference.shape[1]):
        ends = zip(difference[0, m].tolist(), low[m].tolist(), high[m].tolist(), strict=True)
        results.append(DropParts(*(Interval(mean, bottom, top, n) for mean, bottom, top in ends)))
    own_groups = None if groups is None else groups[1]
    calibration = measure_calibration(*environment, regression=regression, groups=own_groups)
    return DropSplit(results[0], None if regression else results[1], calibration)


def _mean_errors(values: Array, groups: ArrayLike | None) -> Array:
    """Return the standard errors of the means of values `[rows, columns]`."""
    if groups is None:
        return values.std(0) / np.sqrt(len(values))
    return np.sqrt(np.square(group_sums(values - values.mean(0), groups)).sum(0)) / len(values)


def _too(bias: float) -> str:
    return f"{abs(bias):.2g} too {'high' if bias > 0 else 'low'}"


def _fit(z: Array, y: Array, weights: Array) -> tuple[LogisticFits, LogisticFits]:
    """Fit intercepts with the slope fixed at 1, then with a free slope, for every set of weights."""
    design = recalibration_design(z)
    start = np.append(np.zeros(z.shape[1]), 1.0)
    return (
        fit_logistic(design[..., :-1], y, weights, offset=z, precision=_PRECISION),
        fit_logistic(design, y, weights, center=start, precision=_PRECISION),
    )


def _logits(z: Array, level: LogisticFits, both: LogisticFits) -> tuple[Array, Array]:
    """Return the logits recalibrated by each of the two fits, `[weightings, rows, classes − 1]`."""
    slope = both.coefficients[:, None, -1:]
    return z + level.coefficients[:, None], both.coefficients[:, None, :-1] + slope * z


def _loss_parts(z: Array, y: Array, weights: Array, n_classes: int) -> Array:
    """Return the level, slope, ranking and outcome parts for every set of row weights.

    The shape is `[weightings, metrics, 4]`. The first set of weights is for the sample itself, the others are
    for bootstrap resamples, in which overfitting is twice as large.
    """
    n = len(z)
    optimism = np.append(1.0, np.full(len(weights) - 1, 2.0)) / n
    if not n_classes:
        losses = _linear_losses(z[:, 0], y[:, 0], weights) * (1 + optimism[:, None] * [0, 1, 2, 1])
        return _differences(losses)[:, None]
    k = n_classes - 1
    level, both = _fit(z, y, weights * n)
    shares = np.clip(weights @ y, 1e-12, None)
    first = np.clip(1 - shares.sum(-1), 1e-12, None)
    constant = (np.log(shares) - np.log(first)[:, None])[:, None]
    logits = [z[None], *_logits(z, level, both), np.broadcast_to(constant, (len(weights), 1, k))]
    # Row losses [weightings or 1, rows], weighted.
    losses = np.stack([(weights * logistic_loss(each, y)).sum(-1) for each in logits], axis=-1)
    losses += optimism[:, None] / 2 * np.array([0, k, k + 1, k])
    labels = np.where(y.any(-1), y.argmax(-1) + 1, 0)
    errors = np.stack([(weights * (_classes(each) != labels)).sum(-1) for each in logits], axis=-1)
    return np.stack([_differences(losses), _differences(errors)], axis=1)


def _classes(logits: Array) -> NDArray[np.int64]:
    return np.where(logits.max(-1) > 0, logits.argmax(-1) + 1, 0)


def _differences(losses: Array) -> Array:
    """Compute the four parts from the losses of z, z + a, a' + b z and a constant."""
    raw, level, both, constant = np.moveaxis(losses, -1, 0)
    return np.stack([raw - level, level - both, both - constant, constant], axis=-1)


def _linear_losses(z: Array, y: Array, weights: Array) -> Array:
    """Return the mean squared errors of z, z + a, a' + b z and a constant, `[weightings, 4]`."""
    raw, mean_z, mean_y = weights @ (y - z) ** 2, weights @ z, weights @ y
    var_z = np.clip(weights @ z**2 - mean_z**2, 1e-300, None)
    var_y, covariance = weights @ y**2 - mean_y**2, weights @ (z * y) - mean_z * mean_y
    return np.stack([raw, raw - (mean_y - mean_z) ** 2, var_y - covariance**2 / var_z, var_y], axis=-1)


def _linear_calibration(z: Array, y: Array, groups: ArrayLike | None) -> Calibration:
    """Measure the calibration of predictions of real-valued targets by least squares."""
    n, residual = len(z), y - z
    error = float(residual.std(ddof=1)) / np.sqrt(n) if n > 1 else float("inf")
    fit: Any = stats.linregress(z, y) if n > 2 and np.ptp(z) > 0 else None
    slope, slope_error = (1.0, float("inf")) if fit is None else (float(fit.slope), float(fit.stderr))
    bias = float(-residual.mean())
    p_values = [
        float(2 * stats.t.sf(abs(value) / max(scale, 1e-300), max(1, freedom)))
        for value, scale, freedom in ((bias, error, n - 1), (slope - 1, slope_error, n - 2))
    ]
    return Calibration(
        (-bias,),
        (float(error),),
        slope,
        slope_error,
        p_values[0],
        p_values[1],
        (bias,),
        (float(error if groups is None else _mean_errors(residual[:, None], groups)[0]),),
        regression=True,
    )
