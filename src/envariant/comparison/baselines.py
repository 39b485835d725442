"""Scores of constant predictions, and classes that occur in test but not in training environments."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envariant.core.errors import listed
from envariant.core.metrics import Metric
from envariant.core.tasks import Binary, Regression, Task
from envariant.data.tables.table import Table
from envariant.training.record import MOST_UNSEEN

Array = NDArray[np.float64]
Folds = Sequence[Sequence[str]]
"""Groups of environments; the environments of a group are held out together."""


def baseline_scores(table: Table, task: Task, metric: Metric, folds: Folds) -> Mapping[str, float]:
    """Return, by environment, the score of a constant prediction learned from the training environments.

    For regression, the prediction is the mean target. For classes, it consists of the class frequencies,
    after one row is added to each class so that no frequency is 0. Environments with an undefined score are
    omitted.

    Args:
        table: Table with targets and environments.
        task: Prediction task.
        metric: Metric of the scores.
        folds: Groups of environments; the environments of a group are held out together.
    """
    scores: dict[str, float] = {}
    weighted = table.sample_weight is not None
    weights = _split(table, folds, table.sample_weight.values if table.sample_weight else np.ones(len(table)))
    for (environment, own, others), (_, own_w, others_w) in zip(_split(table, folds), weights, strict=True):
        weight = (own_w,) if weighted else ()
        if not own_w.any():
            scores[environment] = np.nan
            continue
        if isinstance(task, Regression):
            own, others = ((part - task.center) / task.scale for part in (own, others))
            mean = others.mean() if not weight else np.average(others, weights=others_w)
            scores[environment] = metric.compute(task, np.full(len(own), mean), own, *weight)
            continue
        # Add one row per class, so that no frequency is 0.
        frequencies = np.bincount(others.astype(int), others_w, minlength=len(table.classes)) + 1.0
        logits = np.log(frequencies / frequencies.sum())
        binary = isinstance(task, Binary)
        prediction: Any = logits[1] - logits[0] if binary else logits
        predictions = np.tile(prediction, len(own) if binary else (len(own), 1))
        scores[environment] = metric.compute(
            task, predictions, own if binary else own.astype(np.int64), *weight
        )
    return {name: scores[name] for name in table.environments if np.isfinite(scores.get(name, np.nan))}


def baseline_name(metric: Metric) -> str:
    """Return the name of the constant prediction for a metric, such as "majority-class baseline"."""
    if metric.for_regression:
        return "mean-target baseline"
    if metric.name in ("accuracy", "balanced accuracy"):
        return "majority-class baseline"
    return "class-frequency baseline"


def unseen_classes(table: Table, task: Task, folds: Folds) -> Mapping[str, tuple[str, ...]]:
    """Return each environment's classes that do not occur in the training environments of its fold.

    The training environments of a fold are those on which models are trained when the fold is held out.
    Environments without such classes are omitted; for regression, the result is empty.
    """
    if isinstance(task, Regression):
        return {}
    unseen = {
        environment: tuple(table.classes[int(k)] for k in np.setdiff1d(own, others))
        for environment, own, others in _split(table, folds)
    }
    return {name: unseen[name] for name in table.environments if unseen.get(name)}


def unpredictable(table: Table, task: Task, folds: Folds) -> dict[str, str]:
    """Find test environments whose score is not interpreted, because too many rows have unseen classes.

    A class is unseen if it does not occur in the training environments. The result maps the name of each such
    environment to the reason, a sentence fragment for the report.
    """
    if isinstance(task, Regression):
        return {}
    reasons: dict[str, str] = {}
    for environment, own, others in _split(table, folds):
        unseen = ~np.isin(own, others)
        if unseen.mean() > MOST_UNSEEN:
            names = listed([f"'{table.classes[int(k)]}'" for k in np.unique(own[unseen])])
            share = f"{unseen.mean():.0%} of its rows have classes that no training environment has"
            reasons[environment] = f"no verdict, because {share} ({names})"
    return reasons


def _split(table: Table, folds: Folds, weights: Array | None = None) -> Iterator[tuple[str, Array, Array]]:
    """Yield each environment's name, its targets, and the targets of its training environments.

    If `weights` is given, weights are returned instead of targets.
    """
    targets, codes = table.targets().astype(np.float64), table.environment.values
    targets = targets if weights is None else weights
    for fold in folds:
        members = [table.environments.index(name) for name in fold]
        others = targets[table.training_rows(fold)]
        yield from ((name, targets[codes == k], others) for name, k in zip(fold, members, strict=True))
