"""Engine: train replicas and yield an event after every step and evaluation.

The caller stores results and shows progress. If the caller stops iterating, training stops. `Execution` sets
how many replicas train as one program; this number affects results only through rounding.
"""

import gc
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor

from envariant.core.environments import EnvironmentSource
from envariant.core.errors import EnvariantError, first_line
from envariant.models import FeaturizerAndHead
from envariant.training.batch_sampler import StackingError
from envariant.training.checkpoint import Checkpoint, ReplicaState
from envariant.training.execution import Execution, groups
from envariant.training.history import HistoryRow
from envariant.training.keep_rules import KeepBest
from envariant.training.memory_budget import is_out_of_memory
from envariant.training.replica_stack import ReplicaStack
from envariant.training.replicas import Replica
from envariant.training.run_config import RunConfig
from envariant.training.step_program import StepProgram
from envariant.training.streaming import waiting_notes


@final
@dataclass(frozen=True)
class Stepped:
    """Event after each training step of a stack of replicas.

    Attributes:
        replicas: Indices of the replicas.
        step: Number of completed updates.
        checkpoint: Function that returns the current state; its result is valid until the next event.
    """

    replicas: tuple[int, ...]
    step: int
    checkpoint: Callable[[], Checkpoint]


@final
@dataclass(frozen=True)
class Evaluated:
    """Event after each evaluation of a stack of replicas in all environments.

    Attributes:
        replicas: Indices of the replicas.
        step: Number of completed updates.
        rows: Records of the metrics measured in this evaluation.
        checkpoint: Function that returns the current state; its result is valid until the next event.
        finished: Whether the training of all these replicas is over. A replica's training is over if it has
            completed all steps, was stopped by a rule or has diverged.
        answers: Function that returns, for one environment, logits and targets, both of shape
            `[replicas, rows, …]`; see `ReplicaStack.answers`.
        notes: Deviations from the requested execution, for example that memory ran out and the stack was
            halved.
        keep: Whether the weights at this step are to be saved, according to the training option `keep`.
        kept_answers: Function like `answers` that predicts with the weights selected by the option `keep`;
            None if these are the current weights.
    """

    replicas: tuple[int, ...]
    step: int
    rows: tuple[HistoryRow, ...]
    checkpoint: Callable[[], Checkpoint]
    finished: bool
    answers: Callable[..., tuple[Tensor, Tensor]]
    notes: tuple[str, ...] = ()
    keep: bool = False
    kept_answers: Callable[..., tuple[Tensor, Tensor]] | None = None

    def kept_states(self) -> dict[int, ReplicaState]:
        """Return copies of the current states, without replicas whose training ended at an earlier step."""
        states = self.checkpoint().for_prediction().clone().states()
        return {k: state for k, state in states.items() if state.step == self.step}


def run(
    source: EnvironmentSource,
    replicas: Sequence[Replica],
    config: RunConfig,
    execution: Execution,
    resume: Sequence[Checkpoint] = (),
) -> Iterator[Stepped | Evaluated]:
    """Train replicas, or resume them from their checkpoints.

    A stack that does not fit in memory is halved, repeatedly if necessary; the first `Evaluated` event of
    each part reports this in `notes`. A resumed run uses the stacks of its checkpoints.

    Args:
        source: Data source of all replicas.
        replicas: Replicas to train.
        config: Settings shared by all replicas.
        execution: Execution mode and stack size. To resume a run, use the execution in its record.
        resume: Checkpoints of stacks to resume from.

    Yields:
        One event per step and one per evaluation.

    Raises:
        EnvariantError: If data, model and algorithm are incompatible, or a single replica does not fit in
            memory.
    """
    programs: dict[Any, StepProgram] = {}
    for members in groups(replicas, execution.group):
        for part, checkpoint in _resumed(members, resume):
            if checkpoint is None or not is_done(checkpoint, config.steps):
                for stack, notes in _stacks(source, part, config, checkpoint, programs):
                    yield from _train(stack, config, notes)


def is_done(checkpoint: Checkpoint, steps: int) -> bool:
    """Return whether no replica of a checkpoint needs further training.

    The training of a replica is over if it has completed all steps, was stopped by a rule or has diverged.
    The rule is an early-stopping rule or an averaging rule, such as SWAD.
    """
    ended = len(checkpoint.failures) + len(checkpoint.stops)
    return checkpoint.measured >= steps or ended == len(checkpoint.replicas)


def _resumed(
    members: tuple[Replica, ...], resume: Sequence[Checkpoint]
) -> list[tuple[tuple[Replica, ...], Checkpoint | None]]:
    """Split replicas into the stacks stored in checkpoints, and one group of all other replicas."""
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
    """Yield one stack of all members, or several if they cannot be stacked or memory runs out."""
    stack = _built(source, members, config, checkpoint, programs)
    if isinstance(stack, ReplicaStack):
        yield stack, notes
        return
    # Free the tensors of the failed stack, which reference cycles may keep alive.
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
    """Build a stack. If this fails, return smaller groups of replicas to train instead, and a note."""
    count = len(members)
    try:
        stack = ReplicaStack(source, members, config, checkpoint, programs)
        if count > 1:
            stack.rehearse()
    except StackingError:
        return [(member,) for member in members], ()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            if count == 1 or checkpoint is not None:
                raise
            # For example a model whose control flow depends on its inputs.
            return [(m,) for m in members], (f"continued one at a time ({first_line(error)})",)
        if count == 1:
            raise EnvariantError(
                f"memory: replica {members[0].index} alone needs more than is available; use a smaller "
                f"batch_size or model"
            ) from error
        if checkpoint is not None:
            raise EnvariantError(
                f"memory: a stack of {count} replicas, with which this run started, no longer fits; free "
                f"memory, or choose a new folder"
            ) from error
    else:
        return stack
    half = (count + 1) // 2
    note = f"memory ran out with {count} replicas in one program; continued with {half}"
    logging.getLogger(__name__).warning("%s", note)
    return [members[:half], members[half:]], (note,)


@contextmanager
def _errors_as_envariant(stack: ReplicaStack) -> Generator[None]:
    """Convert PyTorch's errors in a user's model to an `EnvariantError`."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error) or isinstance(stack.network.module, FeaturizerAndHead):
            raise
        where = f"model {type(stack.network.module).__name__}: fails in training at step {stack.step}"
        raise EnvariantError(f"{where} ({first_line(error)})") from error


def _train(stack: ReplicaStack, config: RunConfig, notes: tuple[str, ...]) -> Iterator[Stepped | Evaluated]:
    while True:
        if config.measures_at(stack.step) and stack.measured < stack.step:
            with _errors_as_envariant(stack):
                rows = stack.measure()
            finished, keep = stack.ended or stack.step == config.steps, config.keep.keeps(stack.step)
            if finished:
                notes += waiting_notes(stack.waited, stack.checkpoint().seconds)
            kept = partial(stack.answers, kept=True) if isinstance(config.keep, KeepBest) else None
            yield Evaluated(
                stack.replicas, stack.step, rows, stack.checkpoint, finished, stack.answers, notes, keep, kept
            )
            if finished:
                return
            notes = ()
        with _errors_as_envariant(stack):
            stack.advance()
        yield Stepped(stack.replicas, stack.step, stack.checkpoint)
