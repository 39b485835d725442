"""Compute confidence intervals and p-values of mean scores.

Two sources of noise are included: replicas differ in initial weights, batches and validation rows, and each
environment is only a sample of rows.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from envariant.analysis.statistics import Interval
from envariant.core.metrics import Metric
from envariant.core.tasks import Task
from envariant.studies.permutation_importance import evenly_spaced
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

    The half width is √(a² + b²). Here, a is the standard error over replicas times a quantile of Student's t,
    whose degrees of freedom depend on the number of replicas; b is `row_error` times a quantile whose degrees
    of freedom depend on the number of resamples. With a single replica, a is 0, and the quantile in b has one
    degree of freedom.

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
    """Return the p-value of the test that the mean difference is 0.

    The p-value is the error probability at which one end of the confidence interval is 0. It is found by
    bisection.
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


def standard_error(values: NDArray[np.float64], groups: NDArray[np.int64] | None = None) -> float:
    """Return the standard error of a mean over rows; it is cluster-robust if groups are given.

    Args:
        values: Value of each row, `[rows]`.
        groups: Group of each row, `[rows]`. None: rows are independent.
    """
    if groups is None:
        return float(values.std()) / math.sqrt(len(values))
    sums = np.bincount(np.unique(groups, return_inverse=True)[1], values - values.mean())
    return float(np.sqrt(np.square(sums).sum())) / len(values)


def row_standard_error(
    task: Task,
    metric: Metric,
    predictions: Sequence[Predictions],
    reference: Sequence[Predictions] = (),
    groups: NDArray[np.int64] | None = None,
    weights: NDArray[np.float64] | None = None,
) -> float:
    """Return the standard error that the sampling of rows causes in a mean score or mean gain.

    Args:
        task: Prediction task.
        metric: Metric of the scores.
        predictions: Predictions of each replica on the same rows.
        reference: Predictions of a reference method, one set per replica, to return the standard error of
            the mean gain over it. Default: none, to return the standard error of the mean score.
        groups: Group of every row of the environment, `[rows]`; whole groups are resampled. None: rows are
            resampled.
        weights: Case weight of every row of the environment, `[rows]`. None: equal weights.
    """
    if not predictions:
        return 0.0
    generator = np.random.default_rng(0)
    n_rows, n_total = len(predictions[0].targets), predictions[0].of
    # Predictions are stored for at most 1,000 rows; scores use all rows of the environment.
    scale = math.sqrt(n_rows / n_total)
    members: list[NDArray[np.int64]] = []
    if groups is not None:
        group = np.unique(groups[evenly_spaced(n_total, n_rows).numpy()], return_inverse=True)[1]
        members = [np.flatnonzero(group == k) for k in range(int(group.max()) + 1)]
        scale = math.sqrt(len(members) / len(np.unique(groups)))
    estimates: list[float] = []
    for k, own in enumerate(predictions[:_RESAMPLED_REPLICAS]):
        if not members and weights is None:
            samples = generator.integers(n_rows, size=(_RESAMPLES, n_rows))
            values = metric.of_samples(task, *_arrays(own), samples)
            if reference:
                values = values - metric.of_samples(task, *_arrays(reference[k]), samples)
        else:
            drawn: Iterable[NDArray[np.int64]] = (
                [
                    np.concatenate([members[m] for m in chosen])
                    for chosen in generator.integers(len(members), size=(_RESAMPLES, len(members)))
                ]
                if members
                else generator.integers(n_rows, size=(_RESAMPLES, n_rows))
            )
            values = np.array([score_of_rows(task, metric, own, rows, weights) for rows in drawn])
            if reference:
                other = [score_of_rows(task, metric, reference[k], rows, weights) for rows in drawn]
                values = values - np.array(other)
        values = values[np.isfinite(values)]
        estimates.append(float(values.std(ddof=1)) if len(values) > 1 else 0.0)
    return float(np.mean(estimates)) * scale


def score_of_rows(
    task: Task,
    metric: Metric,
    predictions: Predictions,
    rows: NDArray[np.int64] | None = None,
    weights: NDArray[np.float64] | None = None,
) -> float:
    """Compute the score of stored predictions.

    Args:
        task: Prediction task.
        metric: Metric of the score.
        predictions: Predictions on stored rows.
        rows: Positions of the rows to score, within the stored rows. Default: all stored rows.
        weights: Case weight of every row of the environment, whether or not its prediction is stored.
            Default: equal weights.
    """
    logits, targets = _arrays(predictions)
    rows = np.arange(len(targets)) if rows is None else rows
    if weights is None:
        return metric.compute(task, logits[rows], targets[rows])
    stored = weights[evenly_spaced(predictions.of, len(targets)).numpy()]
    if not stored[rows].any():
        return math.nan
    return metric.compute(task, logits[rows], targets[rows], stored[rows])


def _arrays(predictions: Predictions) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return writable copies of stored logits and targets."""
    targets = predictions.targets.astype(np.int64 if predictions.logits.ndim == 2 else np.float32)
    return predictions.logits.copy(), targets
