"""The engine: trains replicas and yields an event after every step and measurement.

It trains and measures, nothing else. The caller stores, shows progress and chooses defaults as events
arrive; a caller that stops iterating stops the training. An `Execution` says how many replicas train as one
program, which changes results by rounding only.
"""

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from envariant.core.environments import EnvironmentSource
from envariant.core.errors import EnvariantError
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
    """Event: some replicas made one update.

    Attributes:
        replicas: Numbers of the replicas.
        step: Number of updates made.
        checkpoint: Returns the current state; valid until the next event.
    """

    replicas: tuple[int, ...]
    step: int
    checkpoint: Callable[[], Checkpoint]


@final
@dataclass(frozen=True)
class Evaluated:
    """Event: some replicas were measured in every environment.

    Attributes:
        replicas: Numbers of the replicas.
        step: Number of updates made.
        rows: Measured values.
        checkpoint: Returns the current state; valid until the next event.
        finished: Whether these replicas have made all steps or have all diverged.
        answers: Returns each replica's logits and targets in one environment, `[replicas, rows, …]`, on
            request for some rows or with changed inputs (`ReplicaStack.answers`).
        notes: Deviations from the requested execution, such as a smaller stack because memory ran out.
    """

    replicas: tuple[int, ...]
    step: int
    rows: tuple[HistoryRow, ...]
    checkpoint: Callable[[], Checkpoint]
    finished: bool
    answers: Callable[..., tuple[Tensor, Tensor]]
    notes: tuple[str, ...] = ()


def run(
    source: EnvironmentSource,
    replicas: Sequence[Replica],
    config: RunConfig,
    execution: Execution,
    resume: Sequence[Checkpoint] = (),
) -> Iterator[Stepped | Evaluated]:
    """Train every replica, from its checkpoint if there is one.

    A stack that does not fit in memory is halved before its first event, as often as necessary; the first
    `Evaluated` event of each part notes it. A resumed run keeps the parts of its checkpoints.

    Args:
        source: Source of each replica's environments.
        replicas: The replicas.
        config: Settings that they share.
        execution: How many replicas train as one program; the same as before where a run is resumed.
        resume: Checkpoints of stacks.

    Yields:
        One event per step and per measurement.

    Raises:
        EnvariantError: If data, model and algorithm do not fit one another, or one replica needs more memory
            than there is.
    """
    keep_freed_memory()
    programs: dict[Any, StepProgram] = {}
    for members in groups(replicas, execution.group):
        for part, checkpoint in _resumed(members, resume):
            if checkpoint is None or not is_done(checkpoint, config.steps):
                for stack, notes in _stacks(source, part, config, checkpoint, programs):
                    yield from _train(stack, config, notes)


def is_done(checkpoint: Checkpoint, steps: int) -> bool:
    """Return whether the replicas of a checkpoint have made all steps or have all diverged."""
    return checkpoint.measured >= steps or len(checkpoint.failures) == len(checkpoint.replicas)


def _resumed(
    members: tuple[Replica, ...], resume: Sequence[Checkpoint]
) -> list[tuple[tuple[Replica, ...], Checkpoint | None]]:
    """Split a group by its checkpoints; members without one form a group of their own."""
    by_number, parts = {member.index: member for member in members}, list[Any]()
    for checkpoint in resume:
        if by_number.keys() >= set(checkpoint.replicas):
            parts.append((tuple(by_number.pop(number) for number in checkpoint.replicas), checkpoint))
    return [*parts, (tuple(by_number.values()), None)] if by_number else parts


def _stacks(
    source: EnvironmentSource,
    members: tuple[Replica, ...],
    config: RunConfig,
    checkpoint: Checkpoint | None,
    programs: dict[Any, StepProgram],
    notes: tuple[str, ...] = (),
) -> Iterator[tuple[ReplicaStack, tuple[str, ...]]]:
    """Yield the members as one stack, or in parts if they cannot form one program or memory runs out."""
    stack = _built(source, members, config, checkpoint, programs)
    if isinstance(stack, ReplicaStack):
        yield stack, notes
        return
    # The failed stack is gone; a cycle of references must not keep its tensors.
    gc.collect()
    if config.device.type == "cuda":
        torch.cuda.empty_cache()
    parts, note = stack
    for part in parts:
        yield from _stacks(source, part, config, None, programs, (*notes, *note))


def _built(
    source: EnvironmentSource,
    members: tuple[Replica, ...],
    config: RunConfig,
    checkpoint: Checkpoint | None,
    programs: dict[Any, StepProgram],
) -> ReplicaStack | tuple[list[tuple[Replica, ...]], tuple[str, ...]]:
    """Return the stack, or the parts to train instead and why."""
    count = len(members)
    try:
        stack = ReplicaStack(source, members, config, checkpoint, programs)
        if count > 1:
            stack.rehearse()
    except StackingError:
        return [(member,) for member in members], ()
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        if count == 1:
            raise EnvariantError(
                f"memory: replica {members[0].index} alone needs more than there is; use a smaller "
                f"batch_size or model"
            ) from error
        if checkpoint is not None:
            raise EnvariantError(
                f"memory: a stack of {count} replicas, which this run was begun with, no longer fits; free "
                f"memory, or train into a new folder"
            ) from error
    else:
        return stack
    half = (count + 1) // 2
    note = f"memory ran out with {count} replicas in one program; continued with {half}"
    logging.getLogger(__name__).warning("%s", note)
    return [members[:half], members[half:]], (note,)


def _out_of_memory(error: RuntimeError) -> bool:
    # PyTorch has no class of its own for a CPU's allocator.
    texts = ("not enough memory", "can't allocate memory", "out of memory")
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error).lower() for text in texts)


def _train(stack: ReplicaStack, config: RunConfig, notes: tuple[str, ...]) -> Iterator[Stepped | Evaluated]:
    while True:
        if config.measures_at(stack.step) and stack.measured < stack.step:
            rows = stack.measure()
            finished = stack.failed or stack.step == config.steps
            yield Evaluated(
                stack.replicas, stack.step, rows, stack.checkpoint, finished, stack.answers, notes
            )
            if finished:
                return
            notes = ()
        stack.advance()
        yield Stepped(stack.replicas, stack.step, stack.checkpoint)
