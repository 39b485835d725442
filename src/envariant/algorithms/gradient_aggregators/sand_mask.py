"""SAND-mask: smooth version of AND-mask that also shrinks entries whose gradients vary in size."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, final

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from envariant.algorithms.base import GradientAggregator, Metrics, State
from envariant.core.search_space import LogUniform, Uniform
from envariant.core.step_context import StepContext


@final
@dataclass(frozen=True)
class SandMask(GradientAggregator):
    """Masked mean gradient m·ḡ/mean(m), m = max(0, tanh((k/Var_e g_e)·(A − τ))). Shahtalebi et al. 2021.

    m is the mask, g_e the gradient of environment e, and ḡ the mean of all g_e. A = |mean_e sign(g_e)| is the
    agreement of their signs, computed for each entry. mean(m) is computed separately for each parameter
    tensor. With the published default τ = 1, the mask is 0 everywhere because A ≤ 1, so no weight is ever
    updated. Here τ must be below 1.

    Attributes:
        threshold: τ in [0, 1): entries with an agreement A below τ are masked.
        steepness: k > 0: steepness of the mask.
    """

    name: ClassVar[str] = "sand-mask"
    paper: ClassVar[str] = "Shahtalebi et al. 2021, arXiv 2106.02266"
    minimum_environments: ClassVar[int] = 2
    threshold: Annotated[float, Uniform(0.0, 1.0), Field(ge=0, lt=1)] = 0.5
    steepness: Annotated[PositiveFloat, LogUniform(1e-3, 1e5)] = 10.0

    def combine(
        self, gradients: Mapping[str, Tensor], state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        masked = {name: sand_masked(g, self.threshold, self.steepness) for name, g in gradients.items()}
        return masked, state, {}


def sand_masked(gradients: Tensor, threshold: Any, steepness: Any) -> Tensor:
    """Combine the gradients of one parameter tensor by the SAND-mask.

    Args:
        gradients: Gradients of all environments, `[environments, *shape]`.
        threshold: Threshold τ, as in `SandMask`.
        steepness: Steepness k, as in `SandMask`.
    """
    agreement = gradients.sign().mean(dim=0).abs() - threshold
    # A single environment has no variance; the released code then uses 1e-17.
    spread = gradients.var(dim=0) if len(gradients) > 1 else torch.full_like(gradients[0], 1e-17)
    # Without variance and with A = τ, 0·∞ is NaN.
    mask = torch.tanh(steepness / spread * agreement).clamp(min=0).nan_to_num(nan=1e-17)
    return mask * gradients.mean(dim=0) / (1e-10 + mask.mean())
