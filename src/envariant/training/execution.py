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

from envariant import specs
from envariant.algorithms.hyperparameters import structure
from envariant.environments import EnvironmentSource
from envariant.errors import EnvariantError
from envariant.training import memory
from envariant.training.batches import StackingError
from envariant.training.group import Group, Plan
from envariant.training.replicas import Replica

_MODES = ("auto", "sequential", "stacked")
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
class Wish:
    """What was asked for.

    Attributes:
        mode: auto, sequential or stacked.
        group: the most replicas to a program; None is as many as are quick together.
    """

    mode: str
    group: int | None

    @classmethod
    def of(cls, text: str) -> "Wish":
        """A wish from `auto`, `sequential`, `stacked` or `stacked(group=50)`.

        Raises:
            EnvariantError: it is none of these.
        """
        spec = specs.parse(text)
        group = spec.keywords.get("group")
        known = spec.name in _MODES and not spec.positional and spec.keywords.keys() <= {"group"}
        whole = group is None or (isinstance(group, int) and not isinstance(group, bool) and group >= 1)
        if not known or not whole or (group is not None and spec.name != "stacked"):
            raise EnvariantError(
                f"execution must be auto, sequential, stacked or stacked(group=50); got '{text}'"
            )
        return cls(spec.name, group)


@final
@dataclass(frozen=True)
class Execution:
    """How replicas are run.

    Attributes:
        mode: whether several make one program.
        group: at most how many do.
        reason: why.
        bytes_predicted: that a group needs at its height; None where it was not looked at.
    """

    mode: Literal["sequential", "stacked"]
    group: int
    reason: str
    bytes_predicted: int | None = None


SEQUENTIAL = Execution("sequential", 1, "as asked for")


def choose(
    wish: Wish, source: EnvironmentSource, replicas: Sequence[Replica], plan: Plan, budget: int | None
) -> Execution:
    """The execution that was wished for, or the faster one; a group fits in the budget.

    Args:
        wish: what was asked for.
        source: where each replica draws its data.
        replicas: what differs between them.
        plan: what they share.
        budget: bytes; None is half of what is available.

    Raises:
        EnvariantError: stacking was asked for and is not possible, or the budget is too small.
    """
    if wish.mode == "sequential":
        return SEQUENTIAL
    # Those of one structure; what suits the most of them is done with all.
    replicas, whole = max(groups(replicas, len(replicas)), key=len), len(replicas)
    if len(replicas) == 1 and wish.mode == "auto":
        return Execution("sequential", 1, "there is one replica" if whole == 1 else "no two are alike")
    if wish.mode == "auto" and len(replicas) * plan.steps < _FEW_STEPS:
        return Execution("sequential", 1, f"{len(replicas)} × {plan.steps} steps are too few to gain from it")
    alone = Group(source, replicas[:1], plan)
    if alone.network.draws:
        return _not_stackable(wish, "the model draws random numbers of its own, as dropout does")
    alone_seconds = _seconds_a_step(alone)
    del alone
    if wish.mode == "auto" and plan.device.type == "cpu" and alone_seconds > _LONG_STEP:
        return Execution(
            "sequential", 1, f"one step alone takes {1e3 * alone_seconds:.0f} ms, so little is left to gain"
        )
    sample = min(len(replicas), _SAMPLE)
    try:
        Group(source, replicas[:sample], plan)
        needed = need(source, replicas, plan)
    except StackingError as error:
        return _not_stackable(wish, str(error))
    except RuntimeError as error:
        return _not_stackable(wish, f"PyTorch cannot stack it: {str(error).splitlines()[0]}")
    budget = memory.available(plan.device) // 2 if budget is None else budget
    holes = HEAP if plan.device.type == "cpu" else 1.0
    fit = needed.fit(int(budget / holes), len(replicas))
    least = min(2, len(replicas))
    if fit < least and wish.mode == "auto":
        return Execution("sequential", 1, f"a stack does not fit in {budget / 1e9:.3g} GB")
    if fit < least:
        raise EnvariantError(
            f"memory: {least} replicas need about {holes * needed.of(least) / 1e9:.3g} GB and "
            f"{budget / 1e9:.3g} GB are allowed; raise --memory, or use --execution sequential"
        )
    quick = len(replicas)
    if plan.device.type == "cpu":
        # Measuring has its own blocks and does not slow a step.
        stepping = memory.Need(needed.phases[-2:])
        quick = max(2, stepping.fit(_COMFORTABLE + stepping.of(1), len(replicas)))
    most = min(fit, quick if wish.group is None else wish.group)
    size = math.ceil(len(replicas) / math.ceil(len(replicas) / most))
    stacked = Execution("stacked", size, "as asked for", int(holes * needed.of(size)))
    if wish.mode == "stacked":
        return stacked
    sample = min(size, sample)
    together_seconds = _seconds_a_step(Group(source, replicas[:sample], plan)) / sample
    measured = (
        f"a step of a replica takes {1e3 * alone_seconds:.3g} ms alone and {1e3 * together_seconds:.3g} ms "
        f"in a stack of {sample}"
    )
    if together_seconds * _MARGIN < alone_seconds:
        return replace(stacked, reason=measured)
    return Execution("sequential", 1, measured)


def _not_stackable(wish: Wish, reason: str) -> Execution:
    if wish.mode == "stacked":
        raise EnvariantError(f"execution: these replicas cannot be stacked ({reason}); use sequential")
    return Execution("sequential", 1, reason)


def _seconds_a_step(group: Group) -> float:
    """The quickest of a few steps, after one to warm up."""
    group.advance()
    seconds: list[float] = []
    for _ in range(_STEPS):
        started = time.perf_counter()
        group.advance()
        if group.device.type == "cuda":
            torch.cuda.synchronize(group.device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def need(source: EnvironmentSource, replicas: Sequence[Replica], plan: Plan) -> memory.Need:
    """What a group of any size needs, told from groups of two and of four."""
    few = tuple(replicas[k % len(replicas)] for k in range(4))
    at_once = Group(source, few[:1], plan).measured_at_once
    return memory.Need.measured(
        lambda count: peaks(source, few[:count], plan), (float, at_once, float, float)
    )


def peaks(source: EnvironmentSource, replicas: Sequence[Replica], plan: Plan) -> tuple[int, ...]:
    """Bytes at the height of building a group, measuring it, its first step and its second."""
    plan, group = replace(plan, compiled=False), list[Group]()
    return memory.peak_bytes(
        lambda: group.append(Group(source, replicas, plan)),
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
