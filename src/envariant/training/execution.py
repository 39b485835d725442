"""How many replicas train as one program: as requested, or by two rules about the counted work of a step.

A small model leaves a processor waiting for Python; a stack of small models does not. A large model fills
the caches by itself, and a stack of those is slower than one after another. Stacked and sequential execution
agree to rounding, which grows over a long run, as it does with another number of threads. So the choice is
stored with the result, and a resumed run keeps it.

1. Replicas train one after another if there is nothing to gain: one replica, few steps, a model that draws
   its own random numbers, or a large step (`_LARGE_STEP`).
2. Otherwise they are stacked: as many as fit in memory and, on a CPU, comfortably in its caches.

No rule measures time, so the choice is the same on a busy machine. If memory runs out all the same, the
engine halves the stack (`engine.run`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, final

import torch
from torch.utils.flop_counter import FlopCounterMode

from envariant.algorithms.hyperparameters import structure
from envariant.core import specs
from envariant.core.environments import EnvironmentSource
from envariant.core.errors import EnvariantError
from envariant.training import memory_budget
from envariant.training.batch_sampler import StackingError
from envariant.training.network import Network
from envariant.training.replica_stack import ReplicaStack
from envariant.training.replicas import Replica
from envariant.training.run_config import RunConfig, network

# Fewer steps than this, over all replicas, take about a second: too little to gain from.
_FEW_STEPS = 2000
# Activations and multiply-adds of a forward pass, by kind of device, above which a step keeps the processor
# busy by itself. At these sizes a step takes a few times the millisecond that Python takes to start it, and
# stacks of eight were measured to gain nothing.
_LARGE_STEP = {"cpu": (4_000_000, 5_000_000), "cuda": (200_000_000, 2_000_000_000)}
# The C library's heap, told to keep freed memory (`allocator.py`), grows to two and a half times what lives.
HEAP = 2.5
# A stack that needs more than this leaves a CPU's caches; its replicas then cost more, not less.
_COMFORTABLE = 64 * 2**20


@final
@dataclass(frozen=True)
class Auto:
    """Request for the execution that the rules choose."""

    def __str__(self) -> str:
        return "auto"


@final
@dataclass(frozen=True)
class Sequential:
    """Request for one replica after another."""

    def __str__(self) -> str:
        return "sequential"


@final
@dataclass(frozen=True)
class Stacked:
    """Request for stacked execution.

    Attributes:
        group: Largest number of replicas in one program; None is as many as fit comfortably.
    """

    group: int | None = None

    def __post_init__(self) -> None:
        if self.group is not None and self.group < 1:
            raise EnvariantError(f"stacked: group must be at least 1; got {self.group}")

    def __str__(self) -> str:
        return "stacked" if self.group is None else f"stacked(group={self.group})"


ExecutionRequest = Auto | Sequential | Stacked
"""Requested way to run the replicas."""

_REQUESTS: dict[str, type[ExecutionRequest]] = {"auto": Auto, "sequential": Sequential, "stacked": Stacked}


def execution_request(request: str | ExecutionRequest) -> ExecutionRequest:
    """Return the request that a text such as `auto`, `sequential` or `stacked(group=50)` stands for.

    Args:
        request: A text, or a request, which is returned as it is.

    Raises:
        EnvariantError: If it is neither.
    """
    if isinstance(request, str):
        return specs.build("execution", request, _REQUESTS)
    if isinstance(request, ExecutionRequest):
        return request
    raise EnvariantError(f"execution must be auto, sequential, stacked or stacked(group=50); got {request!r}")


@final
@dataclass(frozen=True)
class Execution:
    """How the replicas run.

    Attributes:
        mode: Whether several replicas form one program.
        group: Largest number of replicas in one program.
        reason: Why this execution was chosen.
        bytes_predicted: Predicted peak memory of a stack in bytes, with holes in the heap; None if unknown.
    """

    mode: Literal["sequential", "stacked"]
    group: int
    reason: str
    bytes_predicted: int | None = None

    def __str__(self) -> str:
        return f"stacked(group={self.group})" if self.mode == "stacked" else self.mode


SEQUENTIAL = Execution("sequential", 1, "as requested")


def choose(
    request: ExecutionRequest,
    source: EnvironmentSource,
    replicas: Sequence[Replica],
    config: RunConfig,
    budget: int | None,
) -> Execution:
    """Return the requested execution, or the one that the two rules of this module choose.

    Where replicas differ in structure, the largest set of equal structure decides for all.

    Args:
        request: What was requested.
        source: Source of each replica's environments.
        replicas: The replicas.
        config: Settings that they share.
        budget: Memory that a stack may need, in bytes; None is half of what is available.

    Raises:
        EnvariantError: If stacking was requested and is not possible, or the budget is too small.
    """
    if isinstance(request, Sequential):
        return SEQUENTIAL
    alike, auto = max(groups(replicas, len(replicas)), key=len), isinstance(request, Auto)
    if auto and (reason := _nothing_to_gain(len(alike), len(replicas), config.steps)):
        return Execution("sequential", 1, reason)
    drawn = source.sample(alike[0].seeds.data)
    net, context = network(drawn, alike[0], config)
    if net.stochastic:
        return _not_stackable(request, "the model draws random numbers of its own, as dropout does")
    training = (name for name, role in drawn.roles(config.test).items() if role == "train")
    rows = (
        sum(len(drawn[name]) for name in training)
        if config.batch_size is None
        else config.batch_size * context.environments
    )
    is_large, size = _step_size(net, drawn.input_shape, rows)
    if auto and is_large:
        return Execution("sequential", 1, f"a step is large: {size}")
    try:
        needed = need(source, alike, config)
    except StackingError as error:
        return _not_stackable(request, str(error))
    except RuntimeError as error:
        return _not_stackable(request, f"PyTorch cannot stack it: {str(error).splitlines()[0]}")
    return _stack(request, needed, len(alike), config.device, budget, f"a step is small: {size}")


def _nothing_to_gain(alike: int, replicas: int, steps: int) -> str | None:
    if alike == 1:
        return "there is one replica" if replicas == 1 else "no two replicas have the same structure"
    if alike * steps < _FEW_STEPS:
        return f"{alike} × {steps} steps are too few to gain from stacking"
    return None


def _step_size(net: Network, input_shape: Sequence[int], rows: int) -> tuple[bool, str]:
    """Return whether a forward pass over so many rows is large, and its size in words."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.forward(net.params, net.buffers, torch.zeros(2, *input_shape, device=net.device), training=False)
    # A multiply-add is two operations, and two rows were counted.
    activations, products = rows * net.width, rows * counter.get_total_flops() // 4
    most_activations, most_products = _LARGE_STEP[net.device.type]
    size = f"{activations / 1e6:.3g} million activations and {products / 1e6:.3g} million multiply-adds"
    return activations > most_activations or products > most_products, size


def _stack(
    request: Auto | Stacked,
    needed: memory_budget.Need,
    replicas: int,
    device: torch.device,
    budget: int | None,
    reason: str,
) -> Execution:
    """Return stacked execution in groups of about equal size, as large as memory and caches allow."""
    budget = memory_budget.available(device) // 2 if budget is None else budget
    holes = HEAP if device.type == "cpu" else 1.0
    fit, fewest = needed.fit(int(budget / holes), replicas), min(2, replicas)
    if fit < fewest:
        if isinstance(request, Auto):
            return Execution("sequential", 1, f"a stack does not fit in {budget / 1e9:.3g} GB")
        raise EnvariantError(
            f"memory: {fewest} replicas need about {holes * needed.of(fewest) / 1e9:.3g} GB and "
            f"{budget / 1e9:.3g} GB are allowed; raise memory, or set execution to sequential"
        )
    if isinstance(request, Stacked) and request.group is not None:
        most = min(fit, request.group)
    elif device.type == "cpu":
        # Measurements have blocks of their own and do not slow a step.
        stepping = memory_budget.Need(needed.phases[-2:])
        most = min(fit, max(2, stepping.fit(_COMFORTABLE + stepping.of(1), replicas)))
    else:
        most = fit
    group = math.ceil(replicas / math.ceil(replicas / most))
    reason = reason if isinstance(request, Auto) else SEQUENTIAL.reason
    return Execution("stacked", group, reason, int(holes * needed.of(group)))


def _not_stackable(request: ExecutionRequest, reason: str) -> Execution:
    if isinstance(request, Stacked):
        raise EnvariantError(f"execution: these replicas cannot be stacked ({reason}); use sequential")
    return Execution("sequential", 1, reason)


def wait_for(device: torch.device) -> None:
    """Wait until a device has done its pending work; a CPU has none."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def need(source: EnvironmentSource, replicas: Sequence[Replica], config: RunConfig) -> memory_budget.Need:
    """Return the memory that a stack of any size needs, extrapolated from stacks of two and of four."""
    few = tuple(replicas[k % len(replicas)] for k in range(4))
    at_once = ReplicaStack(source, few[:1], config).measured_at_once
    return memory_budget.Need.measured(
        lambda count: peaks(source, few[:count], config), (float, at_once, float, float)
    )


def peaks(source: EnvironmentSource, replicas: Sequence[Replica], config: RunConfig) -> tuple[int, ...]:
    """Return the peak bytes of building a stack, of a measurement, and of its first and second step."""
    config, stack = replace(config, compiled=False), list[ReplicaStack]()
    return memory_budget.peak_bytes(
        lambda: stack.append(ReplicaStack(source, replicas, config)),
        lambda: stack[0].measure(),
        # The optimizer allocates its state in the first step; the second step draws no rows.
        lambda: stack[0].advance(),
        lambda: stack[0].advance(),
    )


def groups(replicas: Sequence[Replica], size: int) -> list[tuple[Replica, ...]]:
    """Return groups of at most `size` replicas of equal structure, of about the same size."""
    alike: dict[Any, list[Replica]] = {}
    for replica in replicas:
        alike.setdefault(structure(replica.algorithm), []).append(replica)
    parts: list[tuple[Replica, ...]] = []
    for members in alike.values():
        count = math.ceil(len(members) / size)
        edges = [round(i * len(members) / count) for i in range(count + 1)]
        parts += [tuple(members[a:b]) for a, b in pairwise(edges)]
    return parts
