"""SAND-mask: a smooth AND-mask that also holds back where the environments' gradients differ in size."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, final

import torch
from torch import Tensor

from envariant.algorithms.base import GradientAggregator, Metrics, State
from envariant.core.errors import EnvariantError
from envariant.core.search_space import LogUniform, Uniform
from envariant.core.step_context import StepContext


@final
@dataclass(frozen=True)
class SandMask(GradientAggregator):
    """mask·ḡ/mean(mask), mask = max(0, tanh((k/Var_e g_e)·(A − τ))), A = |mean_e sign(g_e)|. Shahtalebi 2021.

    Tensor by tensor. At the published default τ = 1 the mask is 0 everywhere, since A ≤ 1, and no weight
    ever moves; so τ must lie below 1 here.

    Attributes:
        threshold: τ in [0, 1).
        steepness: k.
    """

    name: ClassVar[str] = "sand-mask"
    paper: ClassVar[str] = "Shahtalebi et al. 2021, arXiv 2106.02266"
    minimum_environments: ClassVar[int] = 2
    threshold: Annotated[float, Uniform(0.0, 1.0)] = 0.5
    steepness: Annotated[float, LogUniform(1e-3, 1e5)] = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise EnvariantError(
                f"SandMask: threshold must lie in [0, 1), for at 1 no weight moves; got {self.threshold:g}"
            )

    def combine(
        self, gradients: Mapping[str, Tensor], state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        masked = {name: sand_masked(g, self.threshold, self.steepness) for name, g in gradients.items()}
        return masked, state, {}


def sand_masked(gradients: Tensor, threshold: Any, steepness: Any) -> Tensor:
    """One tensor's gradients `[environments, *shape]` made one."""
    agreement = gradients.sign().mean(dim=0).abs() - threshold
    # A single environment has no variance; where there is none, the released code takes 1e-17.
    spread = gradients.var(dim=0) if len(gradients) > 1 else torch.full_like(gradients[0], 1e-17)
    # Without variance and without a say, 0·∞ is NaN.
    mask = torch.tanh(steepness / spread * agreement).clamp(min=0).nan_to_num(nan=1e-17)
    return mask * gradients.mean(dim=0) / (1e-10 + mask.mean())
