"""Numeric results of an evaluation: scores by model, environment and group."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import final

from envariant.analysis.calibration import Calibration
from envariant.analysis.invariance_test import InvarianceTest
from envariant.analysis.random_effects import PooledEstimate
from envariant.analysis.statistics import Interval
from envariant.comparison.results import Cell, pool_intervals
from envariant.comparison.subgroups import SubgroupScore
from envariant.core.metrics import Metric
from envariant.core.score_table import ScoreTable

LEVEL = 0.05
"""Significance level of the tests."""


@final
@dataclass(frozen=True, eq=False)
class EvaluationResults:
    """Scores of given predictions by model, environment and group.

    Attributes:
        metric: Metric of the scores.
        task: "binary", "multiclass" or "regression".
        classes: Names of the classes; for two classes, one column of probabilities is that of the second
            class. Empty for regression.
        kind: Kind of the predictions: "labels", "probabilities", "logits" or "values".
        n_rows: Number of rows by environment.
        cells: Score with its 95 % confidence interval, and gain over the first model, by model and
            environment. Undefined scores are absent; the interval is infinite if it cannot be estimated.
        overall: Score over the rows of all environments, by model.
        invariance: Test, by model, of the hypothesis that the target, given the prediction, does not depend
            on the environment.
        calibration: Calibration by model and environment; empty for predicted labels.
        groups: Scores of the groups; empty if there are no groups.
    """

    metric: Metric
    task: str
    classes: tuple[str, ...]
    kind: str
    n_rows: Mapping[str, int]
    cells: Mapping[str, Mapping[str, Cell]]
    overall: Mapping[str, Cell]
    invariance: Mapping[str, InvarianceTest]
    calibration: Mapping[str, Mapping[str, Calibration]]
    groups: tuple[SubgroupScore, ...] = field(default=())

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models."""
        return tuple(self.cells)

    @property
    def environments(self) -> tuple[str, ...]:
        """Names of the environments, in order."""
        return tuple(self.n_rows)

    @property
    def scored(self) -> tuple[str, ...]:
        """Names of the environments in which every model has a score."""
        return tuple(name for name in self.n_rows if all(name in own for own in self.cells.values()))

    @property
    def n_replicas(self) -> int:
        """Largest number of replicas of a model."""
        return max(len(cell.ood_values) for cell in self.overall.values())

    def worst(self, model: str) -> tuple[str, Cell]:
        """Return the environment with a model's worst score, and the score.

        Args:
            model: Name of the model.
        """
        return min(self.cells[model].items(), key=lambda item: self.metric.sign * item[1].ood_score.mean)

    def worst_group(self, model: str) -> SubgroupScore | None:
        """Return the group with a model's worst score; None if no group has a score.

        This is the worst-group score of Sagawa et al. 2020 (Group DRO), over all environments.

        Args:
            model: Name of the model.
        """
        own = [(g, g.score.mean) for g in self.groups if g.method == model and g.score is not None]
        worst = min(own, key=lambda pair: self.metric.sign * pair[1], default=None)
        return None if worst is None else worst[0]

    @cached_property
    def best_model(self) -> str:
        """Model with the best score in its worst environment; the first of equal ones."""
        return max(self.models, key=lambda model: self.metric.sign * self.worst(model)[1].ood_score.mean)

    def over_environments(self, model: str) -> PooledEstimate | None:
        """Pool a model's scores, and predict its score in the next environment (random effects).

        The squared standard error of each environment is the mean variance per row, divided by the number of
        rows. Variances that are estimated from few rows depend on the score itself, for example 0 if all rows
        are correct, and would exaggerate the differences between environments.

        None if fewer than two environments have a score, or none has an interval.

        Args:
            model: Name of the model.
        """
        scores = {name: (cell.ood_score, self.n_rows[name]) for name, cell in self.cells[model].items()}
        known = [((score.high - score.low) / 2, rows) for score, rows in scores.values() if is_known(score)]
        if not known:
            return None
        # A half width h of n rows is √(v / n); weighting v = h² n by n favors large environments.
        variance = sum(half**2 * rows**2 for half, rows in known) / sum(rows for _, rows in known)
        return pool_intervals([(score.mean, math.sqrt(variance / rows)) for score, rows in scores.values()])

    def varies(self, model: str) -> bool:
        """Return whether a model's scores differ significantly between environments (Cochran's Q).

        Args:
            model: Name of the model.
        """
        pooled = self.over_environments(model)
        return pooled is not None and pooled.p_value < LEVEL

    def possible(self, interval: Interval, *, difference: bool = False) -> Interval:
        """Clip the interval of a score, or of a difference of scores, to possible values."""
        largest = self.metric.largest_difference
        return interval.clipped(*((-largest, largest) if difference else self.metric.bounds))

    def table(self) -> ScoreTable:
        """Return a table of scores, formatted as in publications, with one row per model."""
        values = {m: {name: cell.ood_values for name, cell in own.items()} for m, own in self.cells.items()}
        averaged = self.scored if 0 < len(self.scored) < len(self.environments) else None
        return ScoreTable(
            self.metric.name,
            self.metric.higher_is_better,
            values,
            self.environments,
            "Scores of the given predictions",
            averaged,
        )


def is_known(interval: Interval) -> bool:
    """Return whether an interval could be estimated."""
    return math.isfinite(interval.low) and math.isfinite(interval.high)
