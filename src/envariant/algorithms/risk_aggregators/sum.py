"""Sum of the environments' risks, as in the objective of the V-REx paper."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from envariant.algorithms.base import Requirement, RiskAggregator, State
from envariant.core.environments import PredictedBatch


@final
@dataclass(frozen=True)
class SumRisk(RiskAggregator):
    """Sum of risks Σ_e R_e over all environments.

    With E environments, the same penalty coefficient has 1/E of the effect that it has with `MeanRisk`.
    """

    name: ClassVar[str] = "sum"
    paper: ClassVar[str] = "Krueger et al. 2021, arXiv 2003.00688"

    def requires(self) -> Requirement:
        return "risks"

    def risk(self, predicted: PredictedBatch, state: State) -> tuple[Tensor, State]:
        return torch.sum(predicted.risks), state
