"""Steps of a comparison: choose rows, folds and metric, train in stages, and train the final model."""

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from envariant.comparison.baselines import Folds, baseline_scores, unpredictable
from envariant.comparison.metric_choice import choose_metric
from envariant.comparison.results import ORDINARY
from envariant.core.errors import EnvariantError, EnvariantWarning, listed
from envariant.core.metrics import Metric
from envariant.core.tasks import Task
from envariant.data.tables import source as table_source
from envariant.data.tables.source import TableSource
from envariant.data.tables.table import LogEntry, Table
from envariant.predictors import predictor
from envariant.saved_model import SavedModel
from envariant.studies.study import Study, begin
from envariant.studies.trials import recipe_of
from envariant.training.execution import Execution
from envariant.training.option_text import text_of
from envariant.training.store import Store, Trial
from envariant.training.train import train
from envariant.training.validation_watch import uses_validation

ALGORITHMS = (*ORDINARY, "stable-columns", "groupdro", "vrex", "irm", "coral")
"""Methods compared by default, ordinary and cheap ones first."""

FEWEST_ROWS = 5
"""Smallest number of rows per environment, so that some remain for validation."""

# Largest size of the inputs of stacked replicas, in bytes; training needs several times as much.
_STACKED_BYTES = 4e8
# Largest number of environments that are held out one at a time.
_MOST_FOLDS_OF_ONE = 12
_FOLDS = 10
# With more ordered environments, the first test has two training environments, which most methods need.
_FEW = 3
# Weight decay, passes over the training rows and bounds of the number of steps of networks, so that ERM is a
# regularized network.
_WEIGHT_DECAY = 1e-3
_PASSES, _FEWEST_STEPS, _FEWEST_BATCH = 30, 100, 8
# Largest numbers of classes and of inputs. Above them, computing methods, causes and remedies takes minutes.
_MOST_CLASSES, _MOST_INPUTS = 50, 1_000
# Largest number of environments for which all pairs are compared.
_MOST_PAIRED = 50
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}

Run = Callable[[int, float | None], None]
"""Function that executes the planned runs, given the number of runs left and the deadline."""


@final
@dataclass(frozen=True, eq=False)
class Plan:
    """Planned runs of a comparison, with metric and tasks.

    Attributes:
        study: Study with all requested runs.
        metric: Metric of the scores.
        tasks: Prediction task by test environment; environments that cannot be scored are omitted.
        baseline_scores: Score of a constant prediction by environment; empty if the metric is calibration
            error.
        undefined: Why some environments cannot be scored, one sentence each: the metric is undefined, many
            rows have classes that no training environment has, or there are too few earlier environments.
        not_applicable: Reasons why requested methods cannot be run.
    """

    study: Study
    metric: Metric
    tasks: Mapping[str, Task]
    baseline_scores: Mapping[str, float]
    undefined: tuple[str, ...]
    not_applicable: tuple[str, ...]


def plan(
    source: TableSource,
    name: str,
    algorithms: Sequence[Any],
    metric: str | None,
    n_trials: int,
    replicas: int,
    seed: int,
    options: Mapping[str, Any],
    importance_columns: tuple[str, ...] = (),
) -> Plan:
    """Plan the study of a comparison.

    Args:
        source: Table of the comparison.
        name: Name of the study.
        algorithms: All methods, sorted by cost, the cheapest first.
        metric: Name of the metric. None: `choose_metric` decides.
        n_trials: Number of trials per method.
        replicas: Number of replicas per trial.
        seed: Base random seed.
        options: Training options of all runs.
        importance_columns: Names of the columns whose importance is measured; empty for all columns.

    Raises:
        EnvariantError: If an algorithm or the metric is unknown, or no environment can be scored.
    """
    table = source.table
    chosen = choose_metric(metric, table, source.task)
    folds = make_folds(table)
    # The first fold of ordered environments has the fewest training environments.
    n_environments = len(table.environments_until(folds[0]))
    applicable, not_applicable = applicable_algorithms(algorithms, folds, n_environments)
    problems = [known.unsuitable(source.task) if (known := predictor(e)) else "" for e in applicable]
    not_applicable += tuple(f"{text_of(e)} {why}" for e, why in zip(applicable, problems, strict=True) if why)
    applicable = tuple(each for each, why in zip(applicable, problems, strict=True) if not why)
    if (slow := _slow_methods(source)) and "erm" in applicable:
        names = [name for name in slow if name in applicable]
        size = f"{len(source.table.classes)} classes and {len(source.encoder.names):,} inputs"
        not_applicable += (f"{', '.join(names)}: take minutes on {size}",) if names else ()
        applicable = tuple(each for each in applicable if each not in slow)
    if len(table.environments) > _MOST_PAIRED and "erm" in applicable and "coral" in applicable:
        # It compares every pair of environments in every step.
        not_applicable += (f"coral: takes minutes and gigabytes on {len(table.environments)} environments",)
        applicable = tuple(each for each in applicable if each != "coral")
    study = Study(
        # Sources are identified by their content, so that the folder can be moved.
        data=(source,),
        algorithms=applicable,
        name=name,
        n_trials=n_trials,
        replicas=replicas,
        test_environments=folds,
        seed=seed,
        settings=run_settings(table, options, folds[0]),
        metric=chosen.name,
        store_predictions=True,
        importance_columns=importance_columns,
    )
    constant = baseline_scores(table, source.task, chosen, folds)
    untested = untested_environments(table, folds)
    reasons = {
        name: f"{chosen.name} is undefined, because there is one class only"
        for name in table.environments
        if name not in constant and name not in untested
    }
    # No model can predict a class that it was not trained on.
    reasons |= unpredictable(table, source.task, folds)
    tasks = {n: task for n, task in tasks_by_environment(table, folds).items() if n not in reasons}
    if not tasks:
        name, reason = next(iter(reasons.items()))
        raise EnvariantError(
            f"compare: no {table.environment.name} can be tested ({name}: {reason}); use the same "
            f"spelling of classes everywhere, or another metric"
        )
    undefined = tuple(f"{name}: {reasons[name]}" for name in table.environments if name in reasons)
    if untested:
        undefined += (f"{listed(list(untested))}: not tested, because models need earlier environments",)
    # A constant prediction is perfectly calibrated and uninformative.
    informative = {} if chosen.name == "calibration error" else constant
    return Plan(study, chosen, tasks, informative, undefined, not_applicable)


def run_settings(table: Table, options: Mapping[str, Any], first_fold: Sequence[str] = ()) -> dict[str, Any]:
    """Return the training options of all runs: the requested options, and defaults for other options.

    By default, networks are trained with weight decay for about 30 passes over the rows, but for at least
    100 and at most 400 steps. A batch has at most m rows per environment, where m is the median number of
    rows in an environment, or 8 if this is larger. Networks are evaluated at the end only, unless an option
    such as early stopping uses validation scores.

    Args:
        table: Table of the comparison.
        options: Requested training options.
        first_fold: Environments of the first fold. If environments are ordered, the number of steps depends
            only on earlier rows, so that no model depends on later rows.
    """
    n_environments = len(table.environments_until(first_fold))
    known = int(table.training_rows(first_fold).sum()) if table.ordered and first_fold else len(table)
    sizes = np.bincount(table.environment.values)[:n_environments]
    batch_size = min(table_source.batch_size(n_environments), max(_FEWEST_BATCH, int(np.median(sizes))))
    rows_per_step = batch_size * max(1, n_environments - 1)
    steps = min(table_source.STEPS, max(_FEWEST_STEPS, math.ceil(_PASSES * known / rows_per_step)))
    chosen = {"steps": steps, "weight_decay": _WEIGHT_DECAY, "batch_size": batch_size, **options}
    every = None if uses_validation(chosen) else chosen["steps"] or table_source.STEPS
    return {"evaluate_every": every, **chosen}


def is_large(source: TableSource) -> bool:
    """Return whether a table has more than 50 classes, or more than 1,000 encoded inputs."""
    return len(source.table.classes) > _MOST_CLASSES or len(source.encoder.names) > _MOST_INPUTS


def _slow_methods(source: TableSource) -> tuple[str, ...]:
    """Return the ordinary methods that would take minutes, because there are many classes or inputs."""
    if len(source.table.classes) > _MOST_CLASSES:
        return ("linear", "boosted-trees", "stable-columns")
    return ("boosted-trees", "stable-columns") if is_large(source) else ()


def parse_duration(budget: str | float) -> float:
    """Convert a duration such as `90s`, `10m` or `1.5h` to seconds; numbers without a unit are seconds.

    Raises:
        EnvariantError: If `budget` is not a positive duration.
    """
    text = str(budget).strip().lower()
    unit = _UNITS.get(text[-1:], 1.0)
    try:
        seconds = float("nan" if isinstance(budget, bool) else text.rstrip("smh")) * unit
    except ValueError:
        seconds = float("nan")
    if not 0 < seconds < float("inf"):
        raise EnvariantError(f"budget: expected a duration such as 90s, 10m or 1.5h, got '{budget}'")
    return seconds


def subsample(table: Table, max_rows: int | None, seed: int) -> Table:
    """Sample rows of a table at random, and record this in the preprocessing log.

    Args:
        table: Table to sample from.
        max_rows: Largest number of rows per environment. None: all rows.
        seed: Seed of the random choice.

    Raises:
        EnvariantError: If `max_rows` is below 5.
    """
    if max_rows is not None and max_rows < FEWEST_ROWS:
        raise EnvariantError(f"max_rows: must be at least {FEWEST_ROWS}, got {max_rows}")
    counts = np.bincount(codes := table.environment.values)
    if max_rows is None or counts.max() <= max_rows:
        return table
    order = _random_order(codes, seed, independent=table.ordered)
    by_environment = order[np.argsort(codes[order], kind="stable")]
    # Random rank of each row within its environment.
    rank = np.arange(len(codes)) - np.repeat(np.cumsum(counts) - counts, counts)
    selected = np.sort(by_environment[rank < max_rows])
    rows = f"{len(selected):,} of {len(codes):,} rows, at most {max_rows:,} per environment"
    return table.rows(selected, LogEntry("", f"methods are compared on {rows}"))


def _random_order(codes: NDArray[Any], seed: int, *, independent: bool) -> NDArray[np.int64]:
    """Return the rows in random order; if `independent`, separately for each environment."""
    if not independent:
        return np.random.default_rng(seed).permutation(len(codes))
    rows = [np.flatnonzero(codes == code) for code in np.unique(codes)]
    return np.concatenate([np.random.default_rng((seed, k)).permutation(own) for k, own in enumerate(rows)])


def make_folds(table: Table) -> tuple[tuple[str, ...], ...]:
    """Build the folds. A fold consists of environments that are held out together.

    With at most 12 environments, each is a fold. If there are more, they are divided into at most 10 folds
    with similar numbers of rows.

    If environments are ordered in time, models are trained on earlier environments only. Each of the last 12
    is a fold, except the first two environments (except only the first, if there are at most three). The
    final fold is empty; its models give the in-domain score of the last environment.
    """
    names = table.environments
    if table.ordered:
        first = max(1 if len(names) <= _FEW else 2, len(names) - _MOST_FOLDS_OF_ONE)
        return (*((name,) for name in names[first:]), ())
    if len(names) <= _MOST_FOLDS_OF_ONE:
        return tuple((name,) for name in names)
    folds: list[list[str]] = [[] for _ in range(min(_FOLDS, len(names) // 2))]
    sizes = np.bincount(table.environment.values, minlength=len(names))
    for k, code in enumerate(np.argsort(-sizes, kind="stable").tolist()):
        # Alternate the direction, so that no fold gets the largest environment of every round.
        round_, position = divmod(k, len(folds))
        folds[position if round_ % 2 == 0 else -1 - position].append(names[code])
    return tuple(tuple(fold) for fold in folds)


def untested_environments(table: Table, folds: Folds) -> tuple[str, ...]:
    """Return the environments that are in no fold: the first ones in time, which are not tested."""
    tested = {name for fold in folds for name in fold}
    return tuple(name for name in table.environments if name not in tested)


def applicable_algorithms(
    algorithms: Sequence[Any], folds: Folds, n_environments: int
) -> tuple[tuple[Any, ...], tuple[str, ...]]:
    """Return the algorithms that have enough training environments, and reasons to exclude the others.

    Raises:
        EnvariantError: If an algorithm is unknown.
    """
    left = n_environments - max(len(fold) for fold in folds)
    needed = [
        1 if predictor(each) is not None else recipe_of(each).default.minimum_environments
        for each in algorithms
    ]
    reasons: list[str] = []
    for minimum in sorted(set(needed)):
        lacking = [text_of(each) for each, least in zip(algorithms, needed, strict=True) if least == minimum]
        if minimum > left:
            verb = "needs" if len(lacking) == 1 else "need"
            reasons.append(
                f"{', '.join(lacking)} {verb} {minimum} training environments, but only {left} would be left"
            )
    applicable = (each for each, least in zip(algorithms, needed, strict=True) if least <= left)
    return tuple(applicable), tuple(reasons)


def tasks_by_environment(table: Table, folds: Folds) -> dict[str, Task]:
    """Return the prediction task of each test environment.

    For regression, the task depends on the fold, because targets are standardized by the mean and standard
    deviation of the fold's training environments.
    """
    return {
        environment: table_source.task_of(table, table.training_rows(fold))
        for fold in folds
        for environment in fold
    }


def choose_execution(study: Study, source: TableSource) -> Execution | None:
    """Choose the execution mode; return None to let the engine time both modes.

    For the default algorithms, stacked execution is known to be fast on tables, so no timing is needed.
    """
    if not all(algorithm in ALGORITHMS for algorithm in study.algorithms):
        return None
    bytes_per_replica = 4.0 * len(source.table) * len(source.encoder.names)
    group = max(1, min(study.n_trials * study.replicas, int(_STACKED_BYTES / bytes_per_replica)))
    return Execution("stacked", group, "the memory that a table's rows need is known") if group > 1 else None


def run_within_budget(folder: Path, study: Study, deadline: float | None, run: Run) -> Study:
    """Train a study in growing stages until the deadline: add methods, then replicas, then trials.

    Args:
        folder: Folder of the study.
        study: Study with all requested methods, sorted by cost, the cheapest first.
        deadline: Stopping time, as a value of `time.monotonic`; None: train the whole study at once. One
            replica of the first method is always trained.
        run: Function that executes the planned runs.

    Returns:
        Completed part of the study. All of its methods have the same numbers of trials and replicas.
    """
    stages = _stages(study) if deadline is not None else [study]
    completed: Study | None = None
    start = time.monotonic()
    for stage in stages:
        now = time.monotonic()
        if completed is not None and deadline is not None:
            growth = _size(stage) - _size(completed)
            first = len(stage.algorithms) > len(completed.algorithms)
            needed = 0.0 if first else (now - start) * growth / _size(completed)
            if now + needed > deadline:
                break
        if not _trained(folder, stage, deadline if completed is not None else None, run):
            break
        completed = stage
    return completed or stages[0]


def _stages(study: Study) -> list[Study]:
    """Return growing parts of a study: more and more methods with one replica, then replicas and trials."""
    names, first = study.algorithms, replace(study, n_trials=1, replicas=1)
    methods = [replace(first, algorithms=names[:k]) for k in range(1, len(names) + 1)]
    replicas = [replace(study, n_trials=1, replicas=n) for n in (2, study.replicas) if n <= study.replicas]
    trials = (replace(study, n_trials=n) for n in (2, 4, 8, 16, 32) if n < study.n_trials)
    stages = [*methods, *replicas, *trials, study]
    return [stage for k, stage in enumerate(stages) if not k or _size(stage) > _size(stages[k - 1])]


def _size(study: Study) -> int:
    return len(study.algorithms) * study.n_trials * study.replicas


def _trained(folder: Path, study: Study, deadline: float | None, run: Run) -> bool:
    """Train the planned runs of a study; return whether all runs have ended."""
    with begin(folder, study) as store:
        counts = store.counts(study.declares)
    run(counts["planned"] + counts["running"], deadline)
    with Store(folder) as store:
        counts = store.counts(study.declares)
    return not counts["planned"] + counts["running"]


def train_final_model(
    table: Table, algorithm: Any, trial: Trial, seed: int, options: Mapping[str, Any]
) -> SavedModel:
    """Train one method on all environments of a table, with the hyperparameters of a trial.

    Args:
        table: Table with all rows.
        algorithm: Name of the algorithm or predictor, or the object itself.
        trial: Trial with the hyperparameters.
        seed: Base random seed.
        options: Training options of all runs.
    """
    source = TableSource(table, "table")
    if (known := predictor(algorithm)) is not None:
        return SavedModel.of_predictor(source, known, seed=seed)
    with warnings.catch_warnings():
        # The study has already issued the same warnings about schedules and model.
        warnings.simplefilter("ignore", EnvariantWarning)
        result = train(
            source, algorithm, hyperparameters=trial.hyperparameters, learning_rate=trial.learning_rate,
            test_environments=(), execution="sequential", seed=seed, progress=False,
            holdout_fraction=Study.holdout_fraction if uses_validation(options) else 0.0,
            **{key: value for key, value in run_settings(table, options).items() if key != "learning_rate"},
        )  # fmt: skip
    return SavedModel.of(source, result)
