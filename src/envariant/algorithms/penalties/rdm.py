"""RDM: match the loss distribution of the worst environment to that of all rows."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
from pydantic import PositiveInt
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
    """Squared discrepancy MMD²(L_worst, L) between two distributions of losses. Nguyen et al. 2023.

    L are the losses of all rows in the batch; L_worst are the losses of the rows in the environment with the
    largest risk. Environments may differ in size; the released code requires equal sizes.

    Attributes:
        coefficient: Weight of the penalty.
        max_rows: Maximum number of rows compared per environment; larger environments are subsampled at
            random at each step.
    """

    name: ClassVar[str] = "rdm"
    paper: ClassVar[str] = "Nguyen et al. 2023, arXiv 2310.18598"
    minimum_environments: ClassVar[int] = 2
    stochastic: ClassVar[bool] = True
    depends_on_sizes: ClassVar[bool] = True
    coefficient: Annotated[Schedule, Uniform(0.1, 10.0)] = Step(0.0, 5.0, at=100)
    max_rows: PositiveInt = 512

    def penalty(self, predicted: PredictedBatch, state: State) -> tuple[Tensor, State]:
        index, _ = distances.subsample(predicted, self.max_rows)
        kernels = distances.kernel(predicted.losses[index][:, None], _GAMMAS)
        worst = worst_environment(predicted)[index]
        return distances.squared_mmd(kernels, worst, torch.ones_like(worst)), state


def worst_environment(predicted: PredictedBatch) -> Tensor:
    """Return a mask `[rows]`: 1 for rows of the environment with the largest risk, 0 for all other rows."""
    worst = predicted.risks.detach().argmax()
    return (predicted.batch.environment_of_rows() == worst).to(predicted.losses.dtype)
