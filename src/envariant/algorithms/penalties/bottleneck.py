"""Information bottleneck: penalize the variance of the features within environments."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor

from envariant.algorithms.base import Penalty, State
from envariant.core.environments import PredictedBatch
from envariant.core.schedules import Schedule, Step
from envariant.core.search_space import LogUniform


@final
@dataclass(frozen=True)
class InformationBottleneck(Penalty):
    """Mean variance of the features within environments, (1/E) Σ_e mean_d Var_i(h_id). Ahuja et al. 2021.

    h_id is feature d of row i, and E is the number of environments. The variance is over the N_e rows of
    environment e in the batch, with divisor N_e − 1. An environment with a single row contributes 0.

    Attributes:
        coefficient: Weight of the penalty.
    """

    name: ClassVar[str] = "ib"
    paper: ClassVar[str] = "Ahuja et al. 2021, arXiv 2106.06607"
    needs_features: ClassVar[bool] = True
    coefficient: Annotated[Schedule, LogUniform(1e-1, 1e5)] = Step(0.0, 1e2, at=100)

    def penalty(self, predicted: PredictedBatch, state: State) -> tuple[Tensor, State]:
        variances = [
            h.var(dim=0).mean() if len(h) > 1 else h.new_zeros(())
            for h in predicted.batch.split(predicted.features)
        ]
        return torch.stack(variances).mean(), state
