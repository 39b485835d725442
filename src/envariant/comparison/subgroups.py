"""Score subgroups, such as women and men, in environments on which models were not trained."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from envariant.analysis import statistics
from envariant.analysis.statistics import LEVEL, Interval
from envariant.comparison.baselines import Folds
from envariant.comparison.causes import number
from envariant.comparison.results import ComparisonResults
from envariant.comparison.stored_rows import Scores, StoredRows
from envariant.comparison.uncertainty import row_standard_error, score_of_rows
from envariant.core.metrics import Metric
from envariant.core.tasks import Regression, Task
from envariant.data.tables.columns import Column
from envariant.data.tables.source import TableSource
from envariant.training.store import Predictions

FEWEST_ROWS = 20
"""Smallest number of rows of a subgroup with a score."""

# Numbers with more values are divided at their quartiles.
_MOST_VALUES = 8


@final
@dataclass(frozen=True)
class SubgroupScore:
    """Out-of-domain score of one method on the rows of one subgroup, over all test environments.

    Attributes:
        column: Name of the column.
        value: Value that defines the subgroup, or a range of numbers.
        method: Name of the method.
        n_rows: Number of scored rows.
        score: Score with its interval, Bonferroni-corrected over subgroups; None if there are too few rows,
            or the metric is undefined.
        others: Score on the rows with other values of the column; NaN if undefined.
        p_value: P-value of the test that both scores are equal, Holm-corrected over subgroups.
    """

    column: str
    value: str
    method: str
    n_rows: int
    score: Interval | None = None
    others: float = math.nan
    p_value: float = 1.0

    @property
    def name(self) -> str:
        """Description of the subgroup, such as `sex = f`."""
        return f"{self.column} {self.value}" if self.value[:1] in "≤>" else f"{self.column} = {self.value}"


def find_subgroups(
    source: TableSource,
    results: ComparisonResults,
    folds: Folds,
    holdout_fraction: float,
    seeds: Sequence[int],
) -> tuple[SubgroupScore, ...]:
    """Score the baseline and the recommended method on each subgroup, in test environments.

    Args:
        source: Table of the study, including the columns that define subgroups.
        results: Results of a study, with stored predictions.
        folds: Groups of environments; the environments of a group are held out together.
        holdout_fraction: Share of rows used for validation in each training environment.
        seeds: Seed of each replica's data draw.
    """
    table = source.table
    stored = StoredRows(source, folds, holdout_fraction, seeds)
    task: Task = Regression() if stored.regression else source.task
    methods = dict.fromkeys([results.baseline_method, results.recommended])
    scores: list[SubgroupScore] = []
    for method in methods if table.subgroups else ():
        rows = [
            stored.out_of_domain(name, results.rows[method, name].out_of_domain)
            for name in results.environments
            if (method, name) in results.rows and results.rows[method, name].out_of_domain
        ]
        if rows:
            own, positions = _pooled(stored, rows, task, results.metric)
            names = {column.name: subgroup_names(column)[positions] for column in table.subgroups}
            scores += score_subgroups(own, names, method)
    return tuple(scores)


def _pooled(
    stored: StoredRows, parts: Sequence[Scores], task: Task, metric: Metric
) -> tuple["PooledRows", NDArray[np.int64]]:
    """Concatenate the predictions for several environments; also return the position of each table row."""
    values, targets = (np.concatenate(each) for each in zip(*(part.pair for part in parts), strict=True))
    rows = np.concatenate([part.rows for part in parts if part.rows is not None])
    weight, groups = stored.source.table.sample_weight, stored.groups
    return PooledRows(
        values,
        targets,
        None if groups is None else groups[rows],
        None if weight is None else weight.values[rows],
        task,
        metric,
    ), rows


@final
@dataclass(frozen=True, eq=False)
class PooledRows:
    """Predictions for the rows of all environments, with the group and the weight of each row.

    Attributes:
        values: Logits `[rows]` or `[rows, classes]`; for regression, predictions.
        targets: Targets of the task, `[rows]`.
        groups: Group of each row, such as the patient; whole groups are resampled. None: rows are
            independent.
        weights: Case weight of each row; None for equal weights.
        task: Prediction task.
        metric: Metric of the scores.
    """

    values: NDArray[Any]
    targets: NDArray[Any]
    groups: NDArray[Any] | None
    weights: NDArray[np.float64] | None
    task: Task
    metric: Metric

    def score(self, chosen: NDArray[np.bool_]) -> tuple[float, float]:
        """Return the score on the chosen rows, and its standard error."""
        part = Predictions("", "test", int(chosen.sum()), self.values[chosen], self.targets[chosen])
        groups = None if self.groups is None else self.groups[chosen]
        weights = None if self.weights is None else self.weights[chosen]
        value = score_of_rows(self.task, self.metric, part, weights=weights)
        return value, row_standard_error(self.task, self.metric, [part], groups=groups, weights=weights)


def score_subgroups(rows: PooledRows, names: Mapping[str, NDArray[Any]], method: str) -> list[SubgroupScore]:
    """Score each subgroup; intervals are Bonferroni-corrected and p-values Holm-corrected over subgroups.

    Args:
        rows: Predictions for the rows of all environments.
        names: By column, the name of the subgroup of each row, `[rows]`; "" for rows without a value.
        method: Name of the method.
    """
    return _corrected([each for column in names for each in _scores(rows, column, names[column], method)])


def _scores(own: PooledRows, column: str, names: NDArray[Any], method: str) -> Iterator[SubgroupScore]:
    """Yield the score of each subgroup of a column, without correction for multiple testing."""
    for value in dict.fromkeys(sorted(name for name in names.tolist() if name)):
        inside = names == value
        others = (names != value) & (names != "")
        count = int(inside.sum())
        result = SubgroupScore(column, value, method, count)
        if count < FEWEST_ROWS:
            yield result
            continue
        score, error = own.score(inside)
        if not math.isfinite(score):
            yield result
            continue
        half, p_value, rest = float(stats.norm.isf(LEVEL_TAIL)) * error, 1.0, math.nan
        if others.sum() >= FEWEST_ROWS:
            rest, rest_error = own.score(others)
            spread = math.hypot(error, rest_error)
            if math.isfinite(rest) and spread > 0:
                p_value = float(2 * stats.norm.sf(abs(score - rest) / spread))
        interval = Interval(score, score - half, score + half, count)
        yield replace(result, score=interval, others=rest, p_value=p_value)


LEVEL_TAIL = (1 - LEVEL) / 2
"""Probability beyond one end of an uncorrected interval."""


def _corrected(scores: Sequence[SubgroupScore]) -> list[SubgroupScore]:
    """Correct intervals (Bonferroni) and p-values (Holm) for the number of subgroups."""
    tested = [each for each in scores if each.score is not None]
    if not tested:
        return list(scores)
    widening = float(stats.norm.isf(LEVEL_TAIL / len(tested)) / stats.norm.isf(LEVEL_TAIL))
    p_values = iter(statistics.holm([each.p_value for each in tested]))
    corrected: list[SubgroupScore] = []
    for each in scores:
        if (score := each.score) is not None:
            low, high = (score.mean + widening * (end - score.mean) for end in (score.low, score.high))
            wide = Interval(score.mean, low, high, score.count)
            corrected.append(replace(each, score=wide, p_value=next(p_values)))
        else:
            corrected.append(each)
    return corrected


def subgroup_names(column: Column) -> NDArray[Any]:
    """Return the subgroup name of each row, `[rows]`; "" for missing values.

    A column of numbers or dates with more than 8 distinct values is divided at its quartiles.
    """
    texts = np.array([text or "" for text in column.texts()], dtype=object)
    values = column.values[~column.missing]
    if column.type.categorical or len(np.unique(values)) <= _MOST_VALUES:
        return texts
    cuts = np.unique(np.quantile(values, [0.25, 0.5, 0.75]))
    ends = (
        replace(column, values=cuts).texts() if column.kind == "date" else [number(c) for c in cuts.tolist()]
    )
    labels = [
        f"≤ {ends[0]}",
        *(f"> {low} to {high}" for low, high in pairwise(ends)),
        f"> {ends[-1]}",
    ]
    names = np.array(labels, dtype=object)[np.searchsorted(cuts, np.nan_to_num(column.values))]
    return np.where(column.missing, "", names)
