"""The mean risk: what empirical risk minimization minimizes, and the starting point of all others."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, final

import torch
from torch import Tensor

from envariant.algorithms.base import RiskAggregator, State
from envariant.core import specs
from envariant.core.environments import PredictedBatch
from envariant.core.search_space import Choice


@final
@dataclass(frozen=True)
class Mean(RiskAggregator):
    """R̄ = (1/E) Σ_e R_e, or the mean over all rows: the same where environments are of one size.

    Attributes:
        over: "environments" gives a small hospital the weight of a large one; "rows" weighs by size.
    """

    name: ClassVar[str] = "mean"
    paper: ClassVar[str] = "Vapnik 1998"
    over: Annotated[Literal["environments", "rows"], Choice(("environments", "rows"))] = "environments"

    def __post_init__(self) -> None:
        specs.checked(Mean, vars(self), "Mean")

    def risk(self, predicted: PredictedBatch, state: State) -> tuple[Tensor, State]:
        return torch.mean(predicted.risks if self.over == "environments" else predicted.losses), state
