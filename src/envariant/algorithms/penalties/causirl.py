"""CausIRL: features with one distribution however the environments' rows are mixed.

Each environment's rows are cut at a random place; all first parts together are held against all second
parts, so the two groups are mixtures of the environments in different shares.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, final

import torch
from torch import Tensor

from envariant.algorithms.base import Penalty, State
from envariant.algorithms.penalties import distances
from envariant.core import specs
from envariant.core.environments import PredictedBatch
from envariant.core.schedules import Constant, Schedule
from envariant.core.search_space import LogUniform


@final
@dataclass(frozen=True)
class CausIRL(Penalty):
    """dist(∪_e h_e[:s_e], ∪_e h_e[s_e:]) with s_e uniform on 0 … N_e − 1. Chevalley et al. 2022.

    A cut that leaves a group with fewer than two rows has no penalty.

    Attributes:
        coefficient: its weight.
        distance: "coral" or "mmd".
        rows: at most so many rows of each environment are compared by "mmd", drawn anew at each step.
    """

    name: ClassVar[str] = "causirl"
    paper: ClassVar[str] = "Chevalley, Bunne, Krause, Bauer 2022, arXiv 2206.11646"
    minimum_environments: ClassVar[int] = 2
    needs_features: ClassVar[bool] = True
    stochastic: ClassVar[bool] = True
    coefficient: Annotated[Schedule, LogUniform(1e-1, 1e1)] = Constant(1.0)
    distance: Literal["coral", "mmd"] = "coral"
    rows: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        specs.checked(CausIRL, {"distance": self.distance, "rows": self.rows}, "CausIRL")

    def penalty(self, predicted: PredictedBatch, state: State) -> tuple[Tensor, State]:
        sizes = predicted.batch.sizes
        like = predicted.losses
        counts = torch.tensor(sizes, device=like.device)
        # Never the whole of an environment: the product with a number below 1 may round up to it.
        cuts = (predicted.context.uniform(len(sizes), like=like) * counts).long().minimum(counts - 1)
        return self.at(predicted, cuts), state

    def at(self, predicted: PredictedBatch, cuts: Tensor) -> Tensor:
        """The penalty where environment e is cut before its row `cuts[e]`."""
        features, sizes = predicted.features, predicted.batch.sizes
        places = torch.cat([torch.arange(size, device=cuts.device) for size in sizes])
        owners = predicted.batch.environment_of_rows()
        first = (places < cuts[owners]).to(features.dtype)
        if self.distance == "mmd":
            index, _ = distances.few_rows(predicted, self.rows)
            features, first = features[index], first[index]
        second = 1 - first
        if self.distance == "mmd":
            apart = distances.squared_mmd(distances.kernel(features), first, second)
        else:
            apart = distances.coral(*(distances.Moments.of(features, part) for part in (first, second)))
        enough = torch.minimum(first.sum(), second.sum()) >= 2
        return torch.where(enough, apart, 0.0)
