"""How many replicas train as one program: asked for, or found by a short measurement on the real shapes.

A small model leaves a processor waiting for Python; a stack of them does not. A large one fills the
caches by itself, and a stack of those is slower than one after another. So both are tried for a few steps
and the faster one is taken. A step of a replica is the same either way to rounding; but rounding grows over
a long run, as it does under another number of threads. So the choice is stored with the result, a resumed
run keeps to it, and whoever wants a run again to the last bit asks for it by name.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, final

import torch

from envariant.algorithms.hyperparameters import structure
from envariant.core import specs
from envariant.core.environments import EnvironmentSource
from envariant.core.errors import EnvariantError
from envariant.training import memory_budget
from envariant.training.batch_sampler import StackingError
from envariant.training.replica_stack import ReplicaStack
from envariant.training.replicas import Replica
from envariant.training.run_config import RunConfig

# Fewer steps than this, over all replicas, take about a second: less than choosing does.
_FEW_STEPS = 2000
# A step that alone takes longer than this on a CPU leaves Python's share, about 1 ms, out of account.
_LONG_STEP = 0.02
# Stacking must win by this much, so that noise does not decide.
_MARGIN = 1.2
# The C library's heap, told to keep what is freed (`allocator.py`), comes to hold up to
# two and a half times what lives.
HEAP = 2.5
# A group that needs more than this leaves the caches; its replicas then cost more, not less.
_COMFORTABLE = 64 * 2**20
# As many as tell how a stack fares; a full group may take long to build.
_SAMPLE = 16
_STEPS = 5


@final
@dataclass(frozen=True)
class Auto:
    """Whichever is faster."""


@final
@dataclass(frozen=True)
class Sequential:
    """One replica after another."""


@final
@dataclass(frozen=True)
class Stacked:
    """Several replicas to a program.

    Attributes:
        group: at most so many; None is as many as fit and are quick together.
    """

    group: int | None = None

    def __post_init__(self) -> None:
        if self.group is not None and self.group < 1:
            raise EnvariantError(f"stacked: group must be at least 1; got {self.group}")


ExecutionRequest = Auto | Sequential | Stacked
"""How replicas were asked to be run."""

_WISHES: dict[str, type[ExecutionRequest]] = {"auto": Auto, "sequential": Sequential, "stacked": Stacked}


def execution_request(text: str) -> ExecutionRequest:
    """What `auto`, `sequential`, `stacked` or `stacked(group=50)` asks for.

    Raises:
        EnvariantError: it is none of these.
    """
    return specs.build("execution", text, _WISHES)


@final
@dataclass(frozen=True)
class Execution:
    """How replicas are run.

    Attributes:
        mode: whether several make one program.
        group: at most how many do.
        reason: why.
        bytes_predicted: that a group needs at its height, holes in the heap allowed for; None where it was
            not looked at.
    """

    mode: Literal["sequential", "stacked"]
    group: int
    reason: str
    bytes_predicted: int | None = None


SEQUENTIAL = Execution("sequential", 1, "as asked for")


def choose(
    wanted: ExecutionRequest,
    source: EnvironmentSource,
    replicas: Sequence[Replica],
    plan: RunConfig,
    budget: int | None,
) -> Execution:
    """The execution that was wished for, or the faster one; a group fits in the budget.

    Args:
        wanted: what was asked for.
        source: where each replica draws its data.
        replicas: what differs between them.
        plan: what they share.
        budget: bytes; None is half of what is available.

    Raises:
        EnvariantError: stacking was asked for and is not possible, or the budget is too small.
    """
    if isinstance(wanted, Sequential):
        return SEQUENTIAL
    auto = isinstance(wanted, Auto)
    # Those of one structure; what suits the most of them is done with all.
    replicas, whole = max(groups(replicas, len(replicas)), key=len), len(replicas)
    if len(replicas) == 1 and auto:
        return Execution("sequential", 1, "there is one replica" if whole == 1 else "no two are alike")
    if auto and len(replicas) * plan.steps < _FEW_STEPS:
        return Execution("sequential", 1, f"{len(replicas)} × {plan.steps} steps are too few to gain from it")
    alone = ReplicaStack(source, replicas[:1], plan)
    if alone.network.stochastic:
        return _not_stackable(wanted, "the model draws random numbers of its own, as dropout does")
    alone_seconds = _seconds_a_step(alone) if auto else 0.0
    del alone
    if auto and plan.device.type == "cpu" and alone_seconds > _LONG_STEP:
        return Execution(
            "sequential", 1, f"one step alone takes {1e3 * alone_seconds:.0f} ms, so little is left to gain"
        )
    try:
        needed = need(source, replicas, plan)
    except StackingError as error:
        return _not_stackable(wanted, str(error))
    except RuntimeError as error:
        return _not_stackable(wanted, f"PyTorch cannot stack it: {str(error).splitlines()[0]}")
    budget = memory_budget.available(plan.device) // 2 if budget is None else budget
    holes = HEAP if plan.device.type == "cpu" else 1.0
    fit = needed.fit(int(budget / holes), len(replicas))
    least = min(2, len(replicas))
    if fit < least and auto:
        return Execution("sequential", 1, f"a stack does not fit in {budget / 1e9:.3g} GB")
    if fit < least:
        raise EnvariantError(
            f"memory: {least} replicas need about {holes * needed.of(least) / 1e9:.3g} GB and "
            f"{budget / 1e9:.3g} GB are allowed; raise --memory, or use --execution sequential"
        )
    quick = len(replicas)
    if plan.device.type == "cpu":
        # Measuring has its own blocks and does not slow a step.
        stepping = memory_budget.Need(needed.phases[-2:])
        quick = max(2, stepping.fit(_COMFORTABLE + stepping.of(1), len(replicas)))
    asked = wanted.group if isinstance(wanted, Stacked) else None
    most = min(fit, quick if asked is None else asked)
    size = math.ceil(len(replicas) / math.ceil(len(replicas) / most))
    stacked = Execution("stacked", size, "as asked for", int(holes * needed.of(size)))
    if not auto:
        return stacked
    sample = min(size, _SAMPLE)
    try:
        together_seconds = _seconds_a_step(ReplicaStack(source, replicas[:sample], plan)) / sample
    except StackingError as error:
        return _not_stackable(wanted, str(error))
    measured = (
        f"a step of a replica takes {1e3 * alone_seconds:.3g} ms alone and {1e3 * together_seconds:.3g} ms "
        f"in a stack of {sample}"
    )
    if together_seconds * _MARGIN < alone_seconds:
        return replace(stacked, reason=measured)
    return Execution("sequential", 1, measured)


def _not_stackable(wanted: ExecutionRequest, reason: str) -> Execution:
    if isinstance(wanted, Stacked):
        raise EnvariantError(f"execution: these replicas cannot be stacked ({reason}); use sequential")
    return Execution("sequential", 1, reason)


def _seconds_a_step(group: ReplicaStack) -> float:
    """The quickest of a few steps, after one to warm up."""
    group.advance()
    wait_for(group.device)
    seconds: list[float] = []
    for _ in range(_STEPS):
        started = time.perf_counter()
        group.advance()
        wait_for(group.device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def wait_for(device: torch.device) -> None:
    """Waits for what a device was given to do; a CPU has always done it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def need(source: EnvironmentSource, replicas: Sequence[Replica], plan: RunConfig) -> memory_budget.Need:
    """What a group of any size needs, told from groups of two and of four."""
    few = tuple(replicas[k % len(replicas)] for k in range(4))
    at_once = ReplicaStack(source, few[:1], plan).measured_at_once
    return memory_budget.Need.measured(
        lambda count: peaks(source, few[:count], plan), (float, at_once, float, float)
    )


def peaks(source: EnvironmentSource, replicas: Sequence[Replica], plan: RunConfig) -> tuple[int, ...]:
    """Bytes at the height of building a group, measuring it, its first step and its second."""
    plan, group = replace(plan, compiled=False), list[ReplicaStack]()
    return memory_budget.peak_bytes(
        lambda: group.append(ReplicaStack(source, replicas, plan)),
        lambda: group[0].measure(),
        # The optimizer's memory comes with the first step; the second draws no rows.
        lambda: group[0].advance(),
        lambda: group[0].advance(),
    )


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
