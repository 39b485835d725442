"""Worst-case risk: minimize the largest risk of all environments."""

from dataclasses import dataclass
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor

from envariant.algorithms.base import Requirement, RiskAggregator, State
from envariant.core.environments import PredictedBatch


@final
@dataclass(frozen=True)
class WorstCaseRisk(RiskAggregator):
    """Largest risk max_e R_e over all environments e. Krueger et al. 2021, eq. 3.

    This is the maximum of Σ_e λ_e·R_e over all weights λ_e ≥ 0 with sum 1.
    """

    name: ClassVar[str] = "worst-case"
    paper: ClassVar[str] = "Krueger et al. 2021, arXiv 2003.00688"
    minimum_environments: ClassVar[int] = 2

    def requires(self) -> Requirement:
        return "risks"

    def risk(self, predicted: PredictedBatch, state: State) -> tuple[Tensor, State]:
        return worst_risk(predicted.risks), state


def worst_risk(risks: Float[Tensor, " environments"]) -> Float[Tensor, ""]:
    """Return the largest risk. If several risks are equal, only the first has a gradient."""
    # `max` would share the gradient between equal risks.
    return risks.gather(0, risks.detach().argmax().reshape(1))[0]
