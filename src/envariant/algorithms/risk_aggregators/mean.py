"""Empirical risk minimization: mean risk over environments, or mean loss over all rows."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from envariant.algorithms.base import Parameters, Requirement, RiskAggregator, State, TrainContext
from envariant.core.environments import PredictedBatch


@final
@dataclass(frozen=True)
class MeanRisk(RiskAggregator):
    """Mean risk (1/E) Σ_e R_e over all E environments; every environment has equal weight."""

    name: ClassVar[str] = "mean"
    paper: ClassVar[str] = "Vapnik 1998"

    def requires(self) -> Requirement:
        return "risks"

    def risk(self, predicted: PredictedBatch, state: State) -> tuple[Tensor, State]:
        return torch.mean(predicted.risks), state


@final
@dataclass(frozen=True)
class PooledMean(RiskAggregator):
    """Weighted risk Σ_e (n_e/n)·R_e, where environment e has n_e of the n training rows.

    With full batches, this is the mean loss of all training rows. Minibatches contain the same number of rows
    from each environment, so losses are weighted by the environment's number of training rows. For any batch
    size, the expected gradient is the gradient of the mean loss over all training rows.
    """

    name: ClassVar[str] = "pooled"
    paper: ClassVar[str] = "Vapnik 1998"
    depends_on_sizes: ClassVar[bool] = True

    def init(self, params: Parameters, context: TrainContext) -> State:
        # Row counts are exact in float64, so that with full batches every weight below is exactly 1.
        device = next(iter(params.values())).device
        return {"sizes": torch.tensor(context.environment_sizes, dtype=torch.float64, device=device)}

    def requires(self) -> Requirement:
        return "risks"

    def risk(self, predicted: PredictedBatch, state: State) -> tuple[Tensor, State]:
        batch = predicted.batch
        sizes = batch.of_present(state["sizes"])
        in_batch = torch.tensor(batch.sizes, dtype=sizes.dtype, device=sizes.device)
        weights = (sizes * sum(batch.sizes)) / (sizes.sum() * in_batch)
        weights = weights.to(predicted.losses.dtype)[batch.environment_of_rows()]
        return torch.mean(weights * predicted.losses), state
