"""Compute confidence intervals and p-values of mean scores.

Two sources of noise are included: replicas differ in initial weights, batches and validation rows, and each
environment is only a sample of rows.
"""

import math
from collections.abc import Iterator, Sequence
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
# Largest number of row indices that are drawn at a time.
_DRAWN = 5_000_000


def mean_interval(values: Sequence[float], row_error: float, *, given_model: bool = False) -> Interval:
    """Return the mean over replicas with its 95 % confidence interval.

    Args:
        values: One value per replica.
        row_error: Standard error of the mean due to the sampling of rows.
        given_model: Whether a single replica is the model of interest itself; see `half_width`.
    """
    mean, half = float(np.mean(values)), half_width(values, row_error, 0.05, given_model=given_model)
    return Interval(mean, mean - half, mean + half, len(values))


def half_width(
    values: Sequence[float], row_error: float, level: float, *, given_model: bool = False
) -> float:
    """Return half the width of the confidence interval of a mean over replicas.

    The half width is √(a² + b²). Here, a is the standard error over replicas times a quantile of Student's t,
    whose degrees of freedom depend on the number of replicas; b is `row_error` times a quantile whose degrees
    of freedom depend on the number of resamples. With a single replica, a is 0, and the quantile in b has one
    degree of freedom.

    Args:
        values: One value per replica.
        row_error: Standard error of the mean due to the sampling of rows.
        level: Error probability of the interval, such as 0.05 for 95 % confidence.
        given_model: Whether a single replica is the model of interest itself, not one of many that training
            could have produced. Only rows are then sampled, and the quantile in b is that of several
            replicas.
    """
    n = len(values)
    replica_quantile = float(stats.t.ppf(1 - level / 2, max(1, n - 1)))
    only_rows = n > 1 or given_model
    row_quantile = float(stats.t.ppf(1 - level / 2, _RESAMPLES - 1)) if only_rows else replica_quantile
    replica_error = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    return math.hypot(replica_quantile * replica_error, row_quantile * row_error)


def p_value(differences: Sequence[float], row_error: float, *, given_model: bool = False) -> float:
    """Return the p-value of the test that the mean difference is 0.

    The p-value is the error probability at which one end of the confidence interval is 0. It is found by
    bisection.

    Args:
        differences: One difference per replica.
        row_error: Standard error of the mean difference due to the sampling of rows.
        given_model: Whether a single replica is the model of interest itself; see `half_width`.
    """

    def half(level: float) -> float:
        return half_width(differences, row_error, level, given_model=given_model)

    mean = abs(float(np.mean(differences)))
    if mean == 0 or half(_SMALLEST_P) < mean:
        return 1.0 if mean == 0 else _SMALLEST_P
    low, high = math.log(_SMALLEST_P), 0.0
    while high - low > 1e-5:
        middle = (low + high) / 2
        if half(math.exp(middle)) < mean:
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
        sides = [own, *([reference[k]] if reference else [])]
        scores = np.concatenate(
            [
                [_scores(task, metric, each, samples, members, weights) for each in sides]
                for samples in _samples(generator, len(members) or n_rows)
            ],
            axis=1,
        )
        values = scores[0] - scores[1] if reference else scores[0]
        values = values[np.isfinite(values)]
        estimates.append(float(values.std(ddof=1)) if len(values) > 1 else 0.0)
    return float(np.mean(estimates)) * scale


def _samples(generator: np.random.Generator, n_units: int) -> Iterator[NDArray[np.int64]]:
    """Yield bootstrap samples of units, `[samples, units]`, a few at a time to limit memory."""
    size = max(1, _DRAWN // n_units)
    for start in range(0, _RESAMPLES, size):
        yield generator.integers(n_units, size=(min(size, _RESAMPLES - start), n_units))


def _scores(
    task: Task,
    metric: Metric,
    predictions: Predictions,
    samples: NDArray[np.int64],
    members: Sequence[NDArray[np.int64]],
    weights: NDArray[np.float64] | None,
) -> NDArray[np.float64]:
    """Return the score of each bootstrap sample of rows or, if there are any, of groups with given rows."""
    if not members and weights is None:
        return metric.of_samples(task, *_arrays(predictions), samples)
    drawn = [np.concatenate([members[m] for m in chosen]) for chosen in samples] if members else samples
    return np.array([score_of_rows(task, metric, predictions, rows, weights) for rows in drawn])


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
