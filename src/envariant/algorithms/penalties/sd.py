"""Spectral decoupling: penalize large logits."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

from torch import Tensor

from envariant.algorithms.base import Penalty, State
from envariant.core.environments import PredictedBatch
from envariant.core.schedules import Constant, Schedule
from envariant.core.search_space import LogUniform


@final
@dataclass(frozen=True)
class SpectralDecoupling(Penalty):
    """Mean squared logit (1/E) Σ_e mean_ic z_ic². Pezeshki et al. 2020, eq. 16.

    z_ic is the logit of class c for row i. The inner mean is over all rows i of environment e and all classes
    c, and E is the number of environments.

    Attributes:
        coefficient: Weight of the penalty. It equals λ/2 times the number of classes, where λ is the weight
            in the paper.
    """

    name: ClassVar[str] = "sd"
    paper: ClassVar[str] = "Pezeshki et al. 2020, arXiv 2011.09468"
    coefficient: Annotated[Schedule, LogUniform(1e-5, 1e-1)] = Constant(0.1)

    def penalty(self, predicted: PredictedBatch, state: State) -> tuple[Tensor, State]:
        return predicted.batch.mean(predicted.logits.square()), state
