"""Recalibrate a model with a few labels from a new environment, and estimate the gain."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from envariant.analysis._logistic import checked_scores, fit_logistic, logistic_loss, recalibration_design
from envariant.core.errors import EnvariantError, unknown_name

Array = NDArray[np.float64]
Refit = Literal["intercept", "intercept and slope"]

REFITS: tuple[Refit, ...] = ("intercept", "intercept and slope")
"""Choices of parameters to refit, the least flexible first."""

SIZES = (10, 20, 50, 100)
"""Default numbers of labels for which the gain is estimated."""

INTERCEPT_SD = 1.5
"""Standard deviation of the intercept's prior (mean 0); for regression, in residual standard deviations."""

SLOPE_SD = 0.5
"""Standard deviation of the slope's prior (mean 1)."""

# Smallest number of rows on which a refit is evaluated.
_FEWEST_ROWS = 10
_FOLDS, _FEWEST_FOR_SLOPE = 10, 20


@final
@dataclass(frozen=True)
class Recalibration:
    """Recalibration of a model's scores in one environment, by intercepts and a slope.

    Attributes:
        intercepts: Intercepts added to the scaled scores, one per class except the first; one number for
            regression.
        slope: Factor by which the scores are multiplied; 1 if only intercepts were refitted.
    """

    intercepts: tuple[float, ...]
    slope: float

    def apply(self, scores: ArrayLike) -> Array:
        """Return the recalibrated logits or predictions, in the shape of `scores`."""
        z = np.asarray(scores, dtype=np.float64)
        shift = np.asarray(self.intercepts)
        return self.slope * z + (shift if z.ndim == 1 else np.append(0.0, shift))


@final
@dataclass(frozen=True)
class Gain:
    """Score before and after recalibration, averaged over random choices of the labeled rows.

    Attributes:
        before: Mean score of the unchanged model on rows whose labels were not used.
        after: Mean score of the recalibrated model on the same rows.
        sd: Standard deviation of the score after recalibration, over random choices of the labeled rows.
    """

    before: float
    after: float
    sd: float


@final
@dataclass(frozen=True)
class LabelGain:
    """Gain from recalibration with k labels of an environment.

    Attributes:
        n_labels: Number k of labels.
        refit: Refitted parameters: "intercept", or "intercept and slope".
        loss: Log loss (regression: mean squared error) before and after.
        accuracy: Accuracy before and after; None for regression.
        n_resamples: Number of random choices of the labeled rows.
    """

    n_labels: int
    refit: Refit
    loss: Gain
    accuracy: Gain | None
    n_resamples: int

    def __str__(self) -> str:
        name, gain = ("loss", self.loss) if self.accuracy is None else ("accuracy", self.accuracy)
        return (
            f"{self.n_labels} labels ({self.refit}): {name} {gain.before:.3f} to {gain.after:.3f} "
            f"± {gain.sd:.3f} (sd, n = {self.n_resamples})"
        )


@final
@dataclass(frozen=True, eq=False)
class LabelFit:
    """Recalibration with the labels of one environment, and cross-validated losses on the labeled rows.

    Attributes:
        recalibration: Fitted intercepts and slope.
        refit: Refitted parameters: "intercept", or "intercept and slope".
        held_out: Cross-validated scores, in the shape of the original scores: each row is recalibrated by a
            fit to the other folds.
        losses: Log loss (regression: squared error) of each row before and after recalibration, `[2, rows]`.
        errors: 1 for each row with a wrong prediction, else 0, before and after recalibration, `[2, rows]`;
            None for regression.
        n_folds: Number of cross-validation folds.
    """

    recalibration: Recalibration
    refit: Refit
    held_out: Array
    losses: Array
    errors: Array | None
    n_folds: int


def recalibrate(
    scores: ArrayLike,
    targets: ArrayLike,
    *,
    refit: Refit = "intercept",
    regression: bool = False,
    intercept_sd: float = INTERCEPT_SD,
) -> Recalibration:
    """Recalibrate scores with the labels of one environment: refit the intercept, or also the slope.

    For scores z, the model is logit p = a + b z with intercept a and slope b. Estimates maximize the
    posterior with priors a ~ N(0, s²) and b ~ N(1, 0.5²), where s is `intercept_sd`. The priors keep the
    estimates finite even with a single label or a single class. With several classes, there is one intercept
    per class except the first, and one slope.

    Args:
        scores: Logits `[rows]` or `[rows, classes]`, or predictions of real-valued targets `[rows]`.
        targets: Class indices from 0, or real-valued targets, `[rows]`.
        refit: Parameters to refit: "intercept", or "intercept and slope".
        regression: Whether targets are real-valued.
        intercept_sd: Standard deviation of the intercept's prior, for example the standard deviation of the
            intercepts over training environments.

    Raises:
        EnvariantError: If lengths differ, values are not finite, targets are not class indices, or `refit` is
            unknown.

    Example:
        >>> import numpy as np
        >>> adapted = recalibrate(np.zeros(10), np.ones(10, dtype=int))
        >>> round(adapted.intercepts[0], 2), adapted.slope
        (2.21, 1.0)
    """
    if refit not in REFITS:
        raise unknown_name("refit", refit, REFITS, "recalibrate")
    z, y, n_classes = checked_scores("recalibrate", scores, targets, regression=regression)
    coefficients = _refit(z, y, np.ones((1, len(z))), n_classes, intercept_sd, slope=refit != "intercept")[0]
    return Recalibration(tuple(coefficients[:-1].tolist()), float(coefficients[-1]))


def gain_from_labels(
    scores: ArrayLike,
    targets: ArrayLike,
    *,
    sizes: Sequence[int] = SIZES,
    n_resamples: int = 100,
    regression: bool = False,
    intercept_sd: float = INTERCEPT_SD,
    seed: int = 0,
    groups: ArrayLike | None = None,
) -> tuple[LabelGain, ...]:
    """Estimate by resampling how much k labels of an environment would improve the model.

    Scores are recalibrated by `recalibrate` on k random rows, and evaluated on the remaining rows. Values of
    k that leave fewer than 10 rows for evaluation are omitted.

    Args:
        scores: Logits or predictions in the environment; shapes as in `recalibrate`.
        targets: Class indices from 0, or real-valued targets, `[rows]`.
        sizes: Numbers of labels k to try.
        n_resamples: Number of random choices of the labeled rows.
        regression: Whether targets are real-valued.
        intercept_sd: Standard deviation of the intercept's prior.
        seed: Seed of the resampling.
        groups: Group of each row, `[rows]`, such as the patient. Groups with a labeled row are excluded from
            the evaluation. Default: every row is a group.

    Returns:
        One entry per size k and kind of refit; empty if the environment is too small.

    Raises:
        EnvariantError: If lengths differ, values are not finite, targets are not class indices, or a size is
            below 1.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> z = rng.normal(size=500)
        >>> y = (z + 3 + rng.logistic(size=500) > 0).astype(int)
        >>> print(gain_from_labels(z, y, sizes=[20])[0])
        20 labels (intercept): accuracy 0.505 to 0.938 ± 0.012 (sd, n = 100)
    """
    z, y, n_classes = checked_scores("gain_from_labels", scores, targets, regression=regression)
    if n_resamples < 1 or any(size < 1 for size in sizes):
        raise EnvariantError("gain_from_labels: n_resamples and sizes must be at least 1")
    n, generator = len(z), np.random.default_rng(seed)
    group = None if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    n_groups = 0 if group is None else int(group.max()) + 1
    results: list[LabelGain] = []
    before = _row_losses(z[None], y, n_classes)
    for size in sizes:
        if n - size < _FEWEST_ROWS:
            continue
        # The rank of a random number determines whether a row is labeled.
        order = generator.random((n_resamples, n)).argsort(axis=1).argsort(axis=1)
        if group is not None:
            # Rows are labeled group by group.
            turn = generator.random((n_resamples, n_groups)).argsort(axis=1).argsort(axis=1)[:, group]
            order = (turn * n + order).argsort(axis=1).argsort(axis=1)
        labeled = (order < size).astype(np.float64)
        rest = (1 - labeled) / (n - size)
        if group is not None:
            rest = _without_labeled_groups(labeled, group, n_groups)
            if (rest > 0).sum(1).min() < _FEWEST_ROWS:
                continue
        for refit in REFITS:
            fits = _refit(z, y, labeled, n_classes, intercept_sd, slope=refit != "intercept")
            after = _row_losses(fits[:, None, :-1] + fits[:, None, -1:] * z, y, n_classes)
            means = [[(rest * part).sum(-1) for part in parts] for parts in (before, after)]
            gains = [_gain(first, second) for first, second in zip(*means, strict=True)]
            accuracy = None if regression else Gain(1 - gains[1].before, 1 - gains[1].after, gains[1].sd)
            results.append(LabelGain(size, refit, gains[0], accuracy, n_resamples))
    return tuple(results)


def fit_labels(scores: ArrayLike, targets: ArrayLike, *, regression: bool = False, seed: int = 0) -> LabelFit:
    """Recalibrate scores with all labels of one environment, and choose by cross-validation what to refit.

    The intercept is refitted by `recalibrate`. The slope is also refitted if there are at least 20 labels and
    refitting it lowers the loss in cross-validation (up to ten folds).

    Args:
        scores: Logits or predictions in the environment; shapes as in `recalibrate`.
        targets: Class indices from 0, or real-valued targets, `[rows]`; at least two rows.
        regression: Whether targets are real-valued.
        seed: Seed of the folds.

    Raises:
        EnvariantError: If lengths differ, values are not finite, targets are not class indices, or there are
            fewer than two rows.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> z = rng.normal(size=60)
        >>> y = (z + 3 + rng.logistic(size=60) > 0).astype(int)
        >>> fit = fit_labels(z, y)
        >>> fit.refit, fit.losses.mean(axis=1).round(2).tolist()
        ('intercept', [0.7, 0.28])
    """
    z, y, n_classes = checked_scores("fit_labels", scores, targets, regression=regression)
    if len(z) < 2:
        raise EnvariantError("fit_labels: needs at least two labels")
    raw, values = np.asarray(scores, dtype=np.float64), np.asarray(targets)
    n_folds = min(_FOLDS, len(z))
    fold = np.random.default_rng(seed).permutation(np.arange(len(z)) % n_folds)
    fits: list[LabelFit] = []
    for refit in REFITS if len(z) >= _FEWEST_FOR_SLOPE else REFITS[:1]:
        held_out = np.empty_like(raw)
        for k in range(n_folds):
            part = recalibrate(raw[fold != k], values[fold != k], refit=refit, regression=regression)
            held_out[fold == k] = part.apply(raw[fold == k])
        adapted = checked_scores("fit_labels", held_out, values, regression=regression)[0]
        losses, *errors = (
            np.stack(pair) for pair in zip(*(_row_losses(s, y, n_classes) for s in (z, adapted)), strict=True)
        )
        fitted = recalibrate(raw, values, refit=refit, regression=regression)
        fits.append(LabelFit(fitted, refit, held_out, losses, errors[0] if errors else None, n_folds))
    return min(fits, key=lambda fit: float(fit.losses[1].mean()))


def _without_labeled_groups(labeled: Array, group: NDArray[np.int64], n_groups: int) -> Array:
    """Return row weights, `[resamples, rows]`: equal for groups without labeled rows, 0 for other groups."""
    member = np.zeros((len(group), n_groups))
    member[np.arange(len(group)), group] = 1
    rest = (labeled @ member == 0)[:, group].astype(np.float64)
    return rest / np.maximum(rest.sum(1, keepdims=True), 1)


def _gain(before: Array, after: Array) -> Gain:
    sd = float(after.std(ddof=1)) if len(after) > 1 else float("nan")
    return Gain(float(before.mean()), float(after.mean()), sd)


def _row_losses(z: Array, y: Array, n_classes: int) -> list[Array]:
    """Return log loss and 0/1 error (regression: squared error) of every row, each `[refits, rows]`."""
    if not n_classes:
        return [(y - z)[..., 0] ** 2]
    predicted = np.where(z.max(-1) > 0, z.argmax(-1) + 1, 0)
    labels = np.where(y.any(-1), y.argmax(-1) + 1, 0)
    return [logistic_loss(z, y), (predicted != labels).astype(np.float64)]


def _refit(z: Array, y: Array, weights: Array, n_classes: int, intercept_sd: float, *, slope: bool) -> Array:
    """Return intercepts and slope for every set of row weights, `[weightings, intercepts + 1]`."""
    if not n_classes:
        return _linear_refit(z[:, 0], y[:, 0], weights, intercept_sd, slope=slope)
    k = z.shape[1]
    design, precision = recalibration_design(z), np.append(np.full(k, intercept_sd**-2), SLOPE_SD**-2)
    if slope:
        return fit_logistic(
            design, y, weights, center=np.append(np.zeros(k), 1.0), precision=precision
        ).coefficients
    fits = fit_logistic(design[..., :-1], y, weights, offset=z, precision=precision[:-1]).coefficients
    return np.column_stack([fits, np.ones(len(fits))])


def _linear_refit(z: Array, y: Array, weights: Array, intercept_sd: float, *, slope: bool) -> Array:
    """Return intercept and slope by penalized least squares for every set of weights, `[weightings, 2]`."""
    count, residual = weights.sum(1), y - z
    center, scale = z.mean(), max(float(z.std()), 1e-12)
    x = (z - center) / scale
    mean = weights @ residual / count
    variance = np.maximum(weights @ residual**2 / count - mean**2, 1e-12 * (1 + scale**2))
    penalty = variance / (SLOPE_SD * scale) ** 2 if slope else np.full(len(weights), 1e12)
    normal: Any = np.empty((len(weights), 2, 2))
    normal[:, 0, 0] = count + intercept_sd**-2
    normal[:, 0, 1] = normal[:, 1, 0] = weights @ x
    normal[:, 1, 1] = weights @ x**2 + penalty
    right = np.stack([weights @ residual, weights @ (residual * x)], axis=-1)
    shift, change = np.linalg.solve(normal, right[..., None])[..., 0].T
    change = change / scale if slope else np.zeros(len(weights))
    return np.column_stack([shift - change * center, 1 + change])
