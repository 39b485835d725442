"""The worst risk: what risk interpolation minimizes, and where MM-REx starts to extrapolate from."""

from dataclasses import dataclass
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor

from envariant.algorithms.base import RiskAggregator, State
from envariant.core.environments import PredictedBatch


@final
@dataclass(frozen=True)
class WorstCaseRisk(RiskAggregator):
    """max_e R_e, the largest of all mixtures Σ_e λ_e R_e with λ_e ≥ 0. Krueger et al. 2021, eq. 3."""

    name: ClassVar[str] = "worst-case"
    paper: ClassVar[str] = "Krueger et al. 2021, arXiv 2003.00688"
    minimum_environments: ClassVar[int] = 2

    def risk(self, predicted: PredictedBatch, state: State) -> tuple[Tensor, State]:
        return worst_of(predicted.risks), state


def worst_of(risks: Float[Tensor, " environments"]) -> Float[Tensor, ""]:
    """The largest risk; of several that are as large, the first alone is differentiated."""
    # Indexing by argmax gives a tie to the lowest index, where max would share the gradient.
    return risks.gather(0, risks.detach().argmax().reshape(1))[0]
