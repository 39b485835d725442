"""Problems on which algorithms are compared with formulas: a small batch, and the risks of its environments."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from envariant import testing
from envariant.algorithms import TrainContext
from envariant.core.tasks import Binary, Multiclass, Task

Params = Mapping[str, Tensor]
Loss = Callable[[Params], Tensor]
Differentiate = Callable[[Loss, Params], dict[str, Tensor]]


@dataclass(frozen=True)
class Problem(testing.Problem):
    """A problem with the risks of its environments, written without the package's losses."""

    def losses(self, params: Params, e: int) -> Tensor:
        """The loss of every row of an environment, from its formula."""
        inputs, targets = self.environments()[e]
        z = self(params, inputs)[1]
        if isinstance(self.task, Binary):
            return F.softplus(z) - targets * z
        if isinstance(self.task, Multiclass):
            return -z.log_softmax(dim=1)[range(len(z)), targets]
        return (z - targets) ** 2

    def features(self, params: Params) -> list[Tensor]:
        return [self(params, x)[0] for x, _ in self.environments()]

    def environment_risk(self, params: Params, e: int, scale: Tensor | float = 1.0) -> Tensor:
        """R_e of the logits times `scale`, from its formula."""
        inputs, targets = self.environments()[e]
        z = self(params, inputs)[1] * scale
        if isinstance(self.task, Binary):
            return (F.softplus(z) - targets * z).mean()
        if isinstance(self.task, Multiclass):
            return -z.log_softmax(dim=1)[range(len(z)), targets].mean()
        return ((z - targets) ** 2).mean()

    def risks(self, params: Params) -> Tensor:
        return torch.stack([self.environment_risk(params, e) for e in range(len(self.batch.sizes))])

    def slope(self, params: Params, e: int) -> Tensor:
        """∂R_e/∂s for a scalar s that multiplies the logits; differentiable again, as in the IRM code."""
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        risk = self.environment_risk(params, e, scale)
        return torch.autograd.grad(risk, [scale], create_graph=True)[0]


PROBLEMS = {name: Problem.example(task) for name, task in testing.TASKS.items()}


def train_context(environments: int | tuple[int, ...], task: Task, **fields: Any) -> TrainContext:
    """A context for environments of given sizes, or for a number of environments with 10 rows each."""
    sizes = (10,) * environments if isinstance(environments, int) else environments
    return TrainContext(tuple(f"environment {e}" for e in range(len(sizes))), sizes, task, **fields)


def autograd(loss: Loss, params: Params) -> dict[str, Tensor]:
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    return dict(zip(leaves, torch.autograd.grad(loss(leaves), list(leaves.values())), strict=True))


def central_differences(loss: Loss, params: Params, width: float = 1e-4) -> dict[str, Tensor]:
    gradient = {name: torch.zeros_like(value) for name, value in params.items()}
    for name, value in params.items():
        for i in range(value.numel()):
            bump = torch.zeros_like(value)
            bump.view(-1)[i] = width
            far, up, down, low = (
                float(loss({**params, name: value + k * bump}).detach()) for k in (2, 1, -1, -2)
            )
            # Four points, so that what is left is of the order of width⁴.
            gradient[name].view(-1)[i] = (low - far + 8 * (up - down)) / (12 * width)
    return gradient


def assert_same(a: Params, b: Params, tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=tolerance, atol=tolerance)


def assert_same_bits(a: Params, b: Params) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(value, b[name]) for name, value in a.items())
