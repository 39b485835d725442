"""Numeric results of a comparison: scores by method and test environment, drops and gains."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, final

import numpy as np
import pandas as pd
from scipy import stats

from envariant.analysis import statistics
from envariant.analysis.random_effects import PooledEstimate, pool_estimates
from envariant.analysis.statistics import Interval
from envariant.comparison.data_summary import DataSummary
from envariant.comparison.uncertainty import mean_interval, p_value, row_standard_error, score_of_rows
from envariant.core import metrics
from envariant.core.errors import EnvariantError
from envariant.core.metrics import Metric
from envariant.core.tasks import Task
from envariant.studies.selection import Invariance, SelectedRun, SelectionResult, select
from envariant.studies.study import Study
from envariant.training.history import FULL, REPLACED, SHUFFLED, SUBSAMPLE
from envariant.training.run_spec import text_of
from envariant.training.store import Predictions, Store

LEVEL = 0.05
"""Significance level of gains over the baseline."""
ORDINARY = ("linear", "boosted-trees", "erm")
"""Ordinary methods, the simplest first; the baseline is chosen among them by in-domain scores."""


@final
@dataclass(frozen=True)
class Cell:
    """Results of one method in one environment.

    Attributes:
        ood_score: Out-of-domain score: mean over replicas trained without the environment. The interval
            accounts for variation between replicas and between rows.
        id_score: In-domain score: mean over replicas trained on the environment, on its validation rows.
        gain: Gain over the baseline, positive if better; None for the baseline and if a score is absent.
        p_value: P-value of the test of no gain, Holm-corrected over all methods and environments.
    """

    ood_score: Interval
    id_score: Interval
    gain: Interval | None = None
    p_value: float | None = None

    @property
    def significant(self) -> bool:
        """Whether the gain (or loss) over the baseline is significant."""
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
class ScoredRows:
    """Predictions of one method on rows of one environment.

    Attributes:
        in_domain: Predictions on validation rows by models that were trained on other rows of the
            environment, one set per replica.
        out_of_domain: Predictions by models that were not trained on the environment, one set per replica,
            on the same rows.
        others: Predictions of the same models as `out_of_domain`, on the validation rows of their training
            environments, by environment.
    """

    in_domain: tuple[Predictions, ...]
    out_of_domain: tuple[Predictions, ...]
    others: tuple[Mapping[str, Predictions], ...] = ()


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
        baseline_method: Ordinary method with the best in-domain score, to which all others are compared.
        second: Results for a second metric, a proper score, with the same baseline; None if there is none.
        not_applicable: Reasons why requested methods cannot be run.
        not_tried: Requested methods that the time budget did not allow.
        data: Measurements on the data that need no trained method.
        settings: Settings of the study.
        networks: Models of each method, by the method's name; predictors have none.
        rows: Stored predictions by method and environment.
        causes: Reasons for the baseline's drop by environment.
        remedies: Measured remedies, the largest gain first.
    """

    metric: Metric
    environments: tuple[str, ...]
    cells: Mapping[str, Mapping[str, Cell]]
    importance: Mapping[str, Mapping[str, ColumnImportance]]
    selected_trials: Mapping[str, int]
    missing: tuple[str, ...]
    n_replicas: int
    baseline_method: str = "erm"
    second: "ComparisonResults | None" = None
    not_applicable: tuple[str, ...] = ()
    not_tried: tuple[str, ...] = ()
    data: DataSummary = field(default_factory=DataSummary)
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    networks: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    rows: Mapping[tuple[str, str], ScoredRows] = field(default_factory=dict[tuple[str, str], ScoredRows])
    causes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    remedies: tuple[Any, ...] = ()

    @property
    def baseline(self) -> Mapping[str, Cell]:
        """Results of the baseline by environment."""
        return self.cells[self.baseline_method]

    @property
    def relevant_difference(self) -> float:
        """Smallest relevant difference of two scores: 5 % of the worst error, or 0.02 for other metrics."""
        if self.metric.name in ("squared error", "RMSE"):
            return 0.05 * abs(self.worst(self.baseline_method)[1].ood_score.mean)
        return 0.02

    def worst(self, method: str) -> tuple[str, Cell]:
        """Return the environment with the method's worst out-of-domain score, and its results there."""
        return min(self.cells[method].items(), key=lambda item: self.metric.sign * item[1].ood_score.mean)

    def hardest_first(self) -> list[str]:
        """Return the environments sorted by the baseline's out-of-domain score, the worst first."""
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

    @cached_property
    def pooled_drop(self) -> PooledEstimate | None:
        """Mean of the baseline's drop over environments, and its prediction interval for the next one.

        None with fewer than two measured drops.
        """
        drops = (self.drop(cell) for cell in self.baseline.values())
        return _pooled([(drop.mean, drop.half_width) for drop in drops])

    def pooled_gain(self, method: str) -> PooledEstimate | None:
        """Return the mean gain of a method over environments; None with fewer than two measured gains."""
        gains = [cell.gain for cell in self.cells[method].values() if cell.gain is not None]
        return _pooled([(gain.mean, (gain.high - gain.low) / 2) for gain in gains])

    def possible(self, interval: Interval, *, difference: bool = False) -> Interval:
        """Return the interval of a score, or of a difference of scores, limited to possible values."""
        largest = self.metric.largest_difference
        return interval.clipped(*((-largest, largest) if difference else self.metric.bounds))

    @cached_property
    def significantly_better(self) -> tuple[str, ...]:
        """Methods that can be recommended instead of the baseline, by worst score, the best first.

        Such a method is significantly better in the baseline's worst environment or in the mean over
        environments, has a better worst and mean score, and is no worse in the second metric. Its mean score
        is better than that of the constant prediction.
        """
        if not self.is_complete(self.baseline_method):
            return ()
        better = [m for m in self.cells if m in self._significant and self._holds_everywhere(m)]
        return tuple(sorted(better, key=lambda m: -self.metric.sign * self.worst(m)[1].ood_score.mean))

    @property
    def recommended(self) -> str:
        """Recommended method: the first of `significantly_better`, or the baseline if there is none.

        If other such methods are no worse by a relevant difference, in the worst and the mean score, the
        first in the order of the study is recommended, which begins with the ordinary methods.
        """
        if not (better := self.significantly_better):
            return self.baseline_method
        best, gain = better[0], self.metric.gain
        similar = (
            m
            for m in self.cells
            if m in better
            and gain(self.worst(best)[1].ood_score.mean, self.worst(m)[1].ood_score.mean)
            <= self.relevant_difference
            and gain(self.mean(best), self.mean(m)) <= self.relevant_difference / 2
        )
        return next(similar, best)

    @cached_property
    def pooled_p_values(self) -> Mapping[str, float]:
        """P-values of no mean gain over environments, by method; Holm-corrected over methods."""
        others = [m for m in self.cells if m != self.baseline_method and self.is_complete(m)]
        pooled = {m: estimate for m in others if (estimate := self.pooled_gain(m)) is not None}
        corrected = statistics.holm([_two_sided(each) for each in pooled.values()])
        return dict(zip(pooled, corrected, strict=True))

    @cached_property
    def _significant(self) -> frozenset[str]:
        """Methods with a significant gain in the baseline's worst environment or in the mean (Holm)."""
        others = [m for m in self.cells if m != self.baseline_method and self.is_complete(m)]
        hardest, _ = self.worst(self.baseline_method)
        there = {m: self.cells[m][hardest] for m in others}
        significant = {
            m for m, c in there.items() if c.significant and c.gain is not None and c.gain.mean > 0
        }
        least = self.relevant_difference / 2
        significant |= {
            m
            for m, p in self.pooled_p_values.items()
            if p < LEVEL and (estimate := self.pooled_gain(m)) is not None and estimate.mean >= least
        }
        return frozenset(significant)

    def _holds_everywhere(self, method: str) -> bool:
        """Return whether worst and mean score and the second metric agree that a method is better."""
        scores = [
            (self.worst(method)[1].ood_score.mean, self.worst(self.baseline_method)[1].ood_score.mean),
            (self.mean(method), self.mean(self.baseline_method)),
        ]
        constant = [value for name, value in self.data.baseline_scores.items() if name in self.environments]
        scores += [(self.mean(method), float(np.mean(constant)))] if constant else []
        second = self.second
        if second is not None and second.is_complete(method):
            gain = second.metric.gain(second.mean(method), second.mean(self.baseline_method))
            if gain < 0:
                return False
        return all(self.metric.gain(own, other) > 0 for own, other in scores)


def _pooled(estimates: Sequence[tuple[float, float]]) -> PooledEstimate | None:
    """Pool means with half the widths of their 95 % confidence intervals; None with fewer than two."""
    known = [(mean, half / 1.96) for mean, half in estimates if math.isfinite(mean) and half > 0]
    return pool_estimates(*map(list, zip(*known, strict=True))) if len(known) > 1 else None


def _two_sided(estimate: PooledEstimate) -> float:
    """Return the p-value of a zero mean (Student, one degree of freedom less than environments)."""
    freedom = estimate.n_environments - 1
    return float(2 * stats.t.sf(abs(estimate.mean) / estimate.error, freedom)) if estimate.error else 1.0


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
        validation: In-domain predictions, of the first fold.
        others: Predictions on validation rows of the training environments, by environment.
        id: In-domain scores, one per fold that trains on the environment.
    """

    ood: dict[int, float] = field(default_factory=dict[int, float])
    predictions: dict[int, Predictions] = field(default_factory=dict[int, Predictions])
    validation: dict[int, Predictions] = field(default_factory=dict[int, Predictions])
    others: dict[int, dict[str, Predictions]] = field(default_factory=dict[int, dict[str, Predictions]])
    id: dict[int, list[float]] = field(default_factory=dict[int, list[float]])

    @property
    def id_scores(self) -> list[float]:
        """Mean in-domain score of each replica, in order."""
        return [float(np.mean(self.id[replica])) for replica in sorted(self.id)]


def gather(store: Store, study: Study, tasks: Mapping[str, Task], metric: Metric) -> ComparisonResults:
    """Collect the results of all finished runs.

    Args:
        store: Store of the study, which may contain runs of larger studies.
        study: Study of the results: other methods, trials and replicas in the store are ignored.
        tasks: Task by test environment.
        metric: Metric of the scores.

    Raises:
        EnvariantError: If no run of an ordinary method is finished.
    """
    table = store.table()
    labels = [text_of(algorithm) for algorithm in study.algorithms]
    requested = table["data"].isin(list(study.sources)) & table["algorithm"].isin(labels)
    table = table[requested & (table["trial"] < study.n_trials) & (table["replica"] < study.replicas)]
    selected = select(table, Invariance())
    missing = _missing(selected)
    chosen = [(each, each.choice) for each in selected if isinstance(each.choice, SelectedRun)]
    if not any(each.algorithm in ORDINARY for each, _ in chosen):
        raise EnvariantError(
            f"compare: no run of an ordinary method has finished ({missing[0]}); repeat the call with a "
            f"larger budget"
        )
    scores = _scores_by_run(store.history(sorted({choice.run for _, choice in chosen})), metric)
    stored = {choice.run: store.predictions(choice.run) for _, choice in chosen}

    def recorded(choice: SelectedRun, name: str, role: str) -> float | None:
        return scores.get(_ScoreKey(choice.run, choice.step, name, role, FULL, ""))

    models = _models(chosen, stored, tasks, recorded)
    methods = list(dict.fromkeys(each.algorithm for each, _ in chosen))
    baseline = choose_baseline(
        {m: {n: models[m, n].id_scores for n in tasks if (m, n) in models} for m in methods if m in ORDINARY},
        metric,
    )
    return ComparisonResults(
        metric,
        tuple(tasks),
        _cells(models, methods, tasks, metric, baseline),
        _importance(chosen, scores, metric),
        {method: _most_frequent(c.trial for e, c in chosen if e.algorithm == method) for method in methods},
        missing,
        max(len(model.ood) for model in models.values()),
        baseline,
        _second_results(chosen, stored, tasks, metric, baseline),
        networks={name: each for name, each in store.networks().items() if name in methods},
        rows={
            key: ScoredRows(
                tuple(_in_order(model.validation)),
                tuple(_in_order(model.predictions)),
                tuple(model.others[k] for k in sorted(model.predictions)),
            )
            for key, model in models.items()
        },
    )


Chosen = Sequence[tuple[SelectionResult, SelectedRun]]
StoredPredictions = Mapping[int, Mapping[tuple[str, str], Predictions]]


def _models(
    chosen: Chosen,
    stored: StoredPredictions,
    tasks: Mapping[str, Task],
    score_of: Callable[[SelectedRun, str, str], float | None],
) -> dict[tuple[str, str], _ModelScores]:
    """Return scores and predictions by method and environment."""
    models: dict[tuple[str, str], _ModelScores] = {}
    for each, choice in chosen:
        for name in tasks:
            role = "test" if name in each.test_environments else "validation"
            score = score_of(choice, name, role)
            if score is None:
                continue
            model = models.setdefault((each.algorithm, name), _ModelScores())
            own = stored[choice.run].get((name, role))
            if role == "validation":
                model.id.setdefault(each.replica, []).append(score)
            else:
                model.ood[each.replica] = score
                trained = {e: p for (e, r), p in stored[choice.run].items() if r == "validation"}
                model.others.setdefault(each.replica, trained)
            if own is not None:
                # The validation rows of a replica are the same in all folds.
                (model.validation if role == "validation" else model.predictions).setdefault(
                    each.replica, own
                )
    return models


def _second_results(
    chosen: Chosen, stored: StoredPredictions, tasks: Mapping[str, Task], metric: Metric, baseline: str
) -> ComparisonResults | None:
    """Return scores of the stored predictions in a proper score, or in AUROC if the metric is proper."""
    if metric.for_regression:
        return None
    second = metrics.METRICS["AUROC" if metric.name == "log loss" else "log loss"]

    def computed(choice: SelectedRun, name: str, role: str) -> float | None:
        own = stored[choice.run].get((name, role))
        value = np.nan if own is None else score_of_rows(tasks[name], second, own)
        return value if np.isfinite(value) else None

    models = _models(chosen, stored, tasks, computed)
    methods = list(dict.fromkeys(method for method, _ in models))
    if baseline not in methods:
        return None
    cells = _cells(models, methods, tasks, second, baseline)
    return ComparisonResults(second, tuple(tasks), cells, {}, {}, (), 1, baseline)


def choose_baseline(scores: Mapping[str, Mapping[str, Sequence[float]]], metric: Metric) -> str:
    """Return the simplest ordinary method whose in-domain score is within one standard error of the best.

    The one-standard-error rule (Breiman et al. 1984) compares means over environments; the standard error is
    that of the paired differences to the best method over environments and replicas.

    Args:
        scores: In-domain scores of each replica by method and environment. The best method is chosen among
            those with the largest number of environments.
        metric: Metric of the scores.
    """
    most = max(len(own) for own in scores.values())
    complete = {m: own for m, own in scores.items() if len(own) == most}
    order = [m for m in ORDINARY if m in complete]
    if not most:
        return order[0]
    means = {m: float(np.mean([np.mean(values) for values in complete[m].values()])) for m in order}
    best = max(order, key=lambda m: metric.sign * means[m])
    for method in order:
        differences = [
            metric.gain(a, b)
            for name, values in complete[best].items()
            for a, b in zip(values, complete[method].get(name, ()), strict=False)
        ]
        error = (
            float(np.std(differences, ddof=1)) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
        )
        if metric.gain(means[best], means[method]) <= error:
            return method
    return best


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
    baseline: str,
) -> dict[str, dict[str, Cell]]:
    cells: dict[str, dict[str, Cell]] = {}
    gains: dict[tuple[str, str], tuple[Interval, float]] = {}
    for method in methods:
        for name, task in tasks.items():
            own, reference = models.get((method, name)), models.get((baseline, name))
            if own is None or not own.ood:
                continue
            row_error = row_standard_error(task, metric, _in_order(own.predictions))
            id_score = statistics.interval(own.id_scores)
            cells.setdefault(method, {})[name] = Cell(
                mean_interval(list(own.ood.values()), row_error), id_score
            )
            if reference is None or method == baseline:
                continue
            if common := sorted(own.ood.keys() & reference.ood):
                differences = [metric.gain(own.ood[k], reference.ood[k]) for k in common]
                both = own.predictions.keys() & reference.predictions.keys()
                pair = (_in_order(side.predictions, both) for side in (own, reference))
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


def _importance(chosen: Chosen, scores: Scores, metric: Metric) -> dict[str, dict[str, ColumnImportance]]:
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
