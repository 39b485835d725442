"""The engine: replicas in, a stream of events out.

It trains, measures and nothing else. Writing to disk, drawing progress and choosing defaults are the
caller's business, who reads the events as they come; a caller that stops reading stops the training.
How many replicas train as one program is told by an `Execution` and changes no number beyond rounding.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, final

from envariant.algorithms.hyperparameters import structure
from envariant.environments import EnvironmentSource
from envariant.training.allocator import keep_freed_memory
from envariant.training.checkpoint import Checkpoint
from envariant.training.execution import Execution
from envariant.training.group import Group, Plan
from envariant.training.history import HistoryRow
from envariant.training.program import Program
from envariant.training.replicas import Replica


@final
@dataclass(frozen=True)
class Stepped:
    """One update of some replicas was made."""

    replicas: tuple[int, ...]
    step: int


@final
@dataclass(frozen=True)
class Evaluated:
    """Every environment was measured in some replicas.

    Attributes:
        replicas: their numbers.
        step: updates made.
        rows: what was measured.
        checkpoint: where they stand; valid until the next event is asked for.
        finished: whether these replicas are done, for good or ill.
    """

    replicas: tuple[int, ...]
    step: int
    rows: tuple[HistoryRow, ...]
    checkpoint: Callable[[], Checkpoint]
    finished: bool


def run(
    source: EnvironmentSource,
    replicas: Sequence[Replica],
    plan: Plan,
    execution: Execution,
    resume: Sequence[Checkpoint] = (),
) -> Iterator[Stepped | Evaluated]:
    """Trains every replica from its group's checkpoint, if there is one, or from the start.

    Args:
        source: where each replica draws its data.
        replicas: what differs between them.
        plan: what they share.
        execution: how many train as one program; the same as before where a run is resumed.
        resume: checkpoints of groups.

    Raises:
        EnvariantError: the data, the model and the algorithm do not fit one another.
    """
    keep_freed_memory()
    stored = {checkpoint.replicas: checkpoint for checkpoint in resume}
    programs: dict[Any, Program] = {}
    for members in groups(replicas, execution.group):
        checkpoint = stored.get(tuple(replica.index for replica in members))
        if checkpoint is None or not is_done(checkpoint, plan.steps):
            yield from _train(Group(source, members, plan, checkpoint, programs), plan)


def groups(replicas: Sequence[Replica], size: int) -> list[tuple[Replica, ...]]:
    """Replicas that can train as one program, at most `size` at a time, in groups of about one size."""
    alike: dict[Any, list[Replica]] = {}
    for replica in replicas:
        alike.setdefault(structure(replica.algorithm), []).append(replica)
    found: list[tuple[Replica, ...]] = []
    for members in alike.values():
        parts = math.ceil(len(members) / size)
        edges = [round(i * len(members) / parts) for i in range(parts + 1)]
        found += [tuple(members[a:b]) for a, b in pairwise(edges)]
    return found


def is_done(checkpoint: Checkpoint, steps: int) -> bool:
    """Whether there is nothing left to train."""
    return checkpoint.step >= steps or len(checkpoint.failures) == len(checkpoint.replicas)


def _train(group: Group, plan: Plan) -> Iterator[Stepped | Evaluated]:
    def measured() -> Evaluated:
        rows = group.measure()
        finished = group.failed or group.step == plan.steps
        return Evaluated(group.replicas, group.step, rows, group.checkpoint, finished)

    if group.step == 0:
        yield (event := measured())
        if event.finished:
            return
    while group.step < plan.steps:
        group.advance()
        yield Stepped(group.replicas, group.step)
        if group.step % plan.evaluate_every == 0 or group.step == plan.steps:
            yield (event := measured())
            if event.finished:
                return
