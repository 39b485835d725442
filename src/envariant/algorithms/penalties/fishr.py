"""Fishr: the gradients of single rows should vary as much in one environment as in another."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor

from envariant.algorithms.base import Parameters, Penalty, State, TrainContext
from envariant.core.environments import PredictedBatch
from envariant.core.errors import EnvariantError
from envariant.core.schedules import Schedule, Step
from envariant.core.search_space import LogUniform, Uniform


@final
@dataclass(frozen=True)
class Fishr(Penalty):
    """(1/E) Σ_e mean_k (ṽ_e − ṽ̄)²_k, ṽ_e the variance of the head's per-row gradients. Ramé et al. 2022.

    A linear head's gradient of row i is a_i ⊗ h_i for the weight and a_i for the bias, a_i = ∂ℓ_i/∂z_i, so
    v_e = (a∘a)ᵀ(h∘h)/N − (aᵀh/N)² needs no differentiation of single rows. As in the released code, a
    moving mean m_e is kept from the first step on, and ṽ_e = v_e + γ/(1 − γ)·m_e: the newest variance
    counts in full, and in the long run the penalty is 1/(1 − γ)² times that without memory.

    Attributes:
        coefficient: λ; its range suits the means over environments and entries of the DomainBed code.
        memory: γ of the moving mean; 0 is none.
        centerd: whether variances are about the mean; the RFC code takes plain second moments.
        summed: over environments and entries, as in the paper and its Colored MNIST code, and no mean.
    """

    name: ClassVar[str] = "fishr"
    paper: ClassVar[str] = "Ramé, Dancette, Cord 2021, arXiv 2109.02934"
    minimum_environments: ClassVar[int] = 2
    needs_features: ClassVar[bool] = True
    needs_linear_head: ClassVar[bool] = True
    coefficient: Annotated[Schedule, LogUniform(1e1, 1e4)] = Step(0.0, 1e3, at=100)
    memory: Annotated[float, Uniform(0.9, 0.99)] = 0.95
    centerd: bool = True
    summed: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.memory < 1:
            raise EnvariantError(f"Fishr: memory must lie in [0, 1); got {self.memory:g}")

    def init(self, params: Parameters, context: TrainContext) -> State:
        shape = (context.environments, context.task.outputs)
        like = next(iter(params.values()))
        return {"weight": like.new_zeros(*shape, context.features), "bias": like.new_zeros(shape)}

    def penalty(self, predicted: PredictedBatch, state: State) -> tuple[Tensor, State]:
        newest = self.variances(predicted)
        gamma = self.memory
        new = {k: (gamma * state[k] + (1 - gamma) * v).detach() for k, v in newest.items()}
        used = [v + gamma / (1 - gamma) * state[k] for k, v in newest.items()]
        each = torch.cat([value.flatten(1) for value in used], dim=1)
        distances = (each - each.mean(dim=0)).square()
        return distances.sum() if self.summed else distances.mean(), new

    def variances(self, predicted: PredictedBatch) -> Mapping[str, Tensor]:
        """Of the gradients of the head's weight `[environments, outputs, width]` and bias."""
        batch = predicted.batch
        residuals = batch.task.residuals(predicted.logits, batch.targets).reshape(len(batch.targets), -1)
        pairs = list(zip(batch.split(residuals), batch.split(predicted.features), strict=True))
        weight = torch.stack([(a.square().T @ h.square()) / len(a) for a, h in pairs])
        bias = torch.stack([a.square().mean(dim=0) for a, _ in pairs])
        if self.centerd:
            weight = weight - torch.stack([a.T @ h / len(a) for a, h in pairs]).square()
            bias = bias - torch.stack([a.mean(dim=0) for a, _ in pairs]).square()
        return {"weight": weight, "bias": bias}
