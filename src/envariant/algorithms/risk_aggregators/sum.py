"""The sum of the risks, as the V-REx paper writes its objective.

Beside a penalty it is not the mean in disguise: with E environments the penalty weighs E times less.
"""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from envariant.algorithms.base import RiskAggregator, State
from envariant.core.environments import PredictedBatch


@final
@dataclass(frozen=True)
class SumRisk(RiskAggregator):
    """Σ_e R_e."""

    name: ClassVar[str] = "sum"
    paper: ClassVar[str] = "Krueger et al. 2021, arXiv 2003.00688"

    def risk(self, predicted: PredictedBatch, state: State) -> tuple[Tensor, State]:
        return torch.sum(predicted.risks), state
