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
    """(1/E) Σ_e mean_ic z_ic² over the rows i of environment e and classes c. Pezeshki et al. 2020, eq. 16.

    z_ic is the logit of class c for row i, and E is the number of environments.

    Attributes:
        coefficient: Weight of the penalty: λ/2 of the paper times the number of classes.
    """

    name: ClassVar[str] = "sd"
    paper: ClassVar[str] = "Pezeshki et al. 2020, arXiv 2011.09468"
    coefficient: Annotated[Schedule, LogUniform(1e-5, 1e-1)] = Constant(0.1)

    def penalty(self, predicted: PredictedBatch, state: State) -> tuple[Tensor, State]:
        return predicted.batch.mean(predicted.logits.square()), state
