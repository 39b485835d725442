"""Confidence intervals and p-values of mean scores.

Two sources of noise are included: replicas differ in weights, batches and validation rows, and each
environment is only a sample of rows.
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
# Number of replicas whose rows are resampled; row noise is similar for all replicas.
_RESAMPLED_REPLICAS = 2
_SMALLEST_P = 1e-12


def mean_interval(values: Sequence[float], row_error: float) -> Interval:
    """Return the mean over replicas with its 95 % confidence interval.

    Args:
        values: One value per replica.
        row_error: Standard error of the mean due to the sampling of rows.
    """
    mean, half = float(np.mean(values)), half_width(values, row_error, 0.05)
    return Interval(mean, mean - half, mean + half, len(values))


def half_width(values: Sequence[float], row_error: float, level: float) -> float:
    """Return half the width of the confidence interval of a mean over replicas.

    The replica error and the row error are each multiplied by their Student quantile, with degrees of freedom
    from the number of replicas or of resamples. The half width is the root of the sum of their squares. For
    a single replica, only the row error is included.

    Args:
        values: One value per replica.
        row_error: Standard error of the mean due to the sampling of rows.
        level: Error probability of the interval, such as 0.05 for 95 % confidence.
    """
    n = len(values)
    replica_quantile = float(stats.t.ppf(1 - level / 2, max(1, n - 1)))
    row_quantile = float(stats.t.ppf(1 - level / 2, _RESAMPLES - 1)) if n > 1 else replica_quantile
    replica_error = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    return math.hypot(replica_quantile * replica_error, row_quantile * row_error)


def p_value(differences: Sequence[float], row_error: float) -> float:
    """Return the p-value of the test of a zero mean difference.

    It is the level whose confidence interval ends at 0, found by bisection.
    """
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
    """Return the standard error of a mean score or mean gain due to the sampling of rows.

    Args:
        task: Prediction task.
        metric: Metric of the scores.
        predictions: Predictions of each replica on the same rows.
        reference: Predictions of the reference method for a gain, one per replica; empty for a score.
    """
    if not predictions:
        return 0.0
    generator = np.random.default_rng(0)
    n_rows, n_total = len(predictions[0].targets), predictions[0].of
    estimates: list[float] = []
    for k, own in enumerate(predictions[:_RESAMPLED_REPLICAS]):
        samples = generator.integers(n_rows, size=(_RESAMPLES, n_rows))
        values = np.array([score_of_rows(task, metric, own, rows) for rows in samples])
        if reference:
            values = values - np.array([score_of_rows(task, metric, reference[k], rows) for rows in samples])
        values = values[np.isfinite(values)]
        estimates.append(float(values.std(ddof=1)) if len(values) > 1 else 0.0)
    # Predictions are stored for at most 1,000 rows; scores use all rows of the environment.
    return float(np.mean(estimates)) * math.sqrt(n_rows / n_total)


def score_of_rows(
    task: Task, metric: Metric, predictions: Predictions, rows: NDArray[np.int64] | None = None
) -> float:
    """Return the score of stored predictions on some of their rows. Default: all rows."""
    # Stored arrays are read-only, and an index makes copies.
    rows = np.arange(len(predictions.targets)) if rows is None else rows
    targets = predictions.targets[rows]
    if predictions.logits.ndim == 2:
        targets = targets.astype(np.int64)
    return metric.compute(task, predictions.logits[rows], targets)
