"""IRMv1: a representation is invariant if one classifier on top of it is optimal in every environment."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

from torch import Tensor

from envariant.algorithms.contract import Penalty, State
from envariant.environments import PredictedBatch
from envariant.schedules import Schedule, Step
from envariant.search_space import LogUniform


@final
@dataclass(frozen=True)
class IRM(Penalty):
    """(1/E) Σ_e ‖∇_{w|w=1} R_e(w·f)‖², the squared slope of each risk in a multiplier of the logits.

    The slope is the mean of d_i = ∂ℓ_i/∂z_i · z_i over the rows of e (`Task.multiplier_derivatives`), so
    no second differentiation is needed. Arjovsky et al. 2019, eq. IRMv1.

    Attributes:
        coefficient: λ. The constant predictor has no penalty, so a large λ from the first step on ends
            at chance; hence the schedule.
    """

    name: ClassVar[str] = "irm"
    paper: ClassVar[str] = "Arjovsky, Bottou, Gulrajani, Lopez-Paz 2019, arXiv 1907.02893"
    minimum_environments: ClassVar[int] = 2
    coefficient: Annotated[Schedule, LogUniform(1e2, 1e6)] = Step(1.0, 1e4, at=100)

    def penalty(self, predicted: PredictedBatch, state: State) -> tuple[Tensor, State]:
        slopes = predicted.batch.per_environment_mean(predicted.multiplier_derivatives())
        return slopes.square().mean(), state
