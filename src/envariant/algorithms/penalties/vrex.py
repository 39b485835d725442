"""V-REx: penalize the variance of the risks over environments."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

from torch import Tensor

from envariant.algorithms.base import Penalty, Requirement, State
from envariant.core.environments import PredictedBatch
from envariant.core.schedules import Schedule, Step
from envariant.core.search_space import LogUniform


@final
@dataclass(frozen=True)
class VREx(Penalty):
    """Variance Var_e(R_e) of the risks of all E environments, with divisor E. Krueger et al. 2021, eq. 8.

    Attributes:
        coefficient: Weight of the penalty (β in the paper).
        pairwise: Whether to use the form of the REx code, Σ_{e<f} (R_e − R_f)² = E²·Var, which is 4·Var for
            two environments.
    """

    name: ClassVar[str] = "vrex"
    paper: ClassVar[str] = "Krueger et al. 2021, arXiv 2003.00688"
    minimum_environments: ClassVar[int] = 2
    coefficient: Annotated[Schedule, LogUniform(1e2, 1e6)] = Step(1.0, 1e4, at=100)
    pairwise: bool = False

    def requires(self) -> Requirement:
        return "risks"

    def penalty(self, predicted: PredictedBatch, state: State) -> tuple[Tensor, State]:
        variance = predicted.risks.var(correction=0)
        return variance * (len(predicted.risks) ** 2 if self.pairwise else 1), state
