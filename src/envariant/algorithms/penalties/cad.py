"""CAD: features from which a row's environment cannot be told, by a contrast of rows with one another."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor

from envariant.algorithms.base import Penalty, State
from envariant.algorithms.penalties import distances
from envariant.core.environments import PredictedBatch
from envariant.core.errors import EnvariantError
from envariant.core.schedules import Constant, Schedule
from envariant.core.search_space import Choice

_REFERENCE = 0.07


@final
@dataclass(frozen=True)
class CAD(Penalty):
    """mean_i −(T/0.07)·log Σ_j p(j | i) over the rows j of other environments. Ruan et al. 2022, eq. 9.

    p(j | i) is a softmax of ⟨h_i, h_j⟩/T over the other rows. Rows with no other row of their class are
    left out; where classes are, so are targets of regression compared, by being equal.

    Attributes:
        coefficient: its weight.
        temperature: T.
        conditional: CondCAD: only rows of one class are held against each other.
        flipped: as above; if not, the log-probability of the row's own environment is lowered.
        normalized: whether features are first brought to length 1.
        rows: at most so many rows of each environment are compared, drawn anew at each step.
    """

    name: ClassVar[str] = "cad"
    paper: ClassVar[str] = "Ruan, Dubois, Maddison 2022, arXiv 2201.00057"
    minimum_environments: ClassVar[int] = 2
    needs_features: ClassVar[bool] = True
    stochastic: ClassVar[bool] = True
    coefficient: Annotated[Schedule, Choice((1e-4, 1e-3, 1e-2, 1e-1, 1e0, 1e1, 1e2))] = Constant(0.1)
    temperature: Annotated[float, Choice((0.05, 0.1))] = 0.1
    conditional: bool = False
    flipped: bool = True
    normalized: bool = False
    rows: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise EnvariantError(f"CAD: temperature must exceed 0; got {self.temperature:g}")

    def penalty(self, predicted: PredictedBatch, state: State) -> tuple[Tensor, State]:
        index, _ = distances.few_rows(predicted, self.rows)
        owners = predicted.batch.environment_of_rows()[index]
        return self.of_rows(predicted.features[index], predicted.batch.targets[index], owners), state

    def of_rows(self, features: Tensor, targets: Tensor, environments: Tensor) -> Tensor:
        """The penalty of some rows."""
        if self.normalized:
            features = torch.nn.functional.normalize(features, dim=1)
        others = ~torch.eye(len(features), dtype=torch.bool, device=features.device)
        alike = (targets[:, None] == targets[None]) & others
        together = environments[:, None] == environments[None]
        # A row's product with itself counts as 0, also in the maximum that is taken off.
        products = torch.where(others, features @ features.T / self.temperature, 0.0)
        products = products - products.max(dim=1, keepdim=True).values.detach()
        wanted = ~together if self.flipped else together
        if self.conditional:
            wanted, among = wanted & alike, alike
            used = wanted.any(dim=1)
        else:
            among, used = others, alike.any(dim=1)
        used = used & wanted.any(dim=1)
        # Unused rows get something finite, so that no gradient of theirs is NaN.
        sums = [_log_sum(products, torch.where(used[:, None], chosen, others)) for chosen in (wanted, among)]
        sign = -1.0 if self.flipped else 1.0
        values = sign * self.temperature / _REFERENCE * (sums[0] - sums[1])
        return torch.where(used, values, 0.0).sum() / used.sum().clamp(min=1)


def _log_sum(values: Tensor, chosen: Tensor) -> Tensor:
    return torch.where(chosen, values, -torch.inf).logsumexp(dim=1)
