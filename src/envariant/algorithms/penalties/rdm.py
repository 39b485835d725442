"""RDM: the losses of the worst environment should be spread as those of all environments together."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor

from envariant.algorithms.base import Penalty, State
from envariant.algorithms.penalties import distances
from envariant.core.environments import PredictedBatch
from envariant.core.schedules import Schedule, Step
from envariant.core.search_space import Uniform

_GAMMAS = (1e-4, *distances.WIDE)


@final
@dataclass(frozen=True)
class RDM(Penalty):
    """MMD²(L_worst, L): row losses of the environment with the largest risk, and of all. Nguyen et al. 2023.

    The released code stacks environments and needs them of one size; here they may differ.

    Attributes:
        coefficient: its weight.
        rows: at most so many rows of each environment are compared, drawn anew at each step.
    """

    name: ClassVar[str] = "rdm"
    paper: ClassVar[str] = "Nguyen et al. 2023, arXiv 2310.18598"
    minimum_environments: ClassVar[int] = 2
    stochastic: ClassVar[bool] = True
    coefficient: Annotated[Schedule, Uniform(0.1, 10.0)] = Step(0.0, 5.0, at=100)
    rows: int = 512

    def penalty(self, predicted: PredictedBatch, state: State) -> tuple[Tensor, State]:
        index, _ = distances.few_rows(predicted, self.rows)
        kernels = distances.kernel(predicted.losses[index][:, None], _GAMMAS)
        worst = of_worst(predicted)[index]
        return distances.squared_mmd(kernels, worst, torch.ones_like(worst)), state


def of_worst(predicted: PredictedBatch) -> Tensor:
    """1 at the rows of the environment with the largest risk, 0 elsewhere; a constant for differentiation."""
    worst = predicted.risks.detach().argmax()
    return (predicted.batch.environment_of_rows() == worst).to(predicted.losses.dtype)
