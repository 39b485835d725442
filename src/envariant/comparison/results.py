"""Numeric results of a comparison: scores by method and test environment, drops and gains."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, final

import numpy as np
from scipy import stats

from envariant.analysis import statistics
from envariant.analysis.random_effects import PooledEstimate, pool_estimates
from envariant.analysis.statistics import Interval
from envariant.comparison.data_summary import DataSummary
from envariant.comparison.expected_scores import ExpectedScores
from envariant.core.display import Displayed, Summary, named
from envariant.core.metrics import Metric
from envariant.core.score_table import ScoreTable
from envariant.training.store import Predictions

LEVEL = 0.05
"""Significance level of gains over the baseline."""
ORDINARY = ("linear", "boosted-trees", "erm")
"""Ordinary methods, the simplest first; the baseline is chosen among them by in-domain scores."""


@final
@dataclass(frozen=True)
class Cell:
    """Results of one method in one environment.

    Attributes:
        ood_score: Mean out-of-domain score of the replicas, which were not trained on the environment, with
            its confidence interval. The interval includes two sources of noise: replicas differ, and rows are
            only a sample.
        id_score: Mean in-domain score of replicas that were trained on the environment, with its interval.
            They are scored on the environment's validation rows.
        gain: Gain over the baseline, positive if better; None for the baseline, or if a score is absent.
        p_value: P-value of the hypothesis that there is no gain, Holm-corrected over all methods and
            environments.
        ood_values: Out-of-domain scores of the replicas, by replica index.
    """

    ood_score: Interval
    id_score: Interval
    gain: Interval | None = None
    p_value: float | None = None
    ood_values: Mapping[int, float] = field(default_factory=dict[int, float], repr=False)

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
        limits: Smallest and largest possible drop, given the in-domain score and the range of the metric.
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
        """Confidence interval of the drop, clipped to the range of possible drops."""
        return Interval(self.mean, self.mean - self.half_width, self.upper, 2).clipped(*self.limits)


@final
@dataclass(frozen=True)
class ColumnImportance:
    """Decrease in performance after the values of a column are shuffled or replaced.

    Decreases are in units of the metric, and positive if the score gets worse.

    Attributes:
        in_domain: Decrease after shuffling the values among validation rows of training environments.
        out_of_domain: Decrease after shuffling the values among rows of a test environment.
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
        in_domain: Predictions on validation rows of the environment, one set per replica. The models were
            trained on the other rows of the environment.
        out_of_domain: Predictions on rows of the environment, one set per replica, all for the same rows.
            The models were not trained on the environment.
        others: Predictions by the same models as `out_of_domain`, but on validation rows of the training
            environments. Each replica has a mapping from environment name to predictions.
    """

    in_domain: tuple[Predictions, ...]
    out_of_domain: tuple[Predictions, ...]
    others: tuple[Mapping[str, Predictions], ...] = ()


@final
@dataclass(frozen=True, eq=False, repr=False)
class ComparisonResults(Displayed):
    """Scores, drops and gains of all methods, and properties of the table.

    Attributes:
        metric: Metric of the scores.
        environments: Names of the test environments.
        cells: Results by method and environment; combinations without scores are absent.
        importance: Column importance by method and column.
        selected_trials: By method, the index of the trial that was selected most often over all environments
            and replicas.
        missing: Reasons for absent results.
        n_replicas: Number of replicas.
        baseline_method: Name of the method with which all others are compared. It is the simplest method in
            `ORDINARY` whose in-domain score is within one standard error of the best.
        second: Results for a second metric (log loss, or AUROC if the metric is log loss), with the same
            baseline; None for regression.
        not_applicable: Reasons why requested methods cannot be run.
        not_tried: Requested methods that were not run because the time budget was used up.
        data: Properties of the table, such as shift and column stability.
        settings: Settings of the study.
        networks: Names of the network architectures by method; predictors have none.
        rows: Stored predictions by method and environment.
        causes: Reasons for the baseline's drop by environment.
        remedies: Remedies and their measured gains, in the order of `remedies.ranked`.
        expected: Expected and observed scores of the baseline by environment.
        subgroups: Scores of subgroups; empty if none were requested.
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
    expected: ExpectedScores = field(default_factory=lambda: ExpectedScores({}))
    subgroups: tuple[Any, ...] = ()

    @property
    def baseline(self) -> Mapping[str, Cell]:
        """Results of the baseline by environment."""
        return self.cells[self.baseline_method]

    @property
    def relevant_difference(self) -> float:
        """Smallest relevant difference between scores: 0.02; for RMSE, 5 % of the baseline's worst RMSE."""
        if self.metric.name in ("squared error", "RMSE"):
            return 0.05 * abs(self.worst(self.baseline_method)[1].ood_score.mean)
        return 0.02

    def worst(self, method: str) -> tuple[str, Cell]:
        """Return the environment with a method's worst out-of-domain score, and its results there."""
        return min(self.cells[method].items(), key=lambda item: self.metric.sign * item[1].ood_score.mean)

    def hardest_first(self) -> list[str]:
        """Return the environments sorted by the baseline's out-of-domain score, the worst first."""
        return sorted(self.baseline, key=lambda name: self.metric.sign * self.baseline[name].ood_score.mean)

    def mean(self, method: str) -> float:
        """Return the method's mean out-of-domain score over environments."""
        return float(np.mean([cell.ood_score.mean for cell in self.cells[method].values()]))

    def scores(self) -> ScoreTable:
        """Return a table of out-of-domain scores, formatted as in publications, with one row per method."""
        values = {
            m: {name: cell.ood_values for name, cell in cells.items()} for m, cells in self.cells.items()
        }
        return ScoreTable(
            self.metric.name,
            self.metric.higher_is_better,
            values,
            self.environments,
            "Out-of-domain scores",
            notes=("Hyperparameters by invariance selection.",),
        )

    def _display(self) -> Summary:
        facts = {"baseline": self.baseline_method, "recommended": self.recommended}
        return replace(
            self.scores().summary(),
            title=f"ComparisonResults ({self.metric.name})",
            brief={"methods": named(self.cells), "environments": named(self.environments)},
            facts=facts,
        )

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
        """Random-effects mean of the baseline's drops, with a prediction interval for the next environment.

        None if there are fewer than two measured drops.
        """
        drops = (self.drop(cell) for cell in self.baseline.values())
        return pool_intervals([(drop.mean, drop.half_width) for drop in drops])

    def pooled_gain(self, method: str) -> PooledEstimate | None:
        """Pool the gain of a method over environments; None if there are fewer than two measured gains."""
        gains = [cell.gain for cell in self.cells[method].values() if cell.gain is not None]
        return pool_intervals([(gain.mean, (gain.high - gain.low) / 2) for gain in gains])

    def possible(self, interval: Interval, *, difference: bool = False) -> Interval:
        """Clip the interval of a score, or of a difference of scores, to possible values."""
        largest = self.metric.largest_difference
        return interval.clipped(*((-largest, largest) if difference else self.metric.bounds))

    @cached_property
    def significantly_better(self) -> tuple[str, ...]:
        """Methods that can be recommended instead of the baseline.

        Such a method is significantly better in the baseline's worst environment or in the mean over
        environments. Its worst and mean scores are better than the baseline's, its mean score is better than
        the constant prediction's, and it is no worse in the second metric. The method with the best
        worst-environment score comes first.
        """
        if not self.is_complete(self.baseline_method):
            return ()
        better = [m for m in self.cells if m in self._significant and self._holds_everywhere(m)]
        return tuple(sorted(better, key=lambda m: -self.metric.sign * self.worst(m)[1].ood_score.mean))

    @property
    def recommended(self) -> str:
        """Recommended method; the baseline if `significantly_better` is empty.

        The candidates are the first method of `significantly_better` and all others in it that are about as
        good: at most `relevant_difference` worse in the worst-environment score, and at most
        `relevant_difference` / 2 worse in the mean score. Of these candidates, the one that comes first in
        the study is recommended; the study lists ordinary methods first.
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
        """Holm-corrected p-value, by method, of the hypothesis that the mean gain over environments is 0."""
        others = [m for m in self.cells if m != self.baseline_method and self.is_complete(m)]
        pooled = {m: estimate for m in others if (estimate := self.pooled_gain(m)) is not None}
        corrected = statistics.holm([_two_sided(each) for each in pooled.values()])
        return dict(zip(pooled, corrected, strict=True))

    @cached_property
    def _significant(self) -> frozenset[str]:
        """Methods with a significant gain in the baseline's worst environment or on average."""
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
        """Return whether a method meets all conditions of `significantly_better` except significance."""
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


def pool_intervals(estimates: Sequence[tuple[float, float]]) -> PooledEstimate | None:
    """Pool pairs of mean and half width of a 95 % confidence interval; None with fewer than two."""
    known = [(mean, half / 1.96) for mean, half in estimates if math.isfinite(mean) and half > 0]
    return pool_estimates(*map(list, zip(*known, strict=True))) if len(known) > 1 else None


def _two_sided(estimate: PooledEstimate) -> float:
    """Return the two-sided p-value of the test that the mean is 0, from Student's t distribution."""
    freedom = estimate.n_environments - 1
    return float(2 * stats.t.sf(abs(estimate.mean) / estimate.error, freedom)) if estimate.error else 1.0
