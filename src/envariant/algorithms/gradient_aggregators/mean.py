"""Default gradient aggregator: mean of the environments' gradients, which is the gradient of the loss."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from envariant.algorithms.base import GradientAggregator, Metrics, State
from envariant.core.step_context import StepContext


@final
@dataclass(frozen=True)
class MeanGradient(GradientAggregator):
    """Mean gradient (1/E) Σ_e g_e of E environments, where g_e is the gradient of environment e.

    `Composition` computes this mean by one backward pass through the whole loss and does not call `combine`.
    """

    name: ClassVar[str] = "mean-gradient"
    paper: ClassVar[str] = "Vapnik 1998"

    def combine(
        self, gradients: Mapping[str, Tensor], state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        return {name: gradient.mean(dim=0) for name, gradient in gradients.items()}, state, {}
