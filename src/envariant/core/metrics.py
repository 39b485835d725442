"""Metrics of prediction quality, computed from logits and targets.

To add a metric, add an entry to `METRICS`.
"""

import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, softmax
from scipy.stats import rankdata
from torch import Tensor

from envariant.core.errors import EnvariantError, unknown_name
from envariant.core.multi_target import MultiLabel, MultiOutputRegression
from envariant.core.tasks import Binary, Multiclass, Regression, Task

Array = NDArray[Any]

_BINS = 15
_UNIT, _POSITIVE = (0.0, 1.0), (0.0, np.inf)


@final
@dataclass(frozen=True)
class Metric:
    """Measure of prediction quality on a set of rows.

    Attributes:
        name: Name of the metric in tables, figures and options.
        higher_is_better: Whether higher values are better.
        compute: Function that returns the metric, given the task, logits (`[rows]` or `[rows, outputs]`),
            targets (`[rows, …]`) and, optionally, case weights (`[rows]`). A row of weight 2 counts as two
            equal rows. The value is NaN if the metric is undefined, such as AUROC with a single class.
        tasks: Task classes for which the metric is defined.
        bounds: Smallest and largest possible value.
        unit: Unit of the values; "" for dimensionless values.
        number_format: Python format specification for printed values.
        notable_difference: Smallest difference worth mentioning; None if this difference depends on the scale
            of the target.
        compute_samples: Function that returns the metric of many samples of rows at once. It takes the
            arguments of `compute`, except that the case weights are replaced by row indices
            `[samples, rows]`. None: `compute` is called for each sample.
    """

    name: str
    higher_is_better: bool
    compute: Callable[..., float]
    tasks: tuple[type[Task], ...] = (Binary, Multiclass)
    bounds: tuple[float, float] = _POSITIVE
    unit: str = ""
    number_format: str = ".3f"
    notable_difference: float | None = 0.01
    compute_samples: Callable[[Task, Array, Array, Array], Array] | None = None

    @property
    def for_regression(self) -> bool:
        """Whether the metric applies to real-valued targets rather than classes."""
        return Regression in self.tasks

    @property
    def sign(self) -> float:
        """Sign of an improvement: 1 if higher values are better, else −1."""
        return 1.0 if self.higher_is_better else -1.0

    @property
    def largest_difference(self) -> float:
        """Largest possible difference between two values."""
        return self.bounds[1] - self.bounds[0]

    def of_samples(self, task: Task, logits: Array, targets: Array, samples: Array) -> Array:
        """Return the metric of each sample of rows; `samples` contains row indices, `[samples, rows]`."""
        if self.compute_samples is not None:
            return self.compute_samples(task, logits, targets, samples)
        return np.array([self.compute(task, logits[rows], targets[rows]) for rows in samples])

    def gain(self, value: float, reference: float) -> float:
        """Return the improvement of `value` over `reference`; negative if `value` is worse."""
        return self.sign * (value - reference)

    def best(self, values: Iterable[float]) -> float:
        """Return the best of several values."""
        return max(values) if self.higher_is_better else min(values)

    def worst(self, values: Iterable[float]) -> float:
        """Return the worst of several values."""
        return min(values) if self.higher_is_better else max(values)

    def format(self, value: float) -> str:
        """Format a value for tables and sentences; "–" if it is NaN or infinite."""
        return format(value, self.number_format) if np.isfinite(value) else "–"


def metric_named(name: str) -> Metric:
    """Return a metric by its name in `METRICS`; case is ignored, and "r2" stands for R².

    Raises:
        EnvariantError: If the name is unknown.
    """
    by_text = {_plain(key): known for key, known in METRICS.items()}
    if not isinstance(name, str) or _plain(name) not in by_text:
        raise unknown_name("metric", str(name), METRICS)
    return by_text[_plain(name)]


def metric(name: str, task: Task) -> Metric:
    """Return a metric by its name, and check that it applies to the task; see `metric_named`.

    Raises:
        EnvariantError: If the name is unknown, or the metric does not apply to the task.
    """
    selected = metric_named(name)
    if not isinstance(task, selected.tasks):
        applicable = ", ".join(m.name for m in METRICS.values() if isinstance(task, m.tasks))
        problem = f"metric '{name}' does not apply to {task.name} tasks"
        raise EnvariantError(f"{problem}; use one of {applicable}")
    return selected


def default_metric(task: Task) -> Metric:
    """Return the metric recorded during training: accuracy for classification, else squared error."""
    return METRICS[task.metric]


def probabilities(logits: Array) -> Array:
    """Return class probabilities `[rows, classes]` from logits, `[rows]` or `[rows, classes]`."""
    if logits.ndim == 1:
        return np.stack([expit(-logits), expit(logits)], axis=1)
    return softmax(logits, axis=1)


def _plain(name: str) -> str:
    # Compatibility form: ² becomes 2.
    return unicodedata.normalize("NFKC", name).casefold()


def _mean(values: Array, weights: Array | None) -> float:
    return float(values.mean() if weights is None else np.average(values, weights=weights))


def _scores(task: Task, logits: Array, targets: Array) -> Tensor:
    return task.scores(torch.from_numpy(logits), torch.from_numpy(targets)).double()


def _mean_score(task: Task, logits: Array, targets: Array, weights: Array | None = None) -> float:
    scores = _scores(task, logits, targets)
    return float(scores.mean()) if weights is None else _mean(scores.numpy(), weights)


def _mean_scores(task: Task, logits: Array, targets: Array, samples: Array) -> Array:
    return _scores(task, logits, targets).numpy()[samples].mean(axis=1)


def _log_losses(task: Task, logits: Array, targets: Array) -> Tensor:
    # The task may be trained with another loss, such as label smoothing.
    likelihood = Binary() if task.outputs == 1 else Multiclass(task.outputs)
    likelihood = MultiLabel(task.outputs) if isinstance(task, MultiLabel) else likelihood
    return likelihood.losses(torch.from_numpy(logits), torch.from_numpy(targets)).double()


def _log_loss(task: Task, logits: Array, targets: Array, weights: Array | None = None) -> float:
    losses = _log_losses(task, logits, targets)
    return float(losses.mean()) if weights is None else _mean(losses.numpy(), weights)


def _mean_log_losses(task: Task, logits: Array, targets: Array, samples: Array) -> Array:
    return _log_losses(task, logits, targets).numpy()[samples].mean(axis=1)


def _balanced_accuracy(task: Task, logits: Array, targets: Array, weights: Array | None = None) -> float:
    correct = task.scores(torch.from_numpy(logits), torch.from_numpy(targets)).numpy()
    if weights is not None:
        targets, correct, weights = targets[weights > 0], correct[weights > 0], weights[weights > 0]
    recalls = [
        correct[targets == k].mean()
        if weights is None
        else _mean(correct[targets == k], weights[targets == k])
        for k in np.unique(targets)
    ]
    return float(np.mean(recalls)) if len(recalls) > 1 else np.nan


def _auroc(task: Task, logits: Array, targets: Array, weights: Array | None = None) -> float:
    if targets.ndim > 1:
        # Mean over the labels that have both values.
        each = [_auroc(task, z, y, weights) for z, y in zip(logits.T, targets.T, strict=True)]
        return float(np.nanmean(each)) if np.isfinite(each).any() else np.nan
    if weights is not None:
        logits, targets, weights = logits[weights > 0], targets[weights > 0], weights[weights > 0]
    if logits.ndim == 1 and weights is None:
        first, second = (targets == end for end in (targets.min(), targets.max()))
        return np.nan if first.all() else _win_share(logits[second], logits[first])
    classes, counts = np.unique(targets, return_counts=True)
    if len(classes) < 2:
        return np.nan
    if weights is not None:
        scores = logits[:, None] if logits.ndim == 1 else probabilities(logits)[:, classes.astype(int)]
        # With two classes, only the second one has a column.
        columns = zip(scores.T, classes[-scores.shape[1] :], strict=True)
        return float(np.mean([_weighted_win_share(z, targets == k, weights) for z, k in columns]))
    # One-vs-rest AUROC, averaged over the classes that occur in the targets.
    positive = targets[:, None] == classes
    ranks = rankdata(probabilities(logits)[:, classes.astype(int)], axis=0)
    # The share of pairs of a positive and a negative row in which the positive one has the higher score.
    wins = (ranks * positive).sum(axis=0) - counts * (counts + 1) / 2
    return float(np.mean(wins / (counts * (len(targets) - counts))))


def _win_share(positive: Array, negative: Array) -> float:
    """Return the share of positive–negative pairs where the positive row scores higher; ties count half."""
    if np.isnan(positive).any() or np.isnan(negative).any():
        return np.nan
    ordered = np.sort(negative)
    wins = sum(np.searchsorted(ordered, positive, side).sum() for side in ("left", "right")) / 2
    return float(wins / (len(positive) * len(negative)))


def _aurocs(task: Task, logits: Array, targets: Array, samples: Array) -> Array:
    if logits.ndim > 1 or np.isnan(logits).any():
        return np.array([_auroc(task, logits[rows], targets[rows]) for rows in samples])
    # Number of distinct smaller scores, which orders rows as the scores do.
    rank = np.unique(logits, return_inverse=True)[1]
    shape, cells = (
        (len(samples), rank.max() + 1),
        rank[samples] + np.arange(len(samples))[:, None] * (rank.max() + 1),
    )
    positive = targets[samples] == targets.max()
    wins, losses = (
        np.bincount(cells[chosen], minlength=shape[0] * shape[1]).reshape(shape)
        for chosen in (positive, ~positive)
    )
    below = np.cumsum(losses, axis=1) - losses
    pairs = positive.sum(axis=1) * (~positive).sum(axis=1)
    return np.where(pairs > 0, (wins * (below + losses / 2)).sum(axis=1) / np.maximum(pairs, 1), np.nan)


def _weighted_win_share(scores: Array, positive: Array, weights: Array) -> float:
    """Return the weighted share of pairs in which the positive row has the higher score; ties count half."""
    if np.isnan(scores).any():
        return np.nan
    _, level = np.unique(scores, return_inverse=True)
    won, lost = (np.bincount(level, weights * side) for side in (positive, ~positive))
    return float(won @ (np.cumsum(lost) - lost / 2) / (won.sum() * lost.sum()))


def _calibration_error(task: Task, logits: Array, targets: Array, weights: Array | None = None) -> float:
    scores = probabilities(logits)
    confidence = scores.max(axis=1)
    correct = scores.argmax(axis=1) == targets
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    w = np.ones(len(targets)) if weights is None else weights
    gaps = np.bincount(bins, w * (correct - confidence), minlength=_BINS)
    return float(np.abs(gaps).sum() / w.sum())


def _rmse(task: Task, logits: Array, targets: Array, weights: Array | None = None) -> float:
    return float(np.sqrt(_mean_score(task, logits, targets, weights)))


def _rmses(task: Task, logits: Array, targets: Array, samples: Array) -> Array:
    return np.sqrt(_mean_scores(task, logits, targets, samples))


def _r2(task: Task, logits: Array, targets: Array, weights: Array | None = None) -> float:
    if targets.ndim > 1:
        return float(np.mean([_r2(task, z, y, weights) for z, y in zip(logits.T, targets.T, strict=True)]))
    y = targets.astype(np.float64)
    variance = float(np.var(y)) if weights is None else _mean(np.square(y - _mean(y, weights)), weights)
    error = _mean(np.square(logits - targets, dtype=np.float64), weights)
    return 1 - error / variance if variance else np.nan


def _exact_match(task: Task, logits: Array, targets: Array, weights: Array | None = None) -> float:
    right = ((logits > 0) == (targets > 0.5)).reshape(len(targets), -1).all(axis=1)
    return _mean(right.astype(np.float64), weights)


_NUMBERS, _LABELS = (Regression, MultiOutputRegression), (Binary, Multiclass, MultiLabel)
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", True, _mean_score, bounds=_UNIT, compute_samples=_mean_scores),
        # Mean recall over the classes that occur in the targets.
        Metric("balanced accuracy", True, _balanced_accuracy, bounds=_UNIT),
        # With more than two classes, the mean of the one-vs-rest AUROCs.
        Metric("AUROC", True, _auroc, _LABELS, _UNIT, compute_samples=_aurocs),
        Metric("log loss", False, _log_loss, _LABELS, unit="nats", compute_samples=_mean_log_losses),
        # Expected calibration error over 15 equal bins of confidence. Guo et al. 2017.
        Metric("calibration error", False, _calibration_error, bounds=_UNIT),
        Metric(
            "squared error",
            False,
            _mean_score,
            _NUMBERS,
            _POSITIVE,
            "target unit²",
            ".4g",
            None,
            _mean_scores,
        ),
        # With several targets, the root of their mean squared error, and the mean of their R².
        Metric("RMSE", False, _rmse, _NUMBERS, _POSITIVE, "target unit", ".4g", None, _rmses),
        Metric("R²", True, _r2, _NUMBERS, (-np.inf, 1.0)),
        # Share of right labels, and of rows whose labels are all right.
        Metric("label accuracy", True, _mean_score, (MultiLabel,), _UNIT, compute_samples=_mean_scores),
        Metric("exact match", True, _exact_match, (MultiLabel,), _UNIT),
    )
}
"""All metrics by name."""
