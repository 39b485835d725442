"""What a comparison runs: which rows, which places at a time, in what stages, and the model that is kept."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from envariant.algorithms import composing
from envariant.core.errors import EnvariantError
from envariant.core.metrics import Metric, metric
from envariant.core.tasks import Task
from envariant.data.tables import source as table_source
from envariant.data.tables import table as tables
from envariant.data.tables.source import TableSource
from envariant.data.tables.table import LogEntry, Table
from envariant.saved_model import SavedModel
from envariant.studies.baselines import boosted_trees
from envariant.studies.significance import BASELINE
from envariant.studies.study import Study
from envariant.training.execution import Execution
from envariant.training.store import Store
from envariant.training.train import train

ALGORITHMS = (BASELINE, "irm", "vrex", "groupdro", "coral", boosted_trees.NAME)
"""What is compared unless other names are given."""

# Inputs of replicas that train side by side, in bytes; training needs several times that.
_SIDE_BY_SIDE = 4e8
FEWEST = 5
"""Rows of an environment, below which none can be held out, and nothing be said of it."""

# More places than this are held out several at a time.
_MOST_PLACES = 12
_FOLDS = 10
# Where the rarer of two classes is rarer than this, always saying the other looks good.
_RARE = 0.2
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def seconds_of(budget: str | float) -> float:
    """A time as people write it: `90s`, `10m`, `1.5h`; a bare number is seconds.

    Raises:
        EnvariantError: it is none.
    """
    text = str(budget).strip().lower()
    unit = _UNITS.get(text[-1:], 1.0)
    try:
        found = float(text.rstrip("smh")) * unit
    except ValueError:
        found = float("nan")
    if not 0 < found < float("inf"):
        raise EnvariantError(f"budget: expected a time such as 90s, 10m or 1.5h; got '{budget}'")
    return found


def thinned(table: Table, most: int | None, seed: int) -> Table:
    """At most so many rows of each environment, drawn at random, and a line in the account that says so.

    Raises:
        EnvariantError: the number is too small.
    """
    if most is not None and most < FEWEST:
        raise EnvariantError(f"rows: must be at least {FEWEST}; got {most}")
    codes = table.environment.values
    counts = np.bincount(codes)
    if most is None or counts.max() <= most:
        return table
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(codes))
    # The place of each row among those of its environment, in the order in which they were drawn.
    by_place = order[np.argsort(codes[order], kind="stable")]
    rank = np.arange(len(codes)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = np.sort(by_place[rank < most])
    line = LogEntry(
        "", f"methods are compared on {len(kept):,} of {len(codes):,} rows, at most {most:,} of a place"
    )
    return table.rows(kept, line)


def keep(table: Table, folder: Path) -> None:
    """Stores the table beside its study, unless it is there.

    Raises:
        EnvariantError: another is there.
    """
    if not (folder / "table.json").exists():
        table.write(folder)
        return
    if not _same(tables.load(folder), table):
        raise EnvariantError(
            f"{folder.parent}: holds a comparison of another table or other columns; choose another folder"
        )


def _same(there: Table, here: Table) -> bool:
    return (there.task, len(there.all_columns)) == (here.task, len(here.all_columns)) and all(
        (a.name, a.kind, a.categories) == (b.name, b.kind, b.categories)
        and np.array_equal(a.values, b.values, equal_nan=a.kind != "category")
        for a, b in zip(there.all_columns, here.all_columns, strict=True)
    )


def usual_metric(name: str | None, table: Table, source: TableSource) -> Metric:
    """The metric of that name, or what suits the target.

    Raises:
        EnvariantError: there is none of that name, or it does not suit the task.
    """
    if name is None and table.task == "regression":
        name = "RMSE"
    if name is None:
        shares = np.bincount(table.targets().astype(int)) / len(table)
        name = "AUROC" if table.task == "binary" and shares.min() < _RARE else "accuracy"
    return metric(name, source.task)


def places_at_a_time(table: Table) -> tuple[tuple[str, ...], ...]:
    """Each environment by itself; where they are many, several at a time, of about as many rows."""
    names = table.environments
    if len(names) <= _MOST_PLACES:
        return tuple((name,) for name in names)
    folds: list[list[str]] = [[] for _ in range(min(_FOLDS, len(names) // 2))]
    sizes = np.bincount(table.environment.values, minlength=len(names))
    for k, code in enumerate(np.argsort(-sizes, kind="stable").tolist()):
        # There and back, so that no fold gets the largest of every round.
        round_, place = divmod(k, len(folds))
        folds[place if round_ % 2 == 0 else -1 - place].append(names[code])
    return tuple(tuple(fold) for fold in folds)


def fitting(
    names: Sequence[str], places: Sequence[Sequence[str]], count: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of some algorithms those for which enough environments are left to train on, and why others are not.

    Raises:
        EnvariantError: a name is unknown.
    """
    left = count - max(len(test_environments) for test_environments in places)
    needed = {
        name: 1 if name == boosted_trees.NAME else composing.recipe(name).default.minimum_environments
        for name in names
    }
    return (
        tuple(name for name in names if needed[name] <= left),
        tuple(
            f"{', '.join(lacking)}: {'needs' if len(lacking) == 1 else 'need'} {least} environments to train "
            f"on; where one is held out, {left} is left"
            for least in sorted(set(needed.values()))
            if least > left and (lacking := [name for name in names if needed[name] == least])
        ),
    )


def tasks(table: Table, test_environments: Sequence[Sequence[str]]) -> dict[str, Task]:
    """By place the task of models that have not seen it: real targets in deviations of what they know."""
    codes, names = table.environment.values, table.environments
    return {
        place: table_source.task_of(table, ~np.isin(codes, [names.index(name) for name in places]))
        for places in test_environments
        for place in places
    }


def execution(study: Study, table: Table, source: TableSource) -> Execution | None:
    """How runs are executed; None has it found out, which takes longer than small runs do.

    The usual algorithms on a table's network stack well, and what their rows take is known.
    """
    if not set(study.algorithms) <= set(ALGORITHMS):
        return None
    each = 4.0 * len(table) * len(source.encoder.names)
    group = max(1, min(study.n_trials * study.replicas, int(_SIDE_BY_SIDE / each)))
    return Execution("stacked", group, "what the rows of a table take is known") if group > 1 else None


Run = Callable[[int, float | None], None]
"""Trains what is planned: how many runs are left, and until when."""


def staged(folder: Path, study: Study, until: float | None, run: Run) -> int:
    """Trains the study, a few more draws at a time if there is an end to the time; how many are complete.

    Args:
        folder: of the study.
        study: with all the draws that are wanted.
        until: when to stop, by `time.monotonic`; None trains all of it.
        run: trains what is planned.
    """
    stages = [study.n_trials] if until is None else [n for n in (1, 2, 4, 8, 16, 32) if n < study.n_trials]
    stages += [] if until is None else [study.n_trials]
    complete = 0
    began = time.monotonic()
    for n_trials in stages:
        # What has been trained so far tells how long the next stage would take.
        spent = time.monotonic() - began
        if (
            until is not None
            and complete
            and time.monotonic() + spent * (n_trials - complete) / complete > until
        ):
            break
        with Store.begin(folder, replace(study, n_trials=n_trials)) as store:
            counts = store.counts()
        run(counts["planned"] + counts["running"], until)
        with Store(folder) as store:
            counts = store.counts()
        if counts["planned"] + counts["running"]:
            break
        complete = n_trials
    return max(1, complete)


def model(
    table: Table, algorithm: str, hyperparameters: dict[str, object], learning_rate: float, seed: int
) -> SavedModel:
    """One algorithm, trained on all environments of a table."""
    source = TableSource(table, "table")
    result = train(
        source,
        algorithm,
        hyperparameters=hyperparameters,
        learning_rate=learning_rate,
        test_environments=(),
        evaluate_every=table_source.STEPS,
        execution="sequential",
        seed=seed,
        progress=False,
    )
    return SavedModel.of(source, result)
