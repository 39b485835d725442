"""Adam as a pure function, for procedures that make steps of their own.

The run's optimizer moves all parameters of all replicas in place; a procedure needs steps within a step,
some of them on a few parameters, and carries their moments in its state. Kingma & Ba 2014, algorithm 1.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import grad

from envariant.algorithms.base import Parameters, State

EPSILON = 1e-8


def moments(params: Parameters) -> State:
    """What Adam remembers of such parameters before its first step."""
    like = next(iter(params.values()), torch.zeros(()))
    zeros = {name: torch.zeros_like(value) for name, value in params.items()}
    return {"mean": zeros, "square": dict(zeros), "count": like.new_zeros(())}


def step(
    params: Parameters, gradients: Parameters, memory: State, rate: Any, beta1: Any = 0.9, beta2: Any = 0.999
) -> tuple[dict[str, Tensor], State]:
    """Parameters after one step, those without a gradient as they are, and the new moments.

    Args:
        params: all of them.
        gradients: of those that are to move; the same at every step.
        memory: what `moments` or the previous step gave.
        rate: the learning rate.
        beta1: memory of the gradient's mean.
        beta2: memory of its square's.
    """
    count = memory["count"] + 1
    mean = {k: beta1 * memory["mean"][k] + (1 - beta1) * g for k, g in gradients.items()}
    square = {k: beta2 * memory["square"][k] + (1 - beta2) * g.square() for k, g in gradients.items()}
    # β ** count where β may be a tensor of a replica's own, and 0.
    corrections = [1 - torch.as_tensor(beta, dtype=count.dtype, device=count.device) ** count
                   for beta in (beta1, beta2)]  # fmt: skip
    moved = {
        k: params[k] - rate * (mean[k] / corrections[0]) / ((square[k] / corrections[1]).sqrt() + EPSILON)
        for k in gradients
    }
    return {**params, **moved}, {"mean": mean, "square": square, "count": count}


def slopes(loss: Callable[[Parameters], Tensor], params: Parameters) -> dict[str, Tensor]:
    """The gradient of a loss in some parameters, of which there may be none."""
    return grad(loss)(params) if params else {}


def first_step(gradients: Parameters, rate: Any) -> dict[str, Tensor]:
    """How far a fresh Adam goes: about the rate, in the direction of the sign."""
    return {k: rate * g / (g.abs() + EPSILON) for k, g in gradients.items()}


def chosen(condition: Tensor, yes: Any, no: Any) -> Any:
    """One tree of tensors where the condition holds, another where it does not."""
    if isinstance(yes, Tensor):
        return torch.where(condition, yes, no)
    return {key: chosen(condition, value, no[key]) for key, value in yes.items()}


def part(params: Parameters, *prefixes: str) -> dict[str, Tensor]:
    """The parameters of some networks: those whose names begin with one of these words and a dot."""
    return {k: v for k, v in params.items() if k.split(".")[0] in prefixes}


def without(params: Parameters, names: Iterable[str]) -> dict[str, Tensor]:
    """The parameters that belong to none of these networks."""
    held = set(names)
    return {k: v for k, v in params.items() if k.split(".")[0] not in held}


def moved(before: Parameters, after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """How far each parameter went, as θ ← θ − moved."""
    return {k: v - after[k] for k, v in before.items()}
