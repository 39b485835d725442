"""Test whether the target, given a model's score, still depends on the environment.

If a score depends only on invariant features, then rows with equal scores have the same target distribution
in every environment. The rows must not have been used for training.
"""

import math
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import log_softmax

from envariant.core.errors import EnvariantError

Array = NDArray[np.float64]

_FEWEST_CLASSES, _MOST_CLASSES = 3, 10
# Strength of the L2 penalty, which only serves to bound the coefficients of separable classes.
_PENALTY = 1e-6
# Newton's method: largest error of a log-likelihood, and number of steps.
_TOLERANCE = 1e-9
_MOST_STEPS = 100
_SMALLEST = np.finfo(np.float64).tiny


@final
@dataclass(frozen=True)
class InvarianceTest:
    """Test of the hypothesis that P(target | score) is equal in all environments.

    Attributes:
        p_value: P-value between 0 and 1; 1 if the hypothesis cannot be tested.
        statistic: Likelihood ratio (classes) or F statistic (regression); NaN if not tested.
        degrees_of_freedom: One number for the χ² distribution; numerator and denominator for F.
    """

    p_value: float
    statistic: float = float("nan")
    degrees_of_freedom: tuple[int, ...] = ()


_UNTESTED = InvarianceTest(1.0)


def assess_invariance(
    scores: ArrayLike, targets: ArrayLike, environments: ArrayLike, *, regression: bool = False
) -> InvarianceTest:
    """Test whether the relation between score and target differs between environments.

    Separate regressions of the target on the score in each environment are compared with a joint regression.
    For classes, the regressions are logistic. The likelihood ratio 2(Σ_e ℓ_e − ℓ), with log-likelihoods ℓ_e
    of the separate fits and ℓ of the joint fit, is compared with a χ² distribution. For real-valued targets,
    least-squares fits are compared by an F test (Chow 1960). With more than 10 classes, or few rows, rare
    classes are pooled into one.

    Args:
        scores: Logits or predictions, `[rows]` or `[rows, classes]`.
        targets: Class indices or real-valued targets, `[rows]`.
        environments: Environment of each row, `[rows]`.
        regression: Whether targets are real-valued rather than classes.

    Returns:
        Result of the test; the p-value is 1 with a single environment or a constant target.

    Raises:
        EnvariantError: If `scores`, `targets` and `environments` differ in length.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> score, environment = rng.normal(size=400), np.repeat(["north", "south"], 200)
        >>> sign = np.where(environment == "north", 1, -1)
        >>> target = (sign * score + 0.5 * rng.normal(size=400) > 0).astype(int)
        >>> assess_invariance(score, target, environment).p_value < 0.001
        True
    """
    z, y, labels = np.asarray(scores), np.asarray(targets), np.asarray(environments)
    if not len(z) == len(y) == len(labels):
        raise EnvariantError(
            f"assess_invariance: scores, targets and environments must have equal lengths; got "
            f"{len(z)}, {len(y)} and {len(labels)}"
        )
    names, codes = np.unique(labels, return_inverse=True)
    # C classes have C·(C − 1) coefficients per environment, which need as many rows.
    most = min(_MOST_CLASSES, max(_FEWEST_CLASSES, math.isqrt(len(y) // max(1, len(names)))))
    if not regression and z.ndim == 2 and z.shape[1] > most:
        z, y = _pooled(z, y, most)
    n_classes = 0 if regression else len(np.unique(y))
    if len(names) < 2 or n_classes == 1:
        return _UNTESTED
    # Only differences between the logits of a row matter.
    columns = _standardized(z[:, None] if z.ndim == 1 else (z - z[:, -1:])[:, :-1])
    order = np.argsort(codes, kind="stable")
    columns, y, sizes = columns[order], y[order], np.bincount(codes)
    fit = _squared_error if regression else _log_likelihood
    separate, joint = fit(columns, y, sizes), fit(columns, y, np.array([len(y)]))
    width = 1 + columns.shape[1]
    extra = width * (len(names) - 1)
    if not regression:
        ratio, extra = max(0.0, 2 * (separate - joint)), extra * (n_classes - 1)
        return InvarianceTest(float(stats.chi2.sf(ratio, extra)), ratio, (extra,))
    residual = len(y) - width * len(names)
    if residual <= 0 or separate <= 0:
        return _UNTESTED
    ratio = (joint - separate) / extra / (separate / residual)
    return InvarianceTest(float(stats.f.sf(ratio, extra, residual)), ratio, (extra, residual))


def _standardized(columns: Array) -> Array:
    """Return the columns standardized to mean 0 and standard deviation 1, without constant columns."""
    center, spread = columns.mean(axis=0), columns.std(axis=0)
    varies = spread > 1e-12 * (1 + np.abs(center))
    return ((columns - center) / np.where(varies, spread, 1.0))[:, varies]


def _pooled(logits: Array, targets: Array, most: int) -> tuple[Array, Array]:
    """Return logits and targets with all but the `most − 1` most frequent classes pooled into one."""
    counts = np.bincount(targets.astype(int), minlength=logits.shape[1])
    order = np.argsort(-counts, kind="stable")
    common = np.sort(order[: most - 1])
    # The logit of a union of classes is the logarithm of the sum of their exponentials.
    shifted = logits - logits.max(axis=1, keepdims=True)
    union = np.exp(shifted)
    union[:, common] = 0
    pooled = np.column_stack([shifted[:, common], np.log(np.maximum(union.sum(axis=1), _SMALLEST))])
    numbers = np.full(logits.shape[1], len(common))
    numbers[common] = np.arange(len(common))
    return pooled, numbers[targets.astype(int)]


def _log_likelihood(columns: Array, targets: Array, sizes: NDArray[np.int64]) -> float:
    """Return the sum of the log-likelihoods of logistic regressions, one per group of consecutive rows."""
    design = np.column_stack([np.ones(len(targets)), columns])
    one_hot = (targets[:, None] == np.unique(targets)).astype(np.float64)
    starts, total = np.cumsum(sizes) - sizes, 0.0
    # Groups of similar size are padded to equal size and fitted together.
    magnitudes = np.frexp(sizes)[1]
    for magnitude in np.unique(magnitudes):
        own = np.flatnonzero(magnitudes == magnitude)
        place = np.arange(sizes[own].max())
        used = place < sizes[own, None]
        rows = np.where(used, starts[own, None] + place, 0)
        total += _fitted(design[rows] * used[..., None], one_hot[rows] * used[..., None])
    return total


def _fitted(x: Array, y: Array) -> float:
    """Return the log-likelihood of multinomial logistic regressions, fitted by Newton's method.

    Args:
        x: Design matrix of each group, `[groups, rows, columns]`.
        y: One-hot classes, `[groups, rows, classes]`; zero for padded rows.
    """
    groups, width, n_classes = len(x), x.shape[2], y.shape[2]
    used, absent = y.sum(axis=2, keepdims=True), ~y.any(axis=1, keepdims=True)
    weights = np.zeros((groups, n_classes, width))
    each = np.arange(n_classes)

    def evaluate(weights: Array) -> tuple[Array, Array, Array]:
        log_p = log_softmax(np.where(absent, -1e30, x @ weights.transpose(0, 2, 1)), axis=2)
        likelihood = (y * log_p).sum(axis=(1, 2))
        return likelihood, likelihood - _PENALTY / 2 * np.square(weights).sum(axis=(1, 2)), log_p

    likelihood, objective, log_p = evaluate(weights)
    for _ in range(_MOST_STEPS):
        p = np.exp(log_p) * used
        slope = (y - p).transpose(0, 2, 1) @ x - _PENALTY * weights
        scaled = p[..., None] * x[:, :, None]
        flat = scaled.reshape(groups, x.shape[1], -1)
        curvature = -flat.transpose(0, 2, 1) @ flat + _PENALTY * np.eye(flat.shape[2])
        blocks = scaled.transpose(2, 0, 3, 1) @ x
        curvature.reshape(groups, n_classes, width, n_classes, width)[:, each, :, each] += blocks
        step = np.linalg.solve(curvature, slope.reshape(groups, -1, 1)).reshape(weights.shape)
        expected = (slope * step).sum(axis=(1, 2))
        if (expected < _TOLERANCE).all():
            break
        length, reached = np.ones(groups), objective
        for _ in range(_MOST_STEPS):
            likelihood, reached, log_p = evaluate(weights + length[:, None, None] * step)
            short = (reached < objective + 1e-4 * length * expected) & (expected >= _TOLERANCE)
            if not short.any():
                break
            length[short] /= 2
        weights, objective = weights + length[:, None, None] * step, reached
    return float(likelihood.sum())


def _squared_error(columns: Array, targets: Array, sizes: NDArray[np.int64]) -> float:
    """Return the residual sum of squares of least-squares fits, one per group of consecutive rows."""
    design = np.column_stack([np.ones(len(targets)), columns])
    total = 0.0
    for x, y in zip(*(np.split(part, np.cumsum(sizes)[:-1]) for part in (design, targets)), strict=True):
        total += float(np.square(y - x @ np.linalg.lstsq(x, y, rcond=None)[0]).sum())
    return total
