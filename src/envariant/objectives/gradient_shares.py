"""Gradients of each environment's risk, and each environment's share of the gradient of the whole loss.

By the chain rule, ∇L = Σ_e (∂L/∂z_e)(∂z_e/∂θ) for the parameters θ and the model's outputs z_e on the rows of
environment e. `envariant.algorithms.composition` derives the same shares with `torch.func`; here, the outputs
come from the forward pass of a training loop, and PyTorch's autograd propagates them back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from envariant.core.errors import EnvariantError
from envariant.objectives.joined_batch import JoinedBatch


def check_differentiable(batch: JoinedBatch) -> None:
    """Check that the outputs of the model can be differentiated.

    Raises:
        EnvariantError: If they were computed without gradients.
    """
    if not batch.logits.requires_grad:
        raise EnvariantError(
            "objective: logits and losses must have gradients; compute them outside of torch.no_grad()"
        )


def risk_gradients(batch: JoinedBatch, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what the rows of this process contribute to ∇R_e, `[environments, *shape]` by parameter name.

    The gradients are differentiable.

    Args:
        batch: Batch of the step.
        parameters: Trained parameters of the model by name.

    Raises:
        EnvariantError: If the outputs of the model were computed without gradients.
    """
    check_differentiable(batch)
    own = list(parameters.values())
    each = [
        torch.autograd.grad(risk, own, create_graph=True, materialize_grads=True)
        for risk in batch.environment_losses()
    ]
    return {name: torch.stack(values) for name, *values in zip(parameters, *each, strict=True)}


@final
@dataclass(frozen=True, eq=False)
class Differentiated:
    """Outputs of the forward pass in this process, and the gradient of the loss with respect to them.

    Attributes:
        rows: Pairs of an output `[rows, …]` and the gradient.
        stacks: Pairs of the contribution to the gradients of all risks `[environments, …]` and the gradient
            with respect to their sum over all processes.
    """

    rows: Sequence[tuple[Tensor, Tensor]]
    stacks: Sequence[tuple[Tensor, Tensor]] = ()


def shares(
    batch: JoinedBatch, differentiated: Differentiated, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return each environment's share of the loss's gradient, `[environments, *shape]` by parameter name.

    The shares are summed over all processes.

    Args:
        batch: Batch of the step.
        differentiated: Outputs of this process, with the gradient of the loss.
        parameters: Trained parameters of the model by name.
    """
    own, each = list(parameters.values()), list[Sequence[Tensor]]()
    outputs = [output for output, _ in (*differentiated.rows, *differentiated.stacks)]
    for e in range(len(batch.grouping.ids)):
        mask = batch.own_rows(e)
        directions = [g * mask.view(-1, *(1,) * (g.dim() - 1)) for _, g in differentiated.rows]
        for _, g in differentiated.stacks:
            direction = torch.zeros_like(g)
            direction[e] = g[e]
            directions.append(direction)
        each.append(
            torch.autograd.grad(
                outputs, own, directions, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        )
    local = {name: torch.stack(values) for name, *values in zip(parameters, *each, strict=True)}
    return {name: batch.processes.total(share) for name, share in local.items()}


def accumulate(parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
    """Add gradients to the attribute `grad` of parameters, as `backward` does.

    Args:
        parameters: Parameters by name.
        gradients: Gradients by parameter name.
    """
    for name, parameter in parameters.items():
        gradient = gradients[name].detach().to(parameter.dtype)
        parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad + gradient
