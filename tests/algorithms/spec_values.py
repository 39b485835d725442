"""Inputs of the specification's numeric checks, and predictions to apply a part to by hand."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from algorithms.problems import Params
from envariant.core.environments import EnvironmentBatch, PredictedBatch
from envariant.core.step_context import START, StepContext
from envariant.core.tasks import Multiclass, Regression, Task


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(actual: Tensor, *expected: float) -> None:
    """Compare with the numbers in the specification, which have six digits."""
    torch.testing.assert_close(actual, vector(*expected).reshape(actual.shape), rtol=1e-5, atol=1e-12)


@dataclass(frozen=True)
class Bare:
    """Model without submodules: a function `(params, inputs) → (features, logits)`."""

    function: Callable[[Params, Tensor], tuple[Tensor, Tensor]]
    auxiliary_networks: tuple[str, ...] = ()

    def __call__(self, params: Params, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self.function(params, inputs)


def predicted(
    task: Task,
    logits: Tensor,
    targets: Tensor,
    sizes: tuple[int, ...],
    features: Tensor | None = None,
    context: StepContext = START,
) -> PredictedBatch:
    """Return the predictions that a risk aggregator or penalty receives for given logits and features."""
    batch = EnvironmentBatch(torch.zeros(len(logits), 1), targets, sizes, task)
    return batch.predicted(
        logits.new_zeros(len(logits), 0) if features is None else features, logits, context
    )


def with_risks(risks: Tensor, context: StepContext = START) -> PredictedBatch:
    """Return environments of one row each with given risks: squared errors of their roots against 0."""
    targets = torch.zeros_like(risks)
    return predicted(Regression(), risks.sqrt(), targets, (1,) * len(risks), context=context)


# Inputs of the spec's numeric checks.
A, LABELS_A = torch.tensor([[1, 2], [3, 0], [2, 4]], dtype=torch.float64), torch.tensor([0, 1, 0])
B, LABELS_B = torch.tensor([[0, 1], [1, 1], [2, -2]], dtype=torch.float64), torch.tensor([1, 1, 0])
Z3 = torch.tensor([[1, -0.5, 0.2], [0.3, 0.8, -1], [-0.7, 0.1, 1.5], [0, 2, -0.4]], dtype=torch.float64)
Y3 = torch.tensor([0, 1, 2, 0])
X1, LABELS_1 = torch.tensor([[1, 2], [0, 1], [-1, 1]], dtype=torch.float64), torch.tensor([0, 1, 1])
X2, LABELS_2 = torch.tensor([[2, 0], [1, -1], [0, 0.5]], dtype=torch.float64), torch.tensor([1, 0, 1])
M_WEIGHT, M_BIAS = torch.tensor([[0.5, -0.2], [0.1, 0.3]], dtype=torch.float64), vector(0, 0.1)
Q = torch.tensor([[1, 0], [0.5, 1], [-1, 0.5], [0, 2], [1, 1]], dtype=torch.float64)
LABELS_Q, OWNERS_Q = torch.tensor([0, 0, 1, 0, 1]), torch.tensor([0, 1, 0, 0, 1])
ZB, YB = torch.tensor([0.5, -1, 2, 0.3], dtype=torch.float64), vector(1, 0, 0, 1)
G = torch.tensor([[1, -2, 0.5, 0], [2, -1, -0.5, 0.3], [3, -3, 1, 0.1]], dtype=torch.float64)


def two_environments(
    weight: Tensor = M_WEIGHT, bias: Tensor = M_BIAS, context: StepContext = START
) -> PredictedBatch:
    """Return A and B as features of two environments, under a linear head."""
    features = torch.cat([A, B])
    logits = features @ weight.T + bias
    targets = torch.cat([LABELS_A, LABELS_B])
    return predicted(Multiclass(len(bias)), logits, targets, (3, 3), features, context)
