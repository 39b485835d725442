"""CausIRL: match the distribution of features between two random mixtures of environments."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, final

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
class CausIRL(Penalty):
    """Distance dist(∪_e h_e[:s_e], ∪_e h_e[s_e:]) for s_e uniform on 0 … N_e − 1. Chevalley et al. 2022.

    h_e are the features of the N_e rows of environment e in the batch, split at a random position s_e. The
    first parts of all environments form one group, the second parts another; dist is the distance between the
    two groups. The penalty is 0 if a group has fewer than two rows.

    Attributes:
        coefficient: Weight of the penalty.
        distance: Distance between the two groups: "coral" compares means and covariances, "mmd" compares
            whole distributions.
        max_rows: Maximum number of rows that "mmd" compares per environment; larger environments are
            subsampled at random at each step.
    """

    name: ClassVar[str] = "causirl"
    paper: ClassVar[str] = "Chevalley, Bunne, Krause, Bauer 2022, arXiv 2206.11646"
    minimum_environments: ClassVar[int] = 2
    needs_features: ClassVar[bool] = True
    stochastic: ClassVar[bool] = True
    depends_on_sizes: ClassVar[bool] = True
    coefficient: Annotated[Schedule, LogUniform(1e-1, 1e1)] = Constant(1.0)
    distance: Literal["coral", "mmd"] = "coral"
    max_rows: PositiveInt = 512

    def penalty(self, predicted: PredictedBatch, state: State) -> tuple[Tensor, State]:
        sizes = predicted.batch.sizes
        like = predicted.losses
        counts = torch.tensor(sizes, device=like.device)
        # A product with a number below 1 may round up to the size itself, which is not a valid split.
        cuts = (predicted.context.uniform(len(sizes), like=like) * counts).long().minimum(counts - 1)
        return self.at(predicted, cuts), state

    def at(self, predicted: PredictedBatch, cuts: Tensor) -> Tensor:
        """Compute the penalty for given split positions.

        Args:
            predicted: Batch with its predictions.
            cuts: Number of rows of each environment that belong to the first group, `[environments]`.
        """
        features, sizes = predicted.features, predicted.batch.sizes
        positions = torch.cat([torch.arange(size, device=cuts.device) for size in sizes])
        owners = predicted.batch.environment_of_rows()
        first = (positions < cuts[owners]).to(features.dtype)
        if self.distance == "mmd":
            index, _ = distances.subsample(predicted, self.max_rows)
            features, first = features[index], first[index]
        second = 1 - first
        if self.distance == "mmd":
            distance = distances.squared_mmd(distances.kernel(features), first, second)
        else:
            distance = distances.coral(*(distances.Moments.of(features, part) for part in (first, second)))
        enough = torch.minimum(first.sum(), second.sum()) >= 2
        return torch.where(enough, distance, 0.0)
