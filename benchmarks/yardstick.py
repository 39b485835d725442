"""The yardstick: training loops as the papers describe them, in plain float32 PyTorch, for one replica.

No row blocks, no bfloat16, no stacking, nothing of the library's: one pass for each environment, IRM's
penalty by differentiating with respect to a scalar multiplier, and, as in the IRM code, a pass over the
test environment at every step. What the library claims to be faster than is this.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

Rows = tuple[Tensor, Tensor]


def mlp(inputs: int, hidden: int, outputs: int = 1) -> nn.Module:
    """Two hidden layers with ReLU, Xavier-uniform weights, zero biases."""
    layers = [nn.Linear(inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, outputs)]
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


def cnn(channels: int, outputs: int = 1) -> nn.Module:
    """DomainBed's MNIST_CNN, of PyTorch's layers as they are."""
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
    """One step of the IRM code: penalty by a scalar multiplier, the loss divided by the coefficient."""
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
    """One step of ERM, IRMv1, AND-mask (τ = 1) or IGA, as the unit tests of invariance have them."""
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
        second = algorithm == "iga"
        each = [torch.autograd.grad(risk, parameters, create_graph=second) for risk in risks]
        stacks = [torch.stack(entries) for entries in zip(*each, strict=True)]
        if second:
            spread = sum((g - g.mean(dim=0)).square().sum() for g in stacks)
            (torch.stack(risks).mean() + spread).backward()
        else:
            for parameter, g in zip(parameters, stacks, strict=True):
                mask = (g.sign().mean(dim=0).abs() >= 1 - 1e-6).float()
                parameter.grad = mask * g.mean(dim=0) / (1e-10 + mask.mean())
    optimizer.step()


def erm_step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor) -> None:
    """One step of ERM on one batch of rows."""
    optimizer.zero_grad()
    F.binary_cross_entropy_with_logits(model(inputs)[:, 0], targets).backward()
    optimizer.step()


def evaluate(model: Callable[[Tensor], Tensor], inputs: Tensor, rows: int) -> Tensor:
    """Logits of many rows, `rows` at a time."""
    with torch.no_grad():
        return torch.cat([model(block)[:, 0] for block in inputs.split(rows)])
