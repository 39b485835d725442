"""Numeric results of a comparison: scores by method and test environment, drops and gains."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, final

import numpy as np
import pandas as pd

from envariant.analysis import statistics
from envariant.analysis.statistics import Interval
from envariant.comparison.data_summary import DataSummary
from envariant.comparison.uncertainty import mean_interval, p_value, row_standard_error
from envariant.core.errors import EnvariantError
from envariant.core.metrics import Metric
from envariant.core.tasks import Task
from envariant.predictors import predictor
from envariant.studies.selection import Invariance, SelectedRun, SelectionResult, select
from envariant.studies.significance import BASELINE
from envariant.studies.study import Study
from envariant.training.history import FULL, REPLACED, SHUFFLED, SUBSAMPLE
from envariant.training.run_spec import text_of
from envariant.training.store import Predictions, Store

LEVEL = 0.05
"""Significance level of gains over ERM."""


@final
@dataclass(frozen=True)
class Cell:
    """Results of one method in one environment.

    Attributes:
        ood_score: Out-of-domain score: mean over replicas trained without the environment. The interval
            accounts for variation between replicas and between rows.
        id_score: In-domain score: mean over replicas trained on the environment, on its validation rows.
        gain: Gain over ERM, positive if better; None for ERM and if either score is absent.
        p_value: P-value of the test of no gain, Holm-corrected over all methods and environments.
    """

    ood_score: Interval
    id_score: Interval
    gain: Interval | None = None
    p_value: float | None = None

    @property
    def significant(self) -> bool:
        """Whether the gain (or loss) over ERM is significant."""
        return self.p_value is not None and self.p_value < LEVEL


@final
@dataclass(frozen=True)
class Drop:
    """Drop from the in-domain to the out-of-domain score, positive if the score gets worse.

    Attributes:
        mean: Estimated drop; NaN if the in-domain score is absent.
        half_width: Half the width of the 95 % confidence interval.
        limits: Smallest and largest possible drop, given the in-domain score and the metric's range.
    """

    mean: float
    half_width: float
    limits: tuple[float, float] = (-math.inf, math.inf)

    @property
    def upper(self) -> float:
        """Upper end of the confidence interval, which may exceed the largest possible drop."""
        return self.mean + self.half_width

    @property
    def interval(self) -> Interval:
        """Confidence interval, limited to possible drops."""
        return Interval(self.mean, self.mean - self.half_width, self.upper, 2).clipped(*self.limits)


@final
@dataclass(frozen=True)
class ColumnImportance:
    """Decrease in performance after the values of a column are shuffled or replaced.

    Decreases are in units of the metric, and positive if the score gets worse.

    Attributes:
        in_domain: Decrease after shuffling among validation rows of training environments.
        out_of_domain: Decrease after shuffling among rows of a test environment.
        replaced: Decrease after replacing the values in a test environment with values from training
            environments; negative if the original values mislead the model.
    """

    in_domain: float
    out_of_domain: float
    replaced: float


@final
@dataclass(frozen=True, eq=False)
class ComparisonResults:
    """Scores, drops and gains of all methods, and measurements on the data.

    Attributes:
        metric: Metric of the scores.
        environments: Names of the test environments.
        cells: Results by method and environment, without combinations that could not be measured.
        importance: Column importance by method and column.
        selected_trials: Trial selected most often over environments and replicas, by method.
        missing: Reasons for absent results.
        n_replicas: Number of replicas.
        predictors: Names of the predictors, such as boosted trees, which serve as additional baselines.
        not_applicable: Reasons why requested methods cannot be run.
        data: Measurements on the data that need no trained method.
        settings: Settings of the study.
        networks: Models of each method, by the method's name; predictors have none.
    """

    metric: Metric
    environments: tuple[str, ...]
    cells: Mapping[str, Mapping[str, Cell]]
    importance: Mapping[str, Mapping[str, ColumnImportance]]
    selected_trials: Mapping[str, int]
    missing: tuple[str, ...]
    n_replicas: int
    predictors: tuple[str, ...] = ()
    not_applicable: tuple[str, ...] = ()
    data: DataSummary = field(default_factory=DataSummary)
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    networks: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])

    @property
    def baseline(self) -> Mapping[str, Cell]:
        """Results of ERM by environment."""
        return self.cells[BASELINE]

    @property
    def relevant_difference(self) -> float:
        """Smallest relevant difference of two scores: 5 % of ERM's worst error, or 0.02 for other metrics."""
        if self.metric.name in ("squared error", "RMSE"):
            return 0.05 * abs(self.worst(BASELINE)[1].ood_score.mean)
        return 0.02

    def worst(self, method: str) -> tuple[str, Cell]:
        """Return the environment with the method's worst out-of-domain score, and its results there."""
        return min(self.cells[method].items(), key=lambda item: self.metric.sign * item[1].ood_score.mean)

    def hardest_first(self) -> list[str]:
        """Return the environments sorted by ERM's out-of-domain score, the worst first."""
        return sorted(self.baseline, key=lambda name: self.metric.sign * self.baseline[name].ood_score.mean)

    def mean(self, method: str) -> float:
        """Return the method's mean out-of-domain score over environments."""
        return float(np.mean([cell.ood_score.mean for cell in self.cells[method].values()]))

    def is_complete(self, method: str) -> bool:
        """Return whether the method has results in every environment."""
        return len(self.cells.get(method, {})) == len(self.environments)

    def drop(self, cell: Cell) -> Drop:
        """Return the drop from the in-domain to the out-of-domain score."""
        ends = [(e.high - e.low) / 2 for e in (cell.ood_score, cell.id_score) if math.isfinite(e.high)]
        gain, score = self.metric.gain, cell.id_score.mean
        low, high = sorted(gain(score, bound) for bound in self.metric.bounds)
        return Drop(gain(score, cell.ood_score.mean), math.hypot(*ends), (low, high))

    def possible(self, interval: Interval, *, difference: bool = False) -> Interval:
        """Return the interval of a score, or of a difference of scores, limited to possible values."""
        largest = self.metric.largest_difference
        return interval.clipped(*((-largest, largest) if difference else self.metric.bounds))

    @cached_property
    def significantly_better(self) -> tuple[str, ...]:
        """Methods significantly better in ERM's worst environment and with a better worst score than ERM.

        Sorted by worst score, the best first. Predictors are included.
        """
        if not self.is_complete(BASELINE):
            return ()
        hardest, erm = self.worst(BASELINE)
        better = [
            method
            for method in self.cells
            if method != BASELINE
            and self.is_complete(method)
            and (cell := self.cells[method][hardest]).significant
            and cell.gain is not None
            and cell.gain.mean > 0
            and self.metric.gain(self.worst(method)[1].ood_score.mean, erm.ood_score.mean) > 0
        ]
        return tuple(sorted(better, key=lambda m: -self.metric.sign * self.worst(m)[1].ood_score.mean))


@final
class _ScoreKey(NamedTuple):
    """Key of one recorded score."""

    run: int
    step: int
    environment: str
    role: str
    kind: str
    column: str


Scores = Mapping[_ScoreKey, float]


@final
@dataclass(frozen=True)
class _ModelScores:
    """Scores of one method's selected models in one environment, by replica.

    Attributes:
        ood: Out-of-domain scores.
        predictions: Out-of-domain predictions; all replicas predict the same rows.
        id: In-domain scores, one per fold that excludes the environment.
    """

    ood: dict[int, float] = field(default_factory=dict[int, float])
    predictions: dict[int, Predictions] = field(default_factory=dict[int, Predictions])
    id: dict[int, list[float]] = field(default_factory=dict[int, list[float]])


def gather(
    store: Store, study: Study, tasks: Mapping[str, Task], metric: Metric, n_trials: int
) -> ComparisonResults:
    """Collect the results of all finished runs.

    Args:
        store: Store of the study, which may contain runs of larger studies.
        study: The requested study.
        tasks: Task by test environment.
        metric: Metric of the scores.
        n_trials: Use only the first `n_trials` trials of every algorithm.

    Raises:
        EnvariantError: If no run of ERM is finished.
    """
    table = store.table()
    labels = [text_of(algorithm) for algorithm in study.algorithms]
    requested = table["data"].isin(list(study.sources)) & table["algorithm"].isin(labels)
    table = table[requested & (table["trial"] < n_trials) & (table["replica"] < study.replicas)]
    selected = select(table, Invariance())
    missing = _missing(selected)
    chosen = [(each, each.choice) for each in selected if isinstance(each.choice, SelectedRun)]
    if not any(each.algorithm == BASELINE for each, _ in chosen):
        raise EnvariantError(
            f"compare: no run of ERM has finished ({missing[0]}); repeat the call with a larger budget"
        )
    scores = _scores_by_run(store.history(sorted({choice.run for _, choice in chosen})), metric)
    models: dict[tuple[str, str], _ModelScores] = {}
    for each, choice in chosen:
        predictions = store.predictions(choice.run)
        for name in tasks:
            role = "test" if name in each.test_environments else "validation"
            score = scores.get(_ScoreKey(choice.run, choice.step, name, role, FULL, ""))
            if score is None:
                continue
            model = models.setdefault((each.algorithm, name), _ModelScores())
            if role == "validation":
                model.id.setdefault(each.replica, []).append(score)
                continue
            model.ood[each.replica] = score
            if (name, role) in predictions:
                model.predictions[each.replica] = predictions[name, role]
    methods = list(dict.fromkeys(each.algorithm for each, _ in chosen))
    return ComparisonResults(
        metric,
        tuple(tasks),
        _cells(models, methods, tasks, metric),
        _importance(chosen, scores, metric),
        {method: _most_frequent(c.trial for e, c in chosen if e.algorithm == method) for method in methods},
        missing,
        max(len(model.ood) for model in models.values()),
        tuple(text_of(each) for each in study.algorithms if predictor(each) is not None),
        networks={name: each for name, each in store.networks().items() if name in methods},
    )


def _scores_by_run(history: pd.DataFrame, metric: Metric) -> Scores:
    """Return the recorded values of the metric by key; no other function depends on the history's layout."""
    rows = history[history["metric"] == metric.name].dropna(subset=["value"])
    keys = rows[list(_ScoreKey._fields)].itertuples(index=False, name=None)
    return dict(zip(map(_ScoreKey._make, keys), rows["value"].astype(float), strict=True))


def _missing(selected: Sequence[SelectionResult]) -> tuple[str, ...]:
    """Return one line per algorithm and reason without a selected run."""
    reasons: dict[tuple[str, str], dict[tuple[str, ...], None]] = {}
    for each in selected:
        if not isinstance(each.choice, SelectedRun):
            reasons.setdefault((each.algorithm, each.choice.reason), {})[each.test_environments] = None
    lines: list[str] = []
    for (algorithm, reason), folds in reasons.items():
        names = "; ".join(", ".join(fold) for fold in list(folds)[:3])
        more = f" and {len(folds) - 3} more" if len(folds) > 3 else ""
        lines.append(f"{algorithm}, test environments {names}{more}: {reason}")
    return tuple(lines)


def _most_frequent(trials: Iterable[int]) -> int:
    """Return the most frequent trial; ties go to the lowest trial number."""
    counts = Counter(trials)
    return min(counts, key=lambda trial: (-counts[trial], trial))


def _cells(
    models: Mapping[tuple[str, str], _ModelScores],
    methods: Sequence[str],
    tasks: Mapping[str, Task],
    metric: Metric,
) -> dict[str, dict[str, Cell]]:
    cells: dict[str, dict[str, Cell]] = {}
    gains: dict[tuple[str, str], tuple[Interval, float]] = {}
    for method in methods:
        for name, task in tasks.items():
            own, erm = models.get((method, name)), models.get((BASELINE, name))
            if own is None or not own.ood:
                continue
            row_error = row_standard_error(task, metric, _in_order(own.predictions))
            id_score = statistics.interval([float(np.mean(values)) for values in own.id.values()])
            cells.setdefault(method, {})[name] = Cell(
                mean_interval(list(own.ood.values()), row_error), id_score
            )
            if erm is not None and method != BASELINE and (common := sorted(own.ood.keys() & erm.ood)):
                differences = [metric.gain(own.ood[k], erm.ood[k]) for k in common]
                both = own.predictions.keys() & erm.predictions.keys()
                pair = (_in_order(side.predictions, both) for side in (own, erm))
                row_error = row_standard_error(task, metric, *pair)
                gains[method, name] = mean_interval(differences, row_error), p_value(differences, row_error)
    corrected = statistics.holm([p for _, p in gains.values()])
    for ((method, name), (gain, _)), p in zip(gains.items(), corrected, strict=True):
        cell = cells[method][name]
        cells[method][name] = Cell(cell.ood_score, cell.id_score, gain, p)
    return cells


def _in_order(
    predictions: Mapping[int, Predictions], replicas: Iterable[int] | None = None
) -> list[Predictions]:
    return [predictions[k] for k in sorted(predictions if replicas is None else replicas)]


def _importance(
    chosen: Sequence[tuple[SelectionResult, SelectedRun]], scores: Scores, metric: Metric
) -> dict[str, dict[str, ColumnImportance]]:
    """Return the mean importance of each column over a method's selected models."""
    method_of = {(choice.run, choice.step): each.algorithm for each, choice in chosen}
    losses: dict[tuple[str, str], dict[str, list[float]]] = {}
    for key, score in scores.items():
        method = method_of.get((key.run, key.step))
        unchanged = scores.get(key._replace(kind=SUBSAMPLE, column=""))
        if method is None or unchanged is None or key.kind not in (SHUFFLED, REPLACED):
            continue
        by_kind = losses.setdefault((method, key.column), {"validation": [], "test": [], REPLACED: []})
        by_kind[REPLACED if key.kind == REPLACED else key.role].append(metric.gain(unchanged, score))
    importance: dict[str, dict[str, ColumnImportance]] = {}
    for (method, column), by_kind in losses.items():
        means = [float(np.mean(values)) if values else math.nan for values in by_kind.values()]
        importance.setdefault(method, {})[column] = ColumnImportance(*means)
    return importance
