"""What answers are worth: the metrics people ask for, from a model's logits and the targets of some rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, softmax
from sklearn.metrics import roc_auc_score

from envariant.core.errors import EnvariantError, unknown_name
from envariant.core.tasks import Regression, Task

Array = NDArray[Any]

_BINS = 15


@final
@dataclass(frozen=True)
class Metric:
    """A number for how good answers are.

    Attributes:
        name: as people know it.
        higher_is_better: which way is up.
        of: task, logits `[rows]` or `[rows, classes]` and targets `[rows]` to the number; NaN where it is not
            defined, as where a class is missing.
        regression: whether it is for real targets; the others are for classes.
    """

    name: str
    higher_is_better: bool
    of: Callable[[Task, Array, Array], float]
    regression: bool = False


def metric(name: str, task: Task) -> Metric:
    """The metric of that name, for a task.

    Raises:
        EnvariantError: there is none, or it is for other tasks.
    """
    if name not in METRICS:
        raise unknown_name("metric", name, METRICS)
    found = METRICS[name]
    if found.regression != isinstance(task, Regression):
        fitting = [m.name for m in METRICS.values() if m.regression == isinstance(task, Regression)]
        raise EnvariantError(f"metric '{name}': is not for {task.name}; take one of {', '.join(fitting)}")
    return found


def probabilities(task: Task, logits: Array) -> Array:
    """Of each class, `[rows, classes]`.

    Args:
        task: with classes.
        logits: `[rows]` of a binary task, or `[rows, classes]`.
    """
    if logits.ndim == 1:
        return np.stack([expit(-logits), expit(logits)], axis=1)
    return softmax(logits, axis=1)


def _scores(task: Task, logits: Array, targets: Array) -> float:
    return float(task.scores(torch.from_numpy(logits), torch.from_numpy(targets)).double().mean())


def _losses(task: Task, logits: Array, targets: Array) -> float:
    return float(task.losses(torch.from_numpy(logits), torch.from_numpy(targets)).double().mean())


def _balanced(task: Task, logits: Array, targets: Array) -> float:
    right = task.scores(torch.from_numpy(logits), torch.from_numpy(targets)).numpy()
    shares = [right[targets == k].mean() for k in np.unique(targets)]
    return float(np.mean(shares)) if len(shares) > 1 else np.nan


def _auroc(task: Task, logits: Array, targets: Array) -> float:
    present = np.unique(targets).astype(int)
    if len(present) < 2:
        return np.nan
    if logits.ndim == 1:
        return float(roc_auc_score(targets, logits))
    shares = probabilities(task, logits)
    # Each class against the rest, where there are both: the mean over the classes that are present.
    return float(np.mean([roc_auc_score(targets == k, shares[:, k]) for k in present]))


def _calibration(task: Task, logits: Array, targets: Array) -> float:
    shares = probabilities(task, logits)
    sure = shares.max(axis=1)
    right = shares.argmax(axis=1) == targets
    bins = np.minimum((sure * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(bins, right - sure, minlength=_BINS)
    return float(np.abs(gaps).sum() / len(targets))


def _rmse(task: Task, logits: Array, targets: Array) -> float:
    return float(np.sqrt(_scores(task, logits, targets)))


def _r2(task: Task, logits: Array, targets: Array) -> float:
    spread = float(np.var(targets.astype(np.float64)))
    return 1 - float(np.mean(np.square(logits - targets, dtype=np.float64))) / spread if spread else np.nan


METRICS: dict[str, Metric] = {
    each.name: each
    for each in (
        Metric("accuracy", True, _scores),
        Metric("balanced accuracy", True, _balanced),
        Metric("AUROC", True, _auroc),
        Metric("log loss", False, _losses),
        Metric("calibration error", False, _calibration),
        Metric("squared error", False, _scores, regression=True),
        Metric("RMSE", False, _rmse, regression=True),
        Metric("R²", True, _r2, regression=True),
    )
}
"""Calibration error: how far certainty and success lie apart, over 15 bins of certainty. Guo et al. 2017."""
