"""The mean gradient: what differentiating the whole loss gives, at the price of one backward pass."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from envariant.algorithms.contract import Combination, Metrics, State
from envariant.now import Now


@final
@dataclass(frozen=True)
class MeanGradient(Combination):
    """(1/E) Σ_e g_e. A composition never calls it: the gradient of the whole loss is the same number."""

    name: ClassVar[str] = "mean-gradient"
    paper: ClassVar[str] = "Vapnik 1998"

    def combine(
        self, gradients: Mapping[str, Tensor], state: State, now: Now
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        return {name: gradient.mean(dim=0) for name, gradient in gradients.items()}, state, {}
