"""Choice of sequential or stacked execution, and of the stack size.

With small models, Python overhead takes most of the time, and stacked replicas share it. Large models use the
processor fully, and stacks of them are slower than sequential execution. The results of the two modes differ
by rounding, which accumulates over long runs. The choice is therefore stored with the result, and a resumed
run uses the same mode.

1. Execution is sequential if there is only one replica, there are few steps, the model uses random numbers
   (as in dropout), or a step is large (`_LARGE_STEP`).
2. Otherwise, replicas are stacked: as many as fit in memory and, on a CPU, in its caches.

The rules do not measure time, so the choice does not depend on the load of the machine. If memory runs out
during training, the engine halves the stack (`engine.run`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, final

import torch
from pydantic import PositiveInt
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

# Fewer steps than this, over all replicas, take about a second, so stacking does not pay.
_FEW_STEPS = 2000
# Activations and multiply-adds of a forward pass, by type of device, above which a step is large. Such a step
# takes a few milliseconds, compared with one millisecond of Python overhead; in measurements, stacks of eight
# were not faster.
_LARGE_STEP = {"cpu": (4_000_000, 5_000_000), "cuda": (200_000_000, 2_000_000_000)}
# Ratio of heap size to live tensors. The heap is larger because freed memory is kept (`allocator.py`).
HEAP = 2.5
# Maximum memory of a stack on a CPU in bytes. Larger stacks do not fit in the caches and are slower.
_COMFORTABLE = 64 * 2**20


@final
@dataclass(frozen=True)
class Auto:
    """Request for an automatic choice between sequential and stacked execution."""

    def __str__(self) -> str:
        return "auto"


@final
@dataclass(frozen=True)
class Sequential:
    """Request for sequential execution."""

    def __str__(self) -> str:
        return "sequential"


@final
@dataclass(frozen=True)
class Stacked:
    """Request for stacked execution.

    Attributes:
        group: Maximum number of replicas in one program. Default: limited by memory and CPU caches.
    """

    group: PositiveInt | None = None

    def __post_init__(self) -> None:
        specs.validate(self, "stacked")

    def __str__(self) -> str:
        return "stacked" if self.group is None else f"stacked(group={self.group})"


ExecutionRequest = Auto | Sequential | Stacked
"""Requested execution of the replicas."""

_REQUESTS: dict[str, type[ExecutionRequest]] = {"auto": Auto, "sequential": Sequential, "stacked": Stacked}


def execution_request(request: str | ExecutionRequest) -> ExecutionRequest:
    """Convert `auto`, `sequential` or a string such as `stacked(group=50)` to an execution request.

    Args:
        request: String, or a request, which is returned unchanged.

    Raises:
        EnvariantError: If `request` is neither a valid string nor an execution request.
    """
    if isinstance(request, str):
        return specs.build("execution", request, _REQUESTS)
    if isinstance(request, ExecutionRequest):
        return request
    raise EnvariantError(f"execution must be auto, sequential, stacked or stacked(group=50); got {request!r}")


@final
@dataclass(frozen=True)
class Execution:
    """Execution of the replicas: mode, stack size and reason.

    Attributes:
        mode: "sequential" or "stacked".
        group: Maximum number of replicas in one program.
        reason: Reason for the choice of the mode.
        bytes_predicted: Predicted peak memory of a stack in bytes, including freed memory that the process
            keeps; None if unknown.
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
    """Return the requested execution. For `Auto`, apply the two rules in the docstring of this module.

    If replicas differ in structure, the rules are applied to the largest group with equal structure.

    Args:
        request: Requested execution.
        source: Data source of all replicas.
        replicas: Replicas to execute.
        config: Settings shared by all replicas.
        budget: Memory limit of a stack in bytes. Default: half of the available memory.

    Raises:
        EnvariantError: If stacking was requested, but is not possible or exceeds the budget.
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
        return f"{alike} replicas of {steps} steps are too few to gain from stacking"
    return None


def _step_size(net: Network, input_shape: Sequence[int], rows: int) -> tuple[bool, str]:
    """Return whether a forward pass over `rows` rows is large, and its size as text."""
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
    """Return stacked execution with about equal groups, as large as memory and CPU caches allow."""
    budget = memory_budget.available(device) // 2 if budget is None else budget
    holes = HEAP if device.type == "cpu" else 1.0
    fit, fewest = needed.fit(int(budget / holes), replicas), min(2, replicas)
    if fit < fewest:
        if isinstance(request, Auto):
            return Execution("sequential", 1, f"a stack does not fit in {budget / 1e9:.3g} GB")
        raise EnvariantError(
            f"memory: {fewest} replicas need about {holes * needed.of(fewest) / 1e9:.3g} GB, but only "
            f"{budget / 1e9:.3g} GB are allowed; raise the option 'memory', or set execution to sequential"
        )
    if isinstance(request, Stacked) and request.group is not None:
        most = min(fit, request.group)
    elif device.type == "cpu":
        # Evaluation uses separate blocks and does not slow down training steps.
        stepping = memory_budget.Need(needed.phases[-2:])
        most = min(fit, max(2, stepping.fit(_COMFORTABLE + stepping.of(1), replicas)))
    else:
        most = fit
    group = math.ceil(replicas / math.ceil(replicas / most))
    reason = reason if isinstance(request, Auto) else SEQUENTIAL.reason
    return Execution("stacked", group, reason, int(holes * needed.of(group)))


def _not_stackable(request: ExecutionRequest, reason: str) -> Execution:
    if isinstance(request, Stacked):
        raise EnvariantError(
            f"execution: these replicas cannot be stacked ({reason}); set execution to sequential"
        )
    return Execution("sequential", 1, reason)


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has finished its pending operations; do nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def need(source: EnvironmentSource, replicas: Sequence[Replica], config: RunConfig) -> memory_budget.Need:
    """Return the memory that stacks of any size need, extrapolated from stacks of two and four replicas."""
    few = tuple(replicas[k % len(replicas)] for k in range(4))
    at_once = ReplicaStack(source, few[:1], config).measured_at_once
    return memory_budget.Need.measured(
        lambda count: peaks(source, few[:count], config), (float, at_once, float, float)
    )


def peaks(source: EnvironmentSource, replicas: Sequence[Replica], config: RunConfig) -> tuple[int, ...]:
    """Return the peak memory of each of four phases, in bytes.

    The phases are: build a stack, evaluate it, run the first training step, and run the second.
    """
    config, stack = replace(config, compiled=False), list[ReplicaStack]()
    return memory_budget.peak_bytes(
        lambda: stack.append(ReplicaStack(source, replicas, config)),
        lambda: stack[0].measure(),
        # The first step allocates the optimizer state and samples rows; the second step does not.
        lambda: stack[0].advance(),
        lambda: stack[0].advance(),
    )


def groups(replicas: Sequence[Replica], size: int) -> list[tuple[Replica, ...]]:
    """Split replicas into groups, each with at most `size` replicas of equal structure.

    Groups with the same structure have about the same size.
    """
    alike: dict[Any, list[Replica]] = {}
    for replica in replicas:
        alike.setdefault(structure(replica.algorithm), []).append(replica)
    parts: list[tuple[Replica, ...]] = []
    for members in alike.values():
        count = math.ceil(len(members) / size)
        edges = [round(i * len(members) / count) for i in range(count + 1)]
        parts += [tuple(members[a:b]) for a, b in pairwise(edges)]
    return parts
