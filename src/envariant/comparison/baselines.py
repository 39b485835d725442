"""What a comparison is measured against where there is no model: the answer that is usual elsewhere.

A model may lose nothing at a new place because it knows nothing anywhere.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from envariant.core.metrics import Metric
from envariant.core.tasks import Binary, Regression, Task
from envariant.data.tables.columns import Column
from envariant.data.tables.table import Table

Array = NDArray[np.float64]

# From here on a column by itself says nearly all of the target; and rows that it takes to say so.
_NEARLY = 0.99
_ENOUGH = 30


def rows(table: Table) -> dict[str, int]:
    """Of each environment."""
    counts = np.bincount(table.environment.values, minlength=len(table.environments))
    return dict(zip(table.environments, counts.tolist(), strict=True))


def guesses(
    table: Table, task: Task, metric: Metric, test_environments: Sequence[Sequence[str]]
) -> Mapping[str, float]:
    """At each place, the score of one answer for all: the mean, or shares of classes, of the other places.

    Args:
        table: what is compared on.
        task: of it.
        metric: scores are in.
        test_environments: places, as they are held out together.
    """
    found: dict[str, float] = {}
    for place, own, others in _parts(table, test_environments):
        if isinstance(task, Regression):
            own, others = ((part - task.center) / task.scale for part in (own, others))
            found[place] = metric.compute(task, np.full(len(own), others.mean()), own)
            continue
        classes = len(table.classes)
        # One more of each, so that no share is 0.
        shares = np.bincount(others.astype(int), minlength=classes) + 1.0
        logits = np.log(shares / shares.sum())
        binary = isinstance(task, Binary)
        said = np.full(len(own), logits[1] - logits[0]) if binary else np.tile(logits, (len(own), 1))
        found[place] = metric.compute(task, said, own if binary else own.astype(np.int64))
    return {place: found[place] for place in table.environments if np.isfinite(found[place])}


def only(
    table: Table, task: Task, test_environments: Sequence[Sequence[str]]
) -> Mapping[str, tuple[str, ...]]:
    """By place, the classes of the target that occur at none of those that are not held out with it."""
    if isinstance(task, Regression):
        return {}
    names = table.classes
    found = {
        place: tuple(names[int(k)] for k in np.setdiff1d(own, others))
        for place, own, others in _parts(table, test_environments)
    }
    return {place: found[place] for place in table.environments if found[place]}


def giving_away(table: Table) -> tuple[str, ...]:
    """Columns that by themselves say nearly all of the target: the same under another name, or its result.

    Of numbers, those whose order is that of a binary or real target; of categories, those within which it
    hardly varies; and those that are missing just where it is one of two classes.
    """
    targets = table.targets().astype(np.float64)
    return tuple(column.name for column in table.columns if _gives_away(column, targets, table.task))


def _gives_away(column: Column, targets: Array, task: str) -> bool:
    there = ~column.missing
    own, values = targets[there], column.values[there]
    if task == "binary" and not there.all() and len(targets) >= _ENOUGH:
        same = float(np.mean(there == targets))
        if _nearly_all(max(same, 1 - same), targets):
            return True
    if len(own) < _ENOUGH or not np.ptp(own) or not np.ptp(values):
        return False
    if column.kind == "category":
        _, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
        if counts.mean() < _ENOUGH:
            return False
        if task == "regression":
            left = own - (np.bincount(codes, own) / counts)[codes]
            return bool(left.var() <= (1 - _NEARLY) * own.var())
        each = np.zeros((len(counts), int(targets.max()) + 1))
        np.add.at(each, (codes, own.astype(int)), 1)
        return _nearly_all(float(each.max(axis=1).sum()) / len(own), own)
    if task == "regression":
        ranks = np.corrcoef(stats.rankdata(values), stats.rankdata(own))[0, 1]
        return bool(abs(ranks) >= _NEARLY)
    if task == "binary":
        ranks, several = stats.rankdata(values), int(own.sum())
        area = (ranks[own == 1].sum() - several * (several + 1) / 2) / (several * (len(own) - several))
        return bool(max(area, 1 - area) >= _NEARLY)
    return False


def _nearly_all(right: float, targets: Array) -> bool:
    """Whether nearly all of the mistakes are gone that always saying the most frequent class would make."""
    wrong = 1 - float(np.bincount(targets.astype(int)).max()) / len(targets)
    return wrong > 0 and 1 - right <= (1 - _NEARLY) * wrong


def _parts(table: Table, test_environments: Sequence[Sequence[str]]) -> list[tuple[str, Array, Array]]:
    """Each place, its targets, and those of the places that are not held out with it."""
    targets, codes = table.targets().astype(np.float64), table.environment.values
    place = {name: code for code, name in enumerate(table.environments)}
    together = [np.isin(codes, [place[name] for name in names]) for names in test_environments]
    return [
        (name, targets[codes == place[name]], targets[~away])
        for names, away in zip(test_environments, together, strict=True)
        for name in names
    ]
