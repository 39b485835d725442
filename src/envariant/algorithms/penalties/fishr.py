"""Fishr: match the variance of the rows' gradients across environments."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
from pydantic import Field
from torch import Tensor

from envariant.algorithms.base import Parameters, Penalty, State, TrainContext
from envariant.core.environments import PredictedBatch
from envariant.core.schedules import Schedule, Step
from envariant.core.search_space import LogUniform, Uniform


@final
@dataclass(frozen=True)
class Fishr(Penalty):
    """Distance between gradient variances, (1/E) Σ_e mean_k (ṽ_e − ṽ̄)²_k. Ramé et al. 2022.

    ṽ_e is the smoothed variance of the head's per-row gradients in environment e, and ṽ̄ is the mean of ṽ_e
    over all E environments. The index k runs over the entries of the head's weight and bias. The gradient of
    row i is a_i ⊗ h_i for the weight and a_i for the bias, where h_i are the features and a_i = ∂ℓ_i/∂z_i is
    the derivative of the loss with respect to the logits. The variance of the weight's gradient over the N
    rows of environment e can therefore be computed as v_e = (a∘a)ᵀ(h∘h)/N − (aᵀh/N)², without a backward pass
    for each row. As in the released code, ṽ_e = v_e + γ/(1 − γ)·m_e, where m_e is a moving average of the
    earlier v_e. If v_e changes slowly, ṽ_e approaches v_e/(1 − γ), and the penalty is 1/(1 − γ)² times as
    large as without the moving average.

    Attributes:
        coefficient: Weight of the penalty (λ in the paper). The search range assumes that the penalty
            averages over environments and entries, as in DomainBed.
        memory: γ in [0, 1), decay of the moving average; 0 disables it.
        centered: Whether to use variances. If not, uncentered second moments are used, as in the code of
            Rich Feature Construction (RFC; Zhang et al. 2022).
        summed: Whether to sum over environments and entries, as the paper and its Colored MNIST code do,
            instead of averaging.
    """

    name: ClassVar[str] = "fishr"
    paper: ClassVar[str] = "Ramé, Dancette, Cord 2021, arXiv 2109.02934"
    minimum_environments: ClassVar[int] = 2
    needs_features: ClassVar[bool] = True
    needs_linear_head: ClassVar[bool] = True
    coefficient: Annotated[Schedule, LogUniform(1e1, 1e4)] = Step(0.0, 1e3, at=100)
    memory: Annotated[float, Uniform(0.9, 0.99), Field(ge=0, lt=1)] = 0.95
    centered: bool = True
    summed: bool = False

    def init(self, params: Parameters, context: TrainContext) -> State:
        shape = (context.environments, context.task.outputs)
        like = next(iter(params.values()))
        return {"weight": like.new_zeros(*shape, context.features), "bias": like.new_zeros(shape)}

    def penalty(self, predicted: PredictedBatch, state: State) -> tuple[Tensor, State]:
        newest, batch = self.variances(predicted), predicted.batch
        gamma, memory = self.memory, {k: batch.of_present(state[k]) for k in newest}
        averages = {k: (gamma * memory[k] + (1 - gamma) * v).detach() for k, v in newest.items()}
        new = {k: batch.with_present(state[k], average) for k, average in averages.items()}
        used = [v + gamma / (1 - gamma) * memory[k] for k, v in newest.items()]
        each = torch.cat([value.flatten(1) for value in used], dim=1)
        squares = (each - each.mean(dim=0)).square()
        return squares.sum() if self.summed else squares.mean(), new

    def variances(self, predicted: PredictedBatch) -> Mapping[str, Tensor]:
        """Return the variances v_e of the gradients of the head's weight and bias, `[environments, ...]`."""
        batch = predicted.batch
        residuals = batch.task.residuals(predicted.logits, batch.targets).reshape(len(batch.targets), -1)
        pairs = list(zip(batch.split(residuals), batch.split(predicted.features), strict=True))
        weight = torch.stack([(a.square().T @ h.square()) / len(a) for a, h in pairs])
        bias = torch.stack([a.square().mean(dim=0) for a, _ in pairs])
        if self.centered:
            weight = weight - torch.stack([a.T @ h / len(a) for a, h in pairs]).square()
            bias = bias - torch.stack([a.mean(dim=0) for a, _ in pairs]).square()
        return {"weight": weight, "bias": bias}
