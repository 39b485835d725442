"""A batch: runs of a study that train together, as replicas of one engine.

Whoever executes it, here or on another machine, is given plain data and gives plain data back.
"""

from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import final

from envariant.environments import EnvironmentSet
from envariant.studies.invariance import p_value
from envariant.studies.store import Facts, Outcome, Stored
from envariant.studies.study import Study
from envariant.training import checkpoint as checkpoints
from envariant.training import engine, provenance
from envariant.training.assembly import Assembly, assembled, check_environments
from envariant.training.engine import Evaluated, Stepped
from envariant.training.execution import Execution, Wish, choose
from envariant.training.history import HistoryRow
from envariant.training.plan import network
from envariant.training.preparation import prepared
from envariant.training.replicas import Replica, Seeds


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
    batch: Batch, wanted: Wish, known: Execution | None = None, folder: Path | None = None
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
    parts = [_assembly(batch.study, stored) for stored in batch.runs]
    first = parts[0]
    source = first.source
    runs = [_replica(part, stored, batch.study) for part, stored in zip(parts, batch.runs, strict=True)]
    drawn = source.draw(runs[0].seeds.data)
    roles = drawn.roles(first.plan.test)
    check_environments(first.chosen, drawn, roles)
    net, _ = network(drawn, runs[0], first.plan)
    plan = replace(first.plan, precision=net.precision)
    if first.initialiser is not None or runs[0].algorithm.finds_environments is not None:
        runs = [prepared(run, source, plan, first.initialiser, _untold) for run in runs]
    execution = known or choose(wanted, source, runs, plan, None)
    came = {
        "versions": provenance.versions(),
        "hardware": provenance.hardware(plan.device),
        "command": provenance.command(),
        "precision": plan.precision,
        "fingerprint": drawn.fingerprint(),
    }
    yield Update(Facts(asdict(execution), drawn.task.metric, drawn.task.higher_is_better, roles, came))
    resume = [] if folder is None else checkpoints.load(folder)
    for event in engine.run(source, runs, plan, execution, resume):
        if isinstance(event, Evaluated):
            outcomes = _outcomes(event, drawn, roles) if event.finished else ()
            yield Update(None, event.rows, outcomes, event.step, event.replicas, event)
        else:
            yield Update(step=event.step, runs=event.replicas, event=event)


def reached(folder: Path) -> Mapping[int, int]:
    """The step to which each run's checkpoint holds its measurements."""
    return {number: saved.reached(number) for saved in checkpoints.load(folder) for number in saved.replicas}


def _assembly(study: Study, stored: Stored) -> Assembly:
    run = stored.run
    return assembled(
        run.data,
        run.algorithm,
        hyperparameters=run.draw.hyperparameters,
        learning_rate=run.draw.learning_rate,
        test_environments=run.held_out,
        hold_out=study.hold_out,
        **study.settings,
    )


def _replica(part: Assembly, stored: Stored, study: Study) -> Replica:
    return part.replica(stored.id, Seeds.of(study.seed, stored.run.replica))


def _outcomes(event: Evaluated, drawn: EnvironmentSet, roles: Mapping[str, str]) -> tuple[Outcome, ...]:
    states = event.checkpoint().states()
    kept = [name for name, role in roles.items() if role == "validation"]
    answers = [tuple(part.double().cpu().numpy() for part in event.answers(name)) for name in kept]
    found: list[Outcome] = []
    for k, run in enumerate(event.replicas):
        state = states[run]
        p = (
            None
            if state.failure is not None or not kept
            else p_value(drawn.task, [z[k] for z, _ in answers], [y[k] for _, y in answers])
        )
        found.append(Outcome(run, state.failure, state.seconds, p))
    return tuple(found)


def _untold(replica: int, done: int, of: int) -> None:
    del replica, done, of
