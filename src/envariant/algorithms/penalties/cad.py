"""CAD: use a contrastive loss to penalize features that identify the environment."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from envariant.algorithms.base import Penalty, State
from envariant.algorithms.penalties import distances
from envariant.core.environments import PredictedBatch
from envariant.core.schedules import Constant, Schedule
from envariant.core.search_space import Choice

_REFERENCE = 0.07


@final
@dataclass(frozen=True)
class CAD(Penalty):
    """Contrastive loss mean_i −(T/0.07)·log Σ_j p(j | i). Ruan et al. 2022, eq. 9.

    p(j | i) is a softmax of ⟨h_i, h_j⟩/T over all rows j ≠ i of the batch, where h_i are the features of row
    i. The sum includes only rows j whose environment differs from the environment of row i. The mean leaves
    out rows i whose sum is empty. Even if `conditional` is false, it also leaves out rows without another
    row of their class. Equal regression targets count as one class. If `flipped` is false, the sum is
    instead over the other rows of row i's environment, and the minus sign is omitted; the released code
    also includes row i itself in that sum.

    Attributes:
        coefficient: Weight of the penalty.
        temperature: T > 0, temperature of the softmax.
        conditional: Whether softmax and sum include only rows j of the class of row i (CondCAD).
        flipped: If true, the probability of rows from other environments is increased, as in the formula. If
            false, the probability of rows from the same environment is decreased.
        normalized: Whether to scale the features of each row to length 1 first.
        max_rows: Maximum number of rows compared per environment; larger environments are subsampled at
            random at each step.
    """

    name: ClassVar[str] = "cad"
    needs_one_target: ClassVar[bool] = True
    paper: ClassVar[str] = "Ruan, Dubois, Maddison 2022, arXiv 2201.00057"
    minimum_environments: ClassVar[int] = 2
    needs_features: ClassVar[bool] = True
    stochastic: ClassVar[bool] = True
    depends_on_sizes: ClassVar[bool] = True
    coefficient: Annotated[Schedule, Choice((1e-4, 1e-3, 1e-2, 1e-1, 1e0, 1e1, 1e2))] = Constant(0.1)
    temperature: Annotated[PositiveFloat, Choice((0.05, 0.1))] = 0.1
    conditional: bool = False
    flipped: bool = True
    normalized: bool = False
    max_rows: PositiveInt = 512

    def penalty(self, predicted: PredictedBatch, state: State) -> tuple[Tensor, State]:
        index, _ = distances.subsample(predicted, self.max_rows)
        owners = predicted.batch.environment_of_rows()[index]
        return self.of_rows(predicted.features[index], predicted.batch.targets[index], owners), state

    def of_rows(self, features: Tensor, targets: Tensor, environments: Tensor) -> Tensor:
        """Compute the penalty from features `[rows, width]`, targets `[rows]` and environments `[rows]`."""
        if self.normalized:
            features = torch.nn.functional.normalize(features, dim=1)
        others = ~torch.eye(len(features), dtype=torch.bool, device=features.device)
        same_class = (targets[:, None] == targets[None]) & others
        same_environment = environments[:, None] == environments[None]
        # A row's product with itself is set to 0, also in the subtracted maximum.
        products = torch.where(others, features @ features.T / self.temperature, 0.0)
        products = products - products.max(dim=1, keepdim=True).values.detach()
        positives = ~same_environment if self.flipped else same_environment & others
        if self.conditional:
            positives, candidates = positives & same_class, same_class
            used = positives.any(dim=1)
        else:
            candidates, used = others, same_class.any(dim=1)
        used = used & positives.any(dim=1)
        # Unused rows need finite values as well, so that their gradients are not NaN.
        sums = [
            _log_sum(products, torch.where(used[:, None], mask, others)) for mask in (positives, candidates)
        ]
        sign = -1.0 if self.flipped else 1.0
        values = sign * self.temperature / _REFERENCE * (sums[0] - sums[1])
        return torch.where(used, values, 0.0).sum() / used.sum().clamp(min=1)


def _log_sum(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, -torch.inf).logsumexp(dim=1)
