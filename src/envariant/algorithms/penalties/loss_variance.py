"""Second term of RDM: variance of all losses plus variance of the worst environment's losses."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

from torch import Tensor

from envariant.algorithms.base import Penalty, State
from envariant.algorithms.penalties.rdm import worst_environment
from envariant.core.environments import PredictedBatch
from envariant.core.schedules import Schedule, Step
from envariant.core.search_space import Uniform


@final
@dataclass(frozen=True)
class LossVariance(Penalty):
    """Sum of two variances of losses, Var(L) + Var(L_worst), with divisor n − 1. Nguyen et al. 2023.

    L are the losses of all n rows in the batch. L_worst are the losses of the rows in the environment with
    the largest risk; there, n is the number of these rows.

    Attributes:
        coefficient: Weight of the penalty.
    """

    name: ClassVar[str] = "variance"
    paper: ClassVar[str] = "Nguyen et al. 2023, arXiv 2310.18598"
    depends_on_sizes: ClassVar[bool] = True
    coefficient: Annotated[Schedule, Uniform(0.001, 0.007)] = Step(0.0, 0.004, at=100)

    def penalty(self, predicted: PredictedBatch, state: State) -> tuple[Tensor, State]:
        losses, worst = predicted.losses, worst_environment(predicted)
        count = worst.sum()
        mean = (worst * losses).sum() / count
        within = (worst * (losses - mean).square()).sum() / (count - 1).clamp(min=1)
        return losses.var() + within, state
