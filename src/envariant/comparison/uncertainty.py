"""Intervals and p-values of mean scores that account for two sources of noise.

Replicas differ in weights, batches and validation rows; and an environment is known only by a sample of rows.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from envariant.analysis.statistics import Interval
from envariant.core.metrics import Metric
from envariant.core.tasks import Task
from envariant.training.store import Predictions

_RESAMPLES = 100
# Replicas whose rows are resampled; the row noise of all replicas is about the same.
_RESAMPLED_REPLICAS = 2
_SMALLEST_P = 1e-12


def mean_interval(values: Sequence[float], row_error: float) -> Interval:
    """Return the mean over replicas with its 95 % interval.

    Args:
        values: One value per replica.
        row_error: Standard error of the mean that is due to the sampled rows.
    """
    mean, half = float(np.mean(values)), half_width(values, row_error, 0.05)
    return Interval(mean, mean - half, mean + half, len(values))


def half_width(values: Sequence[float], row_error: float, level: float) -> float:
    """Return half the width of the interval of a mean over replicas; `level` is the error probability.

    Replicas are few, so their spread takes Student's quantile. The row error is estimated from many resamples
    and has its own quantile. The error probability of the root of the sum of squares is at most `level`. A
    single replica says nothing about the spread.
    """
    n = len(values)
    replica_quantile = float(stats.t.ppf(1 - level / 2, max(1, n - 1)))
    row_quantile = float(stats.t.ppf(1 - level / 2, _RESAMPLES - 1)) if n > 1 else replica_quantile
    replica_error = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    return math.hypot(replica_quantile * replica_error, row_quantile * row_error)


def p_value(differences: Sequence[float], row_error: float) -> float:
    """Return the level at which the interval of the mean difference just reaches 0, by bisection."""
    mean = abs(float(np.mean(differences)))
    if mean == 0 or half_width(differences, row_error, _SMALLEST_P) < mean:
        return 1.0 if mean == 0 else _SMALLEST_P
    low, high = math.log(_SMALLEST_P), 0.0
    while high - low > 1e-5:
        middle = (low + high) / 2
        if half_width(differences, row_error, math.exp(middle)) < mean:
            high = middle
        else:
            low = middle
    return math.exp(high)


def row_standard_error(
    task: Task, metric: Metric, predictions: Sequence[Predictions], reference: Sequence[Predictions] = ()
) -> float:
    """Return the standard error of a mean score, or of a mean gain, that is due to the sampled rows.

    Args:
        task: Task of the models.
        metric: Metric of the scores.
        predictions: Predictions of each replica on the same rows.
        reference: For a gain: predictions of the same replicas of the reference method; else empty.
    """
    if not predictions:
        return 0.0
    generator = np.random.default_rng(0)
    n_rows, n_total = len(predictions[0].targets), predictions[0].of
    estimates: list[float] = []
    for k, own in enumerate(predictions[:_RESAMPLED_REPLICAS]):
        samples = generator.integers(n_rows, size=(_RESAMPLES, n_rows))
        values = np.array([_score(task, metric, own, rows) for rows in samples])
        if reference:
            values = values - np.array([_score(task, metric, reference[k], rows) for rows in samples])
        values = values[np.isfinite(values)]
        estimates.append(float(values.std(ddof=1)) if len(values) > 1 else 0.0)
    # Predictions are stored for at most 1,000 rows; scores use all rows of the environment.
    return float(np.mean(estimates)) * math.sqrt(n_rows / n_total)


def _score(task: Task, metric: Metric, predictions: Predictions, rows: NDArray[np.int64]) -> float:
    targets = predictions.targets[rows]
    if predictions.logits.ndim == 2:
        return metric.compute(task, predictions.logits[rows], targets.astype(np.int64))
    return metric.compute(task, predictions.logits[rows], targets)
