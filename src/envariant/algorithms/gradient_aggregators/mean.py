"""The mean gradient: what differentiating the whole loss gives, at the price of one backward pass."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from envariant.algorithms.base import GradientAggregator, Metrics, State
from envariant.core.step_context import StepContext


@final
@dataclass(frozen=True)
class MeanGradient(GradientAggregator):
    """(1/E) Σ_e g_e. A composition never calls it: the gradient of the whole loss is the same number."""

    name: ClassVar[str] = "mean-gradient"
    paper: ClassVar[str] = "Vapnik 1998"

    def combine(
        self, gradients: Mapping[str, Tensor], state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        return {name: gradient.mean(dim=0) for name, gradient in gradients.items()}, state, {}
