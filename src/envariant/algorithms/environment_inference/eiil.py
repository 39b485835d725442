"""EIIL: infer two environments that maximize the IRM penalty of a reference model."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, final

import torch
from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor

from envariant.algorithms.base import EnvironmentInference
from envariant.core.search_space import Choice
from envariant.core.tasks import Task


@final
@dataclass(frozen=True)
class EIIL(EnvironmentInference):
    """Environments that maximize ½[(mean_i q_i·d_i)² + (mean_i (1 − q_i)·d_i)²] over q. Creager et al. 2021.

    q_i in [0, 1] is the degree to which row i belongs to the second environment. d_i is the derivative
    ∂ℓ_i(s·z_i)/∂s at s = 1 of the loss ℓ_i of row i, where s multiplies the logits z_i. The logits come from
    a reference model, which is trained by ERM on all training rows (`PooledMean`) and then fixed. The
    objective is convex in mean_i q_i·d_i, so its maximum is at an extreme point: q_i is 1 if d_i > 0, and 0
    otherwise. With the logistic loss, d_i < 0 if and only if row i is predicted correctly. One environment
    then consists of the correctly predicted rows and the other of the incorrectly predicted rows; their sizes
    usually differ a lot.

    Attributes:
        reference_steps: Number of training steps of the reference model; 0 for the run's number of steps.
        reference_l2: Weight of the squared parameter norm in the reference model's loss.
        method: Maximization method: "exact" for the solution above, or "ascent" for the paper's 10,000 steps
            of Adam, starting from random q.
    """

    name: ClassVar[str] = "eiil"
    paper: ClassVar[str] = "Creager, Jacobsen, Zemel 2021, arXiv 2010.07249"
    reference_steps: NonNegativeInt = 0
    reference_l2: NonNegativeFloat = 0.0011
    method: Annotated[Literal["exact", "ascent"], Choice(("exact", "ascent"))] = "exact"

    def environments(self, logits: Tensor, targets: Tensor, task: Task) -> Tensor:
        slopes = task.multiplier_derivatives(logits, targets)
        if self.method == "exact":
            return (slopes > 0).long()
        return (ascended(slopes, torch.Generator().manual_seed(0)) > 0.5).long()


def objective(q: Tensor, slopes: Tensor) -> Tensor:
    """Return the value of the objective that `EIIL` maximizes, a scalar.

    Args:
        q: Degree q_i to which each row belongs to the second environment, `[rows]`.
        slopes: Derivative d_i of each row, as defined in `EIIL`, `[rows]`.
    """
    return ((q * slopes).mean() ** 2 + ((1 - q) * slopes).mean() ** 2) / 2


def ascended(slopes: Tensor, generator: torch.Generator, steps: int = 10_000) -> Tensor:
    """Maximize the objective of `EIIL` over q by Adam with learning rate 1e-3, and return q, `[rows]`.

    q_i is the degree to which row i belongs to the second environment. Adam optimizes ω with q = sigmoid(ω);
    the initial values of ω are standard normal.

    Args:
        slopes: Derivative d_i of each row, as defined in `EIIL`, `[rows]`.
        generator: Random number generator for the initial values.
        steps: Number of steps of Adam.
    """
    start = torch.randn(slopes.shape, generator=generator, dtype=slopes.dtype).to(slopes.device)
    with torch.enable_grad():
        omega = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([omega], lr=1e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            (-objective(torch.sigmoid(omega), slopes)).backward()
            optimizer.step()
    return torch.sigmoid(omega.detach())
