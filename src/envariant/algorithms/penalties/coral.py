"""CORAL: match the mean and covariance of features across environments."""

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
class CORAL(Penalty):
    """Feature distance mean_{e<f} [ mean_d (μ_e − μ_f)² + mean_dd' (C_e − C_f)² ]. Sun & Saenko 2016, eq. 1.

    The outer mean is over pairs of environments e and f. μ_e and C_e are the mean vector and covariance
    matrix of the features in environment e; the inner means are over their entries d and dd'.

    Attributes:
        coefficient: Weight of the penalty.
        means: Whether to include the term with the mean vectors, as in DomainBed. If not, the paper's
            distance ‖C_e − C_f‖²/(4D²) is used, for D features.
    """

    name: ClassVar[str] = "coral"
    paper: ClassVar[str] = "Sun & Saenko 2016, arXiv 1607.01719"
    minimum_environments: ClassVar[int] = 2
    needs_features: ClassVar[bool] = True
    coefficient: Annotated[Schedule, LogUniform(1e-1, 1e1)] = Constant(1.0)
    means: bool = True

    def penalty(self, predicted: PredictedBatch, state: State) -> tuple[Tensor, State]:
        moments = [
            distances.Moments.of(h, h.new_ones(len(h))) for h in predicted.batch.split(predicted.features)
        ]
        values = [distances.coral(x, y, means=self.means) for x, y in combinations(moments, 2)]
        return torch.stack(values).mean() if values else predicted.features.new_zeros(()), state
