"""AND-mask: update a weight only if the signs of the environments' gradients agree."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, final

import torch
from pydantic import Field
from torch import Tensor

from envariant.algorithms.base import GradientAggregator, Metrics, State
from envariant.core.search_space import Choice, Uniform
from envariant.core.step_context import StepContext

KEPT = "and-mask kept"
"""Name of the metric for the share of gradient entries kept by the mask."""


@final
@dataclass(frozen=True)
class AndMask(GradientAggregator):
    """Masked mean gradient m·ḡ with elementwise mask m = 1[|mean_e sign(g_e)| ≥ τ]. Parascandolo et al. 2020.

    g_e is the gradient of environment e, and ḡ is the mean of all g_e. The optimizer's weight decay is
    applied after the mask, so masked weights still decay.

    Attributes:
        threshold: τ in [0, 1]. With 0, no entry is masked; with 1, an entry is masked unless it has the
            same sign in all environments.
        mean: Gradient to mask: the "arithmetic" mean ḡ, or the "geometric" mean
            sign(ḡ)·exp(mean_e log(|g_e| + 1e-10)).
        inverse_sparsity: Whether to divide each masked tensor by its share of unmasked entries.
        strict: Whether to follow the linear unit tests (Aubin et al. 2021). The mask then requires
            |mean_e sign(g_e)| > τ instead of ≥ τ, so τ = 1 masks every entry. In addition, each environment's
            gradient with respect to the first parameter tensor is scaled to length 1.
    """

    name: ClassVar[str] = "and-mask"
    paper: ClassVar[str] = "Parascandolo et al. 2020, arXiv 2009.00329"
    minimum_environments: ClassVar[int] = 2
    threshold: Annotated[float, Uniform(0.5, 1.0), Field(ge=0, le=1)] = 1.0
    mean: Annotated[Literal["arithmetic", "geometric"], Choice(("arithmetic", "geometric"))] = "arithmetic"
    inverse_sparsity: Annotated[bool, Choice((True, False))] = True
    strict: bool = False

    def combine(
        self, gradients: Mapping[str, Tensor], state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        if self.strict:
            first = next(iter(gradients))
            norms = gradients[first].flatten(1).norm(dim=1)
            shape = (-1, *(1,) * (gradients[first].dim() - 1))
            gradients = {**gradients, first: gradients[first] / norms.view(shape).clamp(min=1e-30)}
        masks = {name: self._mask(gradient) for name, gradient in gradients.items()}
        combined = {name: self._combine(gradient, masks[name]) for name, gradient in gradients.items()}
        kept = torch.stack([mask.sum() for mask in masks.values()]).sum()
        return combined, state, {KEPT: kept / sum(mask.numel() for mask in masks.values())}

    def _mask(self, gradients: Tensor) -> Tensor:
        agreement = gradients.sign().mean(dim=0).abs() - self.threshold
        # The tolerance makes τ = k/E independent of rounding.
        return (agreement > 1e-6 if self.strict else agreement >= -1e-6).to(gradients.dtype)

    def _combine(self, gradients: Tensor, mask: Tensor) -> Tensor:
        combined = gradients.mean(dim=0)
        if self.mean == "geometric":
            combined = combined.sign() * (gradients.abs() + 1e-10).log().mean(dim=0).exp()
        combined = mask * combined
        return combined / (1e-10 + mask.mean()) if self.inverse_sparsity else combined
