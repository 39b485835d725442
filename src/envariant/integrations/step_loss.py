"""Loss of one training step, for trainers that call `loss.backward()` themselves.

Some algorithms, such as AND-mask, combine the gradients of the environments, and no loss has the combined
gradient g. Trainers need a loss, so for these algorithms the loss is L + ⟨g, θ⟩ − ⟨g, θ₀⟩ with constants L, g
and θ₀. Its value is L, since θ = θ₀, and its gradient is g.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor, nn

from envariant.core.errors import EnvariantError, shown, unknown_name
from envariant.objectives import Objective
from envariant.objectives.requirements import has_loss


def as_objective(objective: object) -> Objective:
    """Check that an argument is an objective.

    Raises:
        EnvariantError: If it is not.
    """
    if isinstance(objective, Objective):
        return objective
    raise EnvariantError(
        f"objective must be an objective, such as envariant.objective('vrex'); got {shown(objective)}"
    )


@final
class Features:
    """Features of one forward pass: the inputs of the model's last layer.

    Attributes:
        values: Features `[rows, width]`; None before the forward pass, or if they are not needed.
    """

    values: Tensor | None = None


@contextmanager
def recorded_features(objective: Objective, model: nn.Module, head: str | None = None) -> Generator[Features]:
    """Record the features in the forward pass within a `with` statement.

    Args:
        objective: Objective; if its algorithm does not need features, nothing is recorded.
        model: Model.
        head: Name of the model's last layer. Default: the `torch.nn.Linear` that the model lists last.

    Raises:
        EnvariantError: If the model has no such layer.
    """
    features = Features()
    if not objective.algorithm.needs_features:
        yield features
        return

    def record(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        features.values = inputs[0]

    handle = _head(model, head).register_forward_pre_hook(record)
    try:
        yield features
    finally:
        handle.remove()


def _head(model: nn.Module, head: str | None) -> nn.Module:
    layers = dict(model.named_modules())
    if head is None:
        linear = [name for name, layer in layers.items() if isinstance(layer, nn.Linear)]
        if not linear:
            raise EnvariantError(
                f"model {type(model).__name__}: has no torch.nn.Linear; name its last layer with head=…"
            )
        head = linear[-1]
    if head not in layers:
        raise unknown_name("layer", head, filter(None, layers), where=f"model {type(model).__name__}")
    return layers[head]


def step_loss(
    objective: Objective,
    model: nn.Module,
    logits: Tensor,
    targets: Tensor,
    environments: Tensor,
    *,
    features: Tensor | None = None,
    step: int | None = None,
) -> Tensor:
    """Return a scalar whose value is the loss of the objective and whose gradient is that of the algorithm.

    Args:
        objective: Objective; in training mode, its state is updated.
        model: Model that computed the logits, without the networks of the objective.
        logits: Outputs of the model, `[rows]` or `[rows, outputs]`.
        targets: Targets, `[rows]` or `[rows, outputs]`.
        environments: Number of the environment of each row, `[rows]`.
        features: Inputs of the model's last layer, `[rows, width]`, for algorithms that need them.
        step: Number of completed updates. Default: number of earlier calls in training mode.

    Raises:
        EnvariantError: If shapes or values are not valid, or the algorithm needs an argument that is missing.
    """
    if has_loss(objective.algorithm):
        return objective(logits, targets, environments, features=features, model=model, step=step)
    parameters = [p for p in (*model.parameters(), *objective.parameters()) if p.requires_grad]
    before = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    try:
        loss = objective.backward(model, logits, targets, environments, features=features, step=step)
        gradients = [p.grad for p in parameters]
    finally:
        for p, gradient in zip(parameters, before, strict=True):
            p.grad = gradient
    products = [
        (gradient.detach() * p).sum()
        for p, gradient in zip(parameters, gradients, strict=True)
        if gradient is not None
    ]
    linear = torch.stack(products).sum()
    return loss + (linear - linear.detach())
