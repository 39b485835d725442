"""Adam as a pure function, for training steps that update parameters themselves. Kingma & Ba 2014.

The run's optimizer updates all parameters of all replicas in place. Training steps need inner updates, some
for only a few parameters, and store Adam's moments in their state.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import grad

from envariant.algorithms.base import Parameters, State
from envariant.core.step_context import StepContext

EPSILON = 1e-8


def moments(params: Parameters) -> State:
    """Return Adam's moments before the first step: zeros in the shapes of the parameters."""
    like = next(iter(params.values()), torch.zeros(()))
    zeros = {name: torch.zeros_like(value) for name, value in params.items()}
    return {"mean": zeros, "square": dict(zeros), "count": like.new_zeros(())}


def step(
    params: Parameters,
    gradients: Parameters,
    memory: State,
    context: StepContext,
    *,
    rate: Any = 1.0,
    beta1: Any = 0.9,
    beta2: float = 0.999,
) -> tuple[dict[str, Tensor], State]:
    """Return the parameters after one step of Adam with L2 weight decay, and the new moments.

    Args:
        params: Parameters by name.
        gradients: Gradients of the parameters to update, with the same keys at every step.
        memory: Moments returned by `moments` or by the previous step.
        context: Context of the step, with learning rate and weight decay.
        rate: Factor by which the context's learning rate is multiplied.
        beta1: Decay of the gradient's moving mean.
        beta2: Decay of the squared gradient's moving mean.
    """
    count, rate = memory["count"] + 1, rate * context.learning_rate
    gradients = decayed(params, gradients, context)
    mean = {k: beta1 * memory["mean"][k] + (1 - beta1) * g for k, g in gradients.items()}
    square = {k: beta2 * memory["square"][k] + (1 - beta2) * g.square() for k, g in gradients.items()}
    # β may be 0, and a tensor with one entry per replica. In float32, 1 − β₂ would be off by 1e-5.
    powers = (torch.as_tensor(b, dtype=torch.float64, device=count.device) ** count for b in (beta1, beta2))
    corrections = [(1 - power).to(count.dtype) for power in powers]
    updated = {
        k: params[k] - rate * (mean[k] / corrections[0]) / ((square[k] / corrections[1]).sqrt() + EPSILON)
        for k in gradients
    }
    return {**params, **updated}, {"mean": mean, "square": square, "count": count}


def decayed(params: Parameters, gradients: Parameters, context: StepContext) -> dict[str, Tensor]:
    """Add the gradient of the l2 term, weight decay times parameter, to the gradients of a loss."""
    return {k: g + context.weight_decay * params[k] for k, g in gradients.items()}


def gradients_of(loss: Callable[[Parameters], Tensor], params: Parameters) -> dict[str, Tensor]:
    """Return a mapping from parameter name to gradient of a loss; empty if there are no parameters."""
    return grad(loss)(params) if params else {}


def first_step(gradients: Parameters, rate: Any) -> dict[str, Tensor]:
    """Return the update of Adam's first step: approximately `rate` times the sign of the gradient."""
    return {k: rate * g / (g.abs() + EPSILON) for k, g in gradients.items()}


def where(condition: Tensor, first: Any, second: Any) -> Any:
    """Apply `torch.where` to every tensor of two nested mappings with the same keys."""
    if isinstance(first, Tensor):
        return torch.where(condition, first, second)
    return {key: where(condition, value, second[key]) for key, value in first.items()}


def part(params: Parameters, *prefixes: str) -> dict[str, Tensor]:
    """Return the parameters of the named networks, whose names are prefixes of parameter names."""
    return {k: v for k, v in params.items() if k.split(".")[0] in prefixes}


def without(params: Parameters, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the parameters that do not belong to the named networks."""
    excluded = set(names)
    return {k: v for k, v in params.items() if k.split(".")[0] not in excluded}


def update(before: Parameters, after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the update of each parameter: `before` minus `after`, as in θ ← θ − update."""
    return {k: v - after[k] for k, v in before.items()}
