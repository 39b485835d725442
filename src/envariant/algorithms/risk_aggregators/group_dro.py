"""GroupDRO: minimize a weighted risk in which environments with large risks gain weight at every step."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

from pydantic import NonNegativeFloat
from torch import Tensor

from envariant.algorithms.base import Parameters, Requirement, RiskAggregator, State, TrainContext
from envariant.core.environments import PredictedBatch
from envariant.core.search_space import LogUniform


@final
@dataclass(frozen=True)
class GroupDRO(RiskAggregator):
    """Weighted risk Σ_e q_e·R_e, after q_e ← q_e·exp(η·R_e) / Σ_f q_f·exp(η·R_f). Sagawa et al. 2020.

    This is the paper's algorithm 1. R_e is the risk and q_e the weight of environment e. An environment
    without rows in the batch has no risk: the sum leaves it out, and its q_e is only normalized. The weights
    are stored as logarithms, because a small weight could underflow to 0 and would then remain 0.

    Attributes:
        rate: η, step size of the weights.
    """

    name: ClassVar[str] = "groupdro"
    paper: ClassVar[str] = "Sagawa, Koh, Hashimoto, Liang 2019, arXiv 1911.08731"
    minimum_environments: ClassVar[int] = 2
    rate: Annotated[NonNegativeFloat, LogUniform(1e-3, 1e-1)] = 1e-2

    def init(self, params: Parameters, context: TrainContext) -> State:
        like = next(iter(params.values()))
        return {"log_weights": like.new_zeros(context.environments).log_softmax(dim=0)}

    def requires(self) -> Requirement:
        return "risks"

    def risk(self, predicted: PredictedBatch, state: State) -> tuple[Tensor, State]:
        batch, before = predicted.batch, state["log_weights"]
        raised = batch.of_present(before) + self.rate * predicted.risks.detach()
        log_weights = batch.with_present(before, raised).log_softmax(dim=0)
        weights = batch.of_present(log_weights).exp()
        return (weights * predicted.risks).sum(), {"log_weights": log_weights}
