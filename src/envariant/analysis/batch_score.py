"""Estimate accuracy or RMSE on a batch without labels, with a prediction interval.

The interval accounts for differences between environments.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from envariant.analysis.statistics import LEVEL, Interval
from envariant.core.errors import EnvariantError

Array = NDArray[np.float64]
Method = Literal["difference of confidences", "thresholded confidence", "mean of environments", "labels"]

# Smallest number of environments for an estimate of the spread between them.
_FEWEST = 3
# Ratio of mean squared errors up to which the first estimator is used.
_ABOUT_AS_GOOD = 2.0


@final
@dataclass(frozen=True)
class BatchScore:
    """Fitted estimator of the accuracy or RMSE on a batch without labels.

    Attributes:
        method: Name of the estimator: "difference of confidences" (mean confidence + `offset`), "thresholded
            confidence" (share of confidences above `offset`), "mean of environments" (`offset` for every
            batch), or "labels" (`offset`, the score on labeled rows of the same environment).
        offset: Constant in the formula of `method`; for regression, the logarithm of the RMSE.
        spread: Standard deviation of the estimate's error in new environments, without the sampling noise
            of the batch; for regression, of the error of the logarithm of the RMSE.
        freedom: Degrees of freedom of `spread`.
        regression: Whether the score is RMSE instead of accuracy.
    """

    method: Method
    offset: float
    spread: float
    freedom: int
    regression: bool = False

    @property
    def name(self) -> str:
        """Name of the estimated score: "accuracy" or "RMSE"."""
        return "RMSE" if self.regression else "accuracy"

    def estimate(self, confidences: ArrayLike, level: float = LEVEL) -> Interval:
        """Return the expected score of a batch and its prediction interval.

        Args:
            confidences: Largest class probability of each row, `[rows]`. For regression, any array with one
                entry per row.
            level: Coverage of the interval, between 0 and 1.
        """
        c = np.asarray(confidences, dtype=np.float64)
        n = max(1, len(c))
        t = float(stats.t.isf((1 - level) / 2, self.freedom))
        if self.regression:
            # The logarithm of RMSE of n rows has a variance of about 1 / 2n.
            half = t * math.hypot(self.spread, math.sqrt(0.5 / n))
            low, high = (math.exp(min(self.offset + sign * half, 700.0)) for sign in (-1, 1))
            return Interval(math.exp(self.offset), low, high, n)
        value = float(np.clip(_ESTIMATORS[self.method](c, self.offset), 0.0, 1.0))
        # Add one correct and one wrong prediction, so that the variance is positive if all rows are correct.
        share = (value * n + 1) / (n + 2)
        half = t * math.hypot(self.spread, math.sqrt(share * (1 - share) / n))
        return Interval(value, value - half, value + half, n).clipped(0.0, 1.0)


_ESTIMATORS: Mapping[str, Callable[[Array, float], float]] = {
    "difference of confidences": lambda c, offset: float(c.mean()) + offset,
    "thresholded confidence": lambda c, offset: float((c > offset).mean()),
    "mean of environments": lambda c, offset: offset,
    "labels": lambda c, offset: offset,
}


def fit_batch_score(confidences: ArrayLike, correct: ArrayLike, environments: ArrayLike) -> BatchScore:
    """Choose an estimator of accuracy that needs no labels, and measure its error in left-out environments.

    Candidates are, in this order, difference of confidences, thresholded confidence and mean of environments.
    The first candidate whose mean squared error is at most twice the smallest one is chosen.

    Args:
        confidences: Largest class probability of each row, `[rows]`, by models that were not trained on the
            row's environment.
        correct: Whether the prediction for each row is right, `[rows]`.
        environments: Environment of each row, `[rows]`; at least three environments.

    Raises:
        EnvariantError: If lengths differ, or there are fewer than three environments.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> p, hospital = rng.uniform(0.5, 1, 4000), np.repeat(["A", "B", "C", "D"], 1000)
        >>> reference = fit_batch_score(p, rng.random(4000) < p, hospital)
        >>> round(reference.estimate(rng.uniform(0.8, 1, 500)).mean, 1)
        0.9
    """
    c, right, codes = _by_environment("fit_batch_score", confidences, correct, environments)
    count = int(codes.max()) + 1
    parts = [(c[codes == k], right[codes == k]) for k in range(count)]
    accuracies = np.array([float(own.mean()) for _, own in parts])
    noise = np.array([a * (1 - a) / len(own) for a, (_, own) in zip(accuracies, parts, strict=True)])
    errors: dict[Method, float] = {}
    for method, offset_of in _OFFSETS.items():
        left_out = [offset_of([each for j, each in enumerate(parts) if j != k]) for k in range(count)]
        estimates = [_ESTIMATORS[method](parts[k][0], left_out[k]) for k in range(count)]
        errors[method] = float(np.square(np.clip(estimates, 0.0, 1.0) - accuracies).mean())
    most = _ABOUT_AS_GOOD * min(errors.values())
    best: Method = next(method for method, error in errors.items() if error <= most)
    spread = math.sqrt(max(0.0, errors[best] - float(noise.mean())))
    return BatchScore(best, _OFFSETS[best](parts), spread, count - 1)


def fit_batch_error(residuals: ArrayLike, environments: ArrayLike) -> BatchScore:
    """Measure the mean RMSE over environments, and its variation between environments.

    For regression, every batch gets the same estimate, because the predictions alone do not reveal how large
    their errors are.

    Args:
        residuals: Target minus prediction for each row, `[rows]`. Predictions must come from models that were
            not trained on the row's environment.
        environments: Environment of each row, `[rows]`; at least three environments.

    Raises:
        EnvariantError: If lengths differ, or there are fewer than three environments.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> reference = fit_batch_error(rng.normal(size=4000), np.repeat(["A", "B", "C", "D"], 1000))
        >>> round(reference.estimate(np.zeros(500)).mean, 1)
        1.0
    """
    r, _, codes = _by_environment("fit_batch_error", residuals, residuals, environments)
    count = int(codes.max()) + 1
    tiny, rows = np.finfo(np.float64).tiny, np.bincount(codes)
    squares = np.maximum(np.bincount(codes, np.square(r)) / rows, tiny)
    logs = 0.5 * np.log(squares)
    # Variance of the logarithm of each RMSE from the noise of its rows (delta method).
    variances = np.bincount(codes, r**4) / rows - np.square(squares)
    noise = float(np.mean(np.maximum(variances, 0.0) / (4 * rows * np.square(squares))))
    between = max(0.0, float(logs.var(ddof=1)) - noise)
    spread = math.sqrt(between * (1 + 1 / count) + noise / count)
    return BatchScore("mean of environments", float(logs.mean()), spread, count - 1, regression=True)


def _accuracy_minus_confidence(parts: list[tuple[Array, Array]]) -> float:
    return float(np.mean([right.mean() - c.mean() for c, right in parts]))


def _threshold(parts: list[tuple[Array, Array]]) -> float:
    """Return the confidence at which the share of rows with lower confidence equals the share of errors."""
    c = np.concatenate([part for part, _ in parts])
    weights = np.concatenate([np.full(len(part), 1 / len(part)) for part, _ in parts])
    order = np.argsort(c, kind="stable")
    wrong = float(np.sum([1 - right.mean() for _, right in parts]))
    position = int(np.searchsorted(np.cumsum(weights[order]), wrong - 1e-9))
    return float(c[order][min(position, len(c) - 1)]) if wrong else 0.0


_OFFSETS: Mapping[Method, Callable[[list[tuple[Array, Array]]], float]] = {
    "difference of confidences": _accuracy_minus_confidence,
    "thresholded confidence": _threshold,
    "mean of environments": lambda parts: float(np.mean([right.mean() for _, right in parts])),
}


def _by_environment(
    where: str, scores: ArrayLike, outcomes: ArrayLike, environments: ArrayLike
) -> tuple[Array, Array, NDArray[np.int64]]:
    s, right = np.asarray(scores, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    names, codes = np.unique(np.asarray(environments), return_inverse=True)
    if not s.shape == right.shape == codes.shape or s.ndim != 1:
        raise EnvariantError(f"{where}: every row needs a score, an outcome and an environment")
    if len(names) < _FEWEST:
        raise EnvariantError(f"{where}: needs at least {_FEWEST} environments, got {len(names)}")
    return s, right, codes
