"""A batch: runs of a study that train together, as replicas of one engine.

Whoever executes it, here or on another machine, is given plain data and gives plain data back.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from envariant.analysis.invariance_test import assess_invariance
from envariant.core import metrics
from envariant.core.environments import EnvironmentSet
from envariant.core.tasks import Regression, Task
from envariant.studies.baselines import boosted_trees
from envariant.studies.permutation_importance import Ask, Measures
from envariant.studies.store import Facts, Outcome, Stored
from envariant.studies.study import Study
from envariant.training import checkpoint as checkpoints
from envariant.training import engine, provenance
from envariant.training.engine import Evaluated, Stepped
from envariant.training.execution import SEQUENTIAL, Execution, ExecutionRequest, choose
from envariant.training.history import HistoryRow
from envariant.training.pretraining import prepared
from envariant.training.replicas import Replica, Seeds
from envariant.training.run_config import network
from envariant.training.run_spec import Assembly, assembled, check_environments


@final
@dataclass(frozen=True)
class Batch:
    """What is to be trained.

    Attributes:
        study: of which the runs are; what it says of all runs holds for these.
        runs: of one algorithm on the same data, with the same environments held out.
    """

    study: Study
    runs: tuple[Stored, ...]


@final
@dataclass(frozen=True)
class Update:
    """News of a batch.

    Attributes:
        facts: once, before the first step.
        rows: what was measured, a row's replica being its run's number.
        outcomes: of runs that ended.
        step: updates made by the runs that these news are of.
        runs: their numbers.
        event: of the engine, from which they can be stored; not sent from machine to machine.
    """

    facts: Facts | None = None
    rows: tuple[HistoryRow, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    step: int = 0
    runs: tuple[int, ...] = ()
    event: Stepped | Evaluated | None = field(default=None, compare=False)


def steps_of(batch: Batch) -> int:
    """Updates of each of its runs.

    Raises:
        EnvariantError: what the study says does not fit.
    """
    return _assembly(batch.study, batch.runs[0]).plan.steps


def perform(
    batch: Batch, wanted: ExecutionRequest, known: Execution | None = None, folder: Path | None = None
) -> Generator[Update]:
    """Trains the runs, from their checkpoints if there are any, and tells what comes of them.

    Args:
        batch: what to train.
        wanted: how runs are to be executed.
        known: how they were, if this goes on with what was begun.
        folder: of their checkpoints.

    Raises:
        EnvariantError: the runs cannot train; the message says why.
    """
    if batch.runs[0].run.algorithm == boosted_trees.NAME:
        yield from _grown(batch)
        return
    parts = [_assembly(batch.study, stored) for stored in batch.runs]
    first = parts[0]
    source = first.source
    runs = [_replica(part, stored, batch.study) for part, stored in zip(parts, batch.runs, strict=True)]
    drawn = source.sample(runs[0].seeds.data)
    roles = drawn.roles(first.plan.test)
    check_environments(first.chosen, drawn, roles)
    net, _ = network(drawn, runs[0], first.plan)
    plan = replace(first.plan, precision=net.precision)
    if first.initializer is not None or runs[0].algorithm.finds_environments is not None:
        runs = [prepared(run, source, plan, first.initializer, _untold) for run in runs]
    execution = known or choose(wanted, source, runs, plan, None)
    measures = _measures(batch.study, first, drawn, roles)
    yield Update(_facts(measures, asdict(execution), plan.device, plan.precision))
    resume = [] if folder is None else checkpoints.load(folder)
    for event in engine.run(source, runs, plan, execution, resume):
        if isinstance(event, Evaluated):
            rows, outcomes = _measured(event, measures)
            yield Update(None, rows, outcomes, event.step, event.replicas, event)
        else:
            yield Update(step=event.step, runs=event.replicas, event=event)


def reached(folder: Path) -> Mapping[int, int]:
    """The step to which each run's checkpoint holds its measurements."""
    return {number: saved.reached(number) for saved in checkpoints.load(folder) for number in saved.replicas}


def _assembly(study: Study, stored: Stored) -> Assembly:
    run = stored.run
    return assembled(
        run.data,
        # Trees train by themselves, on the same data.
        "erm" if run.algorithm == boosted_trees.NAME else run.algorithm,
        hyperparameters=run.trial.hyperparameters,
        learning_rate=run.trial.learning_rate,
        test_environments=run.test_environments,
        holdout_fraction=study.holdout_fraction,
        **study.settings,
    )


def _replica(part: Assembly, stored: Stored, study: Study) -> Replica:
    return part.replica(stored.id, Seeds.of(study.seed, stored.run.replica))


def _measures(study: Study, part: Assembly, drawn: EnvironmentSet, roles: Mapping[str, str]) -> Measures:
    wanted = metrics.metric(study.metric or drawn.task.metric, drawn.task)
    return Measures(drawn, roles, wanted, part.source.columns, study.store_predictions)


def _facts(measures: Measures, execution: Mapping[str, Any], device: torch.device, precision: str) -> Facts:
    came = {
        "versions": provenance.versions(),
        "hardware": provenance.hardware(device),
        "command": provenance.command(),
        "precision": precision,
        "fingerprint": measures.drawn.fingerprint(),
    }
    return Facts(execution, measures.metric.name, measures.metric.higher_is_better, measures.roles, came)


def _measured(event: Evaluated, measures: Measures) -> tuple[tuple[HistoryRow, ...], tuple[Outcome, ...]]:
    """What was measured, and how runs ended if they did."""
    states = event.checkpoint().states()
    well = {run for run in event.replicas if states[run].failure is None}
    also = measures.at(event.answers, event.replicas, event.step)
    if not event.finished:
        return (*event.rows, *_of(also, well)), ()
    also += measures.reliance(event.answers, event.replicas, event.step)
    outcomes = [
        replace(outcome, error=states[outcome.id].failure, seconds=states[outcome.id].seconds)
        for outcome in _ended(event.answers, event.replicas, well, measures)
    ]
    return (*event.rows, *_of(also, well)), tuple(outcomes)


def _of(rows: Iterable[HistoryRow], runs: set[int]) -> list[HistoryRow]:
    return [row for row in rows if row.replica in runs]


def _ended(ask: Ask, runs: Sequence[int], well: set[int], measures: Measures) -> Iterator[Outcome]:
    """Of every run the test of invariance and its answers, if it ended well."""
    kept = [name for name, role in measures.roles.items() if role == "validation"]
    said = [tuple(part.double().cpu().numpy() for part in ask(name)) for name in kept]
    answers = measures.answers(ask, runs)
    for k, run in enumerate(runs):
        tested = run in well and kept
        p = _invariance_p_value([(z[k], y[k]) for z, y in said], measures.drawn.task) if tested else None
        yield Outcome(run, None, 0.0, p, answers[run] if run in well else ())


def _invariance_p_value(outputs: Sequence[tuple[NDArray[Any], NDArray[Any]]], task: Task) -> float:
    """Return the p-value of the invariance test over environments, given logits and targets of each."""
    logits, targets = (np.concatenate(part) for part in zip(*outputs, strict=True))
    environments = np.repeat(np.arange(len(outputs)), [len(y) for _, y in outputs])
    return assess_invariance(logits, targets, environments, regression=isinstance(task, Regression)).p_value


def _grown(batch: Batch) -> Generator[Update]:
    """Boosted trees, one run after another; nothing is left of one that was not brought to its end."""
    part = _assembly(batch.study, batch.runs[0])
    on_progress = False
    for stored in batch.runs:
        seeds = Seeds.of(batch.study.seed, stored.run.replica)
        drawn = part.source.sample(seeds.data)
        roles = drawn.roles(part.plan.test)
        measures = _measures(batch.study, part, drawn, roles)
        if not on_progress:
            yield Update(_facts(measures, asdict(SEQUENTIAL), torch.device("cpu"), "float64"))
            on_progress = True
        grown = boosted_trees.fit(drawn, roles, seeds.initialization)
        own, step = (stored.id,), grown.rounds
        rows = [*grown.history(stored.id, roles), *measures.at(grown.answers, own, step)]
        (outcome,) = _ended(grown.answers, own, set(own), measures)
        yield Update(None, tuple(rows), (replace(outcome, seconds=grown.seconds),), step, own)


def _untold(replica: int, done: int, of: int) -> None:
    del replica, done, of
