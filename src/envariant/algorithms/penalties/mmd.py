"""MMD: features with the same distribution in every environment, as a sum of Gaussian kernels sees it."""

from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor

from envariant.algorithms.base import Penalty, State
from envariant.algorithms.penalties import distances
from envariant.core.environments import PredictedBatch
from envariant.core.schedules import Constant, Schedule
from envariant.core.search_space import LogUniform


@final
@dataclass(frozen=True)
class MMD(Penalty):
    """The mean over pairs of environments of MMD²(h_e, h_f), kernels Σ_γ exp(−γ‖a − b‖²). Li et al. 2018.

    The paper's adversarial autoencoder is left out, as in DomainBed: this is its distance on features.

    Attributes:
        coefficient: its weight.
        rows: at most so many rows of each environment are compared, drawn anew at each step.
    """

    name: ClassVar[str] = "mmd"
    paper: ClassVar[str] = "Li, Pan, Wang, Kot, CVPR 2018"
    minimum_environments: ClassVar[int] = 2
    needs_features: ClassVar[bool] = True
    stochastic: ClassVar[bool] = True
    coefficient: Annotated[Schedule, LogUniform(1e-1, 1e1)] = Constant(1.0)
    rows: int = 512

    def penalty(self, predicted: PredictedBatch, state: State) -> tuple[Tensor, State]:
        index, sizes = distances.few_rows(predicted, self.rows)
        kernels = distances.kernel(predicted.features[index])
        rows = distances.membership(sizes, kernels)
        apart = [distances.squared_mmd(kernels, x, y) for x, y in combinations(rows, 2)]
        return torch.stack(apart).mean() if apart else kernels.new_zeros(()), state
