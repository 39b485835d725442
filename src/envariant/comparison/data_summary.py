"""Measure shift, column stability and possible leakage in a table, without training any method."""

import math
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import combinations
from typing import Annotated, final

import numpy as np
from pydantic import Field, NonNegativeInt

from envariant.analysis.column_stability import ColumnStability, measure_stability
from envariant.analysis.distribution_shift import Samples, Shift, ShiftEstimate, estimate_shift, measure_shift
from envariant.comparison.baselines import Folds, unseen_classes
from envariant.comparison.data_check import Finding, check_data
from envariant.core import specs
from envariant.core.environments import Environment, EnvironmentSource
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Multiclass, Regression
from envariant.data.tables.source import TableSource
from envariant.data.tables.table import LogEntry

MOST_SHIFTS = 20
"""Largest number of environments whose shift is measured in a comparison."""

_SHIFT_TRIALS = 2


@final
@dataclass(frozen=True, eq=False)
class DataSummary:
    """Properties of the table of a comparison, such as shift, column stability and possible leakage.

    Attributes:
        target, environment_column: Names of the target column and the environment column.
        n_rows: Number of rows by environment.
        baseline_scores: Score of a constant prediction by environment.
        unseen_classes: Classes of each test environment that do not occur in its training environments.
        columns: Stability of each column, the least stable first.
        shifts: Shift between each environment (or the 20 with the worst scores) and all others, or all
            earlier ones if environments are ordered. Environments with too few rows are omitted.
        preprocessing_log: Preprocessing steps of each column.
        findings: Problems found by the data check.
        ordered: Whether environments are ordered in time.
    """

    target: str = ""
    environment_column: str = ""
    n_rows: Mapping[str, int] = field(default_factory=dict[str, int])
    baseline_scores: Mapping[str, float] = field(default_factory=dict[str, float])
    unseen_classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    columns: tuple[ColumnStability, ...] = ()
    shifts: Mapping[str, Shift] = field(default_factory=dict[str, Shift])
    preprocessing_log: tuple[LogEntry, ...] = ()
    findings: tuple[Finding, ...] = ()
    ordered: bool = False

    @property
    def new_environment(self) -> str:
        """Phrase that refers to a future environment within a sentence, such as "a new hospital".

        If environments are ordered, it is a phrase such as "the next year".
        """
        return f"{'the next' if self.ordered else 'a new'} {self.environment_column or 'environment'}"

    @property
    def leaks(self) -> tuple[Finding, ...]:
        """Findings of target leakage, by one column or by several columns together."""
        return tuple(each for each in self.findings if each.kind in ("target leak", "joint target leak"))

    @property
    def leaky_columns(self) -> tuple[str, ...]:
        """Names of columns with possible target leakage, alone or together with others."""
        return tuple(dict.fromkeys(column for each in self.leaks for column in each.columns))


def summarize(
    source: TableSource,
    folds: Folds,
    baseline_scores: Mapping[str, float],
    columns: Sequence[ColumnStability],
    hardest: Sequence[str],
    seed: int,
    findings: Sequence[Finding] | None = None,
    until: float = math.inf,
) -> DataSummary:
    """Measure shift, column stability and possible target leakage on a table.

    Args:
        source: Table of the comparison.
        folds: Groups of environments; the environments of a group are held out together.
        baseline_scores: Scores of a constant prediction, from `baselines.baseline_scores`.
        columns: Stability of each column, from `column_stability`.
        hardest: Environments sorted by the baseline's score, the worst first.
        seed: Base random seed of the shift measures.
        findings: Findings from `check_data`. Default: check the table of `source`.
        until: Deadline, as a value of `time.monotonic`, after which no further shift is measured.
    """
    table = source.table
    # Environments without a score come last.
    shifts_of = list(dict.fromkeys([*hardest, *table.environments]))[:MOST_SHIFTS]
    counts = np.bincount(table.environment.values, minlength=len(table.environments)).tolist()
    return DataSummary(
        table.target.name,
        table.environment.name,
        dict(zip(table.environments, counts, strict=True)),
        baseline_scores,
        unseen_classes(table, source.task, folds),
        tuple(columns),
        _shifts_from_others(source, shifts_of, seed, until),
        table.preprocessing_log,
        check_data(table) if findings is None else tuple(findings),
        table.ordered,
    )


def column_stability(source: TableSource) -> tuple[ColumnStability, ...]:
    """Measure how stable the relation of each column with the target is, the least stable column first."""
    drawn = source.sample(0)
    inputs, targets = (
        np.concatenate([part.numpy() for part in parts])
        for parts in zip(*((e.inputs, e.targets) for e in drawn.environments), strict=True)
    )
    return measure_stability(
        {column: inputs[:, position] for column, position in source.columns.items()},
        targets,
        np.repeat(drawn.names, [len(e) for e in drawn.environments]),
        n_classes=drawn.task.classes if isinstance(drawn.task, Multiclass) else None,
    )


def pairwise_shifts(
    source: EnvironmentSource,
    *,
    test_environments: tuple[str, ...] | None = None,
    seed: int = 0,
    n_trials: int = 3,
    legacy: bool = False,
) -> tuple[Shift, ...]:
    """Measure the shift between environments.

    All training environments together are compared with each test environment. In addition, every pair of
    training environments is compared.

    Args:
        source: Data source; each trial uses a new data draw.
        test_environments: Names of the test environments. Default: test environments of the source.
        seed: Seed of the first trial.
        n_trials: Number of trials.
        legacy: Whether to use the formulas of the 2022 paper; see `Shift`.

    Returns:
        One entry per comparison; the comparisons with test environments come first.

    Raises:
        EnvariantError: If there are fewer than two environments or too few rows, or `n_trials` is below 1.
    """
    specs.check_value(n_trials, Annotated[int, Field(ge=1, le=1000)], "shift: n_trials")
    specs.check_value(seed, NonNegativeInt, "shift: seed")
    trials: dict[tuple[str, str], list[ShiftEstimate]] = {}
    for trial in range(seed, seed + n_trials):
        drawn = source.with_test_environments(test_environments).sample(trial)
        if len(drawn.names) < 2:
            raise EnvariantError(f"{drawn.name}: measuring shift needs at least two environments, got one")
        roles = drawn.roles(test_environments)
        training = [e for e in drawn.environments if roles[e.name] == "train"]
        pairs = [(training, [e]) for e in drawn.environments if roles[e.name] == "test"]
        pairs += [([a], [b]) for a, b in combinations(training, 2)]
        for pair in pairs:
            first, second = map(_samples, pair)
            regression = isinstance(drawn.task, Regression)
            estimate = estimate_shift(first, second, regression=regression, seed=trial, legacy=legacy)
            trials.setdefault((" + ".join(first), " + ".join(second)), []).append(estimate)
    return tuple(Shift.from_trials(*names, each, legacy=legacy) for names, each in trials.items())


def _shifts_from_others(
    source: TableSource, names: Collection[str], seed: int, until: float
) -> dict[str, Shift]:
    """Measure the shift between each environment and all others (if ordered: all earlier ones).

    Environments with few rows are omitted.
    """
    drawn = source.sample(0)
    shifts: dict[str, Shift] = {}
    for position, environment in enumerate(drawn.environments):
        if environment.name not in names or (source.table.ordered and not position):
            continue
        if time.monotonic() > until:
            break
        known = drawn.environments[: position if source.table.ordered else None]
        others = _samples([each for each in known if each is not environment])
        regression = isinstance(drawn.task, Regression)
        with suppress(EnvariantError):
            shifts[environment.name] = measure_shift(
                others, _samples([environment]), regression=regression, seed=seed, n_trials=_SHIFT_TRIALS
            )
    return shifts


def _samples(environments: Sequence[Environment]) -> Samples:
    return {e.name: (e.inputs.numpy(), e.targets.numpy()) for e in environments}
