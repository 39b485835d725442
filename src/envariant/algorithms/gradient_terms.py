"""Gradients of gradient penalties, and checks of the values that parts of a composition return."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vjp

from envariant.algorithms.base import GradientPenalty, Model, Parameters, Part, State
from envariant.core.environments import EnvironmentBatch
from envariant.core.errors import EnvariantError


def penalty_terms(
    part: GradientPenalty, model: Model, params: Parameters, batch: EnvironmentBatch, state: State
) -> tuple[Tensor, State, list[dict[str, Tensor]]]:
    """Return the value of a gradient penalty, its new state, and its gradient as one term per environment."""

    def risk_of(inputs: Tensor, targets: Tensor) -> Callable[[Parameters], Tensor]:
        return lambda params: batch.task.losses(model(params, inputs)[1], targets).mean()

    rows = zip(batch.split(batch.inputs), batch.split(batch.targets), strict=True)
    gradients, pullbacks = zip(*(vjp(grad(risk_of(*each)), params) for each in rows), strict=True)
    stacked = {name: torch.stack([g[name] for g in gradients]) for name in params}
    directions, (value, new) = grad_and_value(part.penalty, has_aux=True)(stacked, state)
    terms = [
        pull({name: direction[e] for name, direction in directions.items()})[0]
        for e, pull in enumerate(pullbacks)
    ]
    return value.detach(), new, terms


def added(
    gradients: Sequence[Mapping[str, Tensor]], terms: Sequence[Mapping[str, Tensor]], weight: Any
) -> list[dict[str, Tensor]]:
    """Return the sums g + weight · term of each environment's gradient g and its term, by parameter name."""
    return [
        {name: g + weight * term[name] for name, g in gradient.items()}
        for gradient, term in zip(gradients, terms, strict=True)
    ]


def number_and_state(part: Part, result: object) -> tuple[Tensor, State]:
    """Check that a part returned a number and a state, and return both.

    Raises:
        EnvariantError: If the result is anything else.
    """
    match result:
        case (Tensor() as value, Mapping() as state) if not value.dim():
            return value, cast("State", state)
        case (Tensor() as value, Mapping()):
            got = f"a tensor of shape {tuple(value.shape)}"
        case _:
            got = type(result).__name__
    raise EnvariantError(f"{part.name}: must return one number and its state; got {got}")


def check_gradient(part: Part, gradient: Mapping[str, Tensor], params: Mapping[str, Tensor]) -> None:
    """Check that a part returned one gradient per parameter.

    Raises:
        EnvariantError: If a gradient is missing, or its shape differs from that of its parameter.
    """
    for name, value in params.items():
        shape = tuple(gradient[name].shape) if name in gradient else "no gradient"
        if shape != tuple(value.shape):
            raise EnvariantError(
                f"{part.name}: must return a gradient of shape {tuple(value.shape)} for parameter '{name}'; "
                f"got {shape}"
            )


def summed(terms: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the sum of all environments' terms, by parameter name."""
    return {name: torch.stack([term[name] for term in terms]).sum(dim=0) for name in terms[0]}
