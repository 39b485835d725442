"""Adam as a pure function, for training steps that update parameters themselves. Kingma & Ba 2014.

The run's optimizer updates all parameters of all replicas in place. Some training steps, however, must update
a few parameters within a step. They use these functions and store Adam's moments in their state.
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
    """Return Adam's initial state: a step count of 0, and zeros as the two moments of every parameter."""
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
        memory: State returned by `moments` or by the previous step.
        context: Context of the step, with learning rate and weight decay.
        rate: Factor by which the context's learning rate is multiplied.
        beta1: Decay rate of the moving mean of gradients.
        beta2: Decay rate of the moving mean of squared gradients.
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
    """Add the gradient of L2 weight decay, `context.weight_decay` times the parameter, to each gradient."""
    return {k: g + context.weight_decay * params[k] for k, g in gradients.items()}


def gradients_of(loss: Callable[[Parameters], Tensor], params: Parameters) -> dict[str, Tensor]:
    """Return the gradients of a loss by parameter name; an empty dictionary if there are no parameters."""
    return grad(loss)(params) if params else {}


def first_step(gradients: Parameters, rate: Any) -> dict[str, Tensor]:
    """Return the update to subtract in Adam's first step: about `rate` times the sign of the gradient."""
    return {k: rate * g / (g.abs() + EPSILON) for k, g in gradients.items()}


def where(condition: Tensor, first: Any, second: Any) -> Any:
    """Apply `torch.where` to every tensor of two nested mappings with the same keys."""
    if isinstance(first, Tensor):
        return torch.where(condition, first, second)
    return {key: where(condition, value, second[key]) for key, value in first.items()}


def part(params: Parameters, *prefixes: str) -> dict[str, Tensor]:
    """Return only the parameters whose names begin with one of the given network names."""
    return {k: v for k, v in params.items() if k.split(".")[0] in prefixes}


def without(params: Parameters, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the parameters that do not belong to the named networks."""
    excluded = set(names)
    return {k: v for k, v in params.items() if k.split(".")[0] not in excluded}


def update(before: Parameters, after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return each parameter's update, `before` − `after`, to be applied as θ ← θ − update."""
    return {k: v - after[k] for k, v in before.items()}
