"""Training loops as the papers describe them, in plain float32 PyTorch, for one replica.

These are the reference of `engine.py`. They use no row blocks, no bfloat16, no stacking and nothing of the
library: one pass per environment and IRM's penalty by differentiating with respect to a scalar multiplier.
As in the IRM code, the test environment is evaluated at every step.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

Rows = tuple[Tensor, Tensor]
"""Inputs and targets of one environment."""


def mlp(inputs: int, hidden: int, outputs: int = 1) -> nn.Module:
    """Build two hidden layers with ReLU, Xavier-uniform weights and zero biases."""
    layers = [nn.Linear(inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, outputs)]
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


def cnn(channels: int, outputs: int = 1) -> nn.Module:
    """Build DomainBed's MNIST_CNN from PyTorch's own layers."""
    layers: list[nn.Module] = []
    for width, stride in ((64, 1), (128, 2), (128, 1), (128, 1)):
        layers += [nn.Conv2d(channels, width, 3, stride, padding=1), nn.ReLU(), nn.GroupNorm(8, width)]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, outputs))


def irm_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    training: Sequence[Rows],
    coefficient: float,
    l2: float,
    test: Rows | None,
) -> None:
    """Take one step of the IRM code: scalar-multiplier penalty, loss divided by the coefficient."""
    risks, penalties = [], []
    for inputs, targets in training:
        logits = model(inputs)[:, 0]
        scale = torch.ones((), requires_grad=True, device=logits.device)
        risk = F.binary_cross_entropy_with_logits(logits * scale, targets)
        (slope,) = torch.autograd.grad(risk, [scale], create_graph=True)
        risks.append(risk)
        penalties.append(slope.square())
    loss = torch.stack(risks).mean() + coefficient * torch.stack(penalties).mean()
    loss = loss + l2 * sum(parameter.norm() ** 2 for parameter in model.parameters())
    if coefficient > 1:
        loss = loss / coefficient
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if test is not None:
        inputs, targets = test
        with torch.no_grad():
            ((model(inputs)[:, 0] > 0) == (targets > 0.5)).float().mean()


def linear_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, training: Sequence[Rows], algorithm: str
) -> None:
    """Take one step of ERM, IRMv1, AND-mask (τ = 1) or IGA, as in the unit tests of invariance."""
    parameters = list(model.parameters())
    risks, penalties = [], []
    for inputs, targets in training:
        logits = model(inputs)[:, 0]
        if algorithm == "irm":
            scale = torch.ones((), requires_grad=True, device=logits.device)
            risks.append(F.binary_cross_entropy_with_logits(logits * scale, targets))
            (slope,) = torch.autograd.grad(risks[-1], [scale], create_graph=True)
            penalties.append(slope.square())
        else:
            risks.append(F.binary_cross_entropy_with_logits(logits, targets))
    optimizer.zero_grad()
    if algorithm in ("erm", "irm"):
        total = torch.stack([*risks, *penalties]).sum() / len(risks)
        total.backward()
    else:
        second_order = algorithm == "iga"
        gradients = [torch.autograd.grad(risk, parameters, create_graph=second_order) for risk in risks]
        stacks = [torch.stack(entries) for entries in zip(*gradients, strict=True)]
        if second_order:
            spread = sum((g - g.mean(dim=0)).square().sum() for g in stacks)
            (torch.stack(risks).mean() + spread).backward()
        else:
            for parameter, g in zip(parameters, stacks, strict=True):
                mask = (g.sign().mean(dim=0).abs() >= 1 - 1e-6).float()
                parameter.grad = mask * g.mean(dim=0) / (1e-10 + mask.mean())
    optimizer.step()


def erm_step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor) -> None:
    """Take one step of ERM on one batch."""
    optimizer.zero_grad()
    F.binary_cross_entropy_with_logits(model(inputs)[:, 0], targets).backward()
    optimizer.step()


def evaluate(model: Callable[[Tensor], Tensor], inputs: Tensor, rows: int) -> Tensor:
    """Return the logits of all inputs, computed `rows` at a time."""
    with torch.no_grad():
        return torch.cat([model(block)[:, 0] for block in inputs.split(rows)])
