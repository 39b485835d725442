"""The engine: replicas in, a stream of events out.

It trains, measures and nothing else. Writing to disk, drawing progress and choosing defaults are the
caller's business, who reads the events as they come; a caller that stops reading stops the training.
How many replicas train as one program is told by an `Execution`; it changes no step beyond rounding.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from envariant.core.environments import EnvironmentSource
from envariant.training.allocator import keep_freed_memory
from envariant.training.batch_sampler import StackingError
from envariant.training.checkpoint import Checkpoint
from envariant.training.execution import Execution, groups
from envariant.training.history import HistoryRow
from envariant.training.replica_stack import ReplicaStack
from envariant.training.replicas import Replica
from envariant.training.run_config import RunConfig
from envariant.training.step_program import StepProgram


@final
@dataclass(frozen=True)
class Stepped:
    """One update of some replicas was made.

    Attributes:
        replicas: their numbers.
        step: updates made.
        checkpoint: where they stand; valid until the next event is asked for.
    """

    replicas: tuple[int, ...]
    step: int
    checkpoint: Callable[[], Checkpoint]


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
        answers: of an environment by name, each replica's logits and targets, `[replicas, rows, …]`; of
            some rows, and with their inputs changed, if asked (`ReplicaStack.answers`).
    """

    replicas: tuple[int, ...]
    step: int
    rows: tuple[HistoryRow, ...]
    checkpoint: Callable[[], Checkpoint]
    finished: bool
    answers: Callable[..., tuple[Tensor, Tensor]]


def run(
    source: EnvironmentSource,
    replicas: Sequence[Replica],
    plan: RunConfig,
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
    programs: dict[Any, StepProgram] = {}
    for members in groups(replicas, execution.group):
        for group in _groups(source, members, plan, stored, programs):
            yield from _train(group, plan)


def is_done(checkpoint: Checkpoint, steps: int) -> bool:
    """Whether there is nothing left to train."""
    return checkpoint.measured >= steps or len(checkpoint.failures) == len(checkpoint.replicas)


def _groups(
    source: EnvironmentSource,
    members: tuple[Replica, ...],
    plan: RunConfig,
    stored: Mapping[tuple[int, ...], Checkpoint],
    programs: dict[Any, StepProgram],
) -> Iterator[ReplicaStack]:
    """The members as one group, or each alone where they turn out not to lie side by side."""
    checkpoint = stored.get(tuple(replica.index for replica in members))
    if checkpoint is not None and is_done(checkpoint, plan.steps):
        return
    try:
        group = ReplicaStack(source, members, plan, checkpoint, programs)
    except StackingError:
        for member in members:
            yield from _groups(source, (member,), plan, stored, programs)
    else:
        yield group


def _train(group: ReplicaStack, plan: RunConfig) -> Iterator[Stepped | Evaluated]:
    while True:
        if plan.measures_at(group.step) and group.measured < group.step:
            rows = group.measure()
            finished = group.failed or group.step == plan.steps
            yield Evaluated(group.replicas, group.step, rows, group.checkpoint, finished, group.answers)
            if finished:
                return
        group.advance()
        yield Stepped(group.replicas, group.step, group.checkpoint)
