"""MMD: match the distribution of features across environments, as measured by Gaussian kernels."""

from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, ClassVar, final

import torch
from pydantic import PositiveInt
from torch import Tensor

from envariant.algorithms.base import Penalty, State
from envariant.algorithms.penalties import distances
from envariant.core.environments import PredictedBatch
from envariant.core.schedules import Constant, Schedule
from envariant.core.search_space import LogUniform


@final
@dataclass(frozen=True)
class MMD(Penalty):
    """Mean squared discrepancy mean_{e<f} MMD²(h_e, h_f) with kernel Σ_γ exp(−γ‖a − b‖²). Li et al. 2018.

    The mean is over pairs of environments e and f. h_e are the features in environment e, and a and b are
    features of two rows. As in DomainBed, the paper's adversarial autoencoder is omitted.

    Attributes:
        coefficient: Weight of the penalty.
        max_rows: Maximum number of rows compared per environment; larger environments are subsampled at
            random at each step.
    """

    name: ClassVar[str] = "mmd"
    paper: ClassVar[str] = "Li, Pan, Wang, Kot, CVPR 2018"
    minimum_environments: ClassVar[int] = 2
    needs_features: ClassVar[bool] = True
    stochastic: ClassVar[bool] = True
    coefficient: Annotated[Schedule, LogUniform(1e-1, 1e1)] = Constant(1.0)
    max_rows: PositiveInt = 512

    def penalty(self, predicted: PredictedBatch, state: State) -> tuple[Tensor, State]:
        index, sizes = distances.subsample(predicted, self.max_rows)
        kernels = distances.kernel(predicted.features[index])
        members = distances.membership(sizes, kernels)
        values = [distances.squared_mmd(kernels, x, y) for x, y in combinations(members, 2)]
        return torch.stack(values).mean() if values else kernels.new_zeros(()), state
