"""PCGrad: remove from each environment's gradient the components that conflict with the others."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from envariant.algorithms.base import GradientAggregator, Metrics, State
from envariant.core.step_context import StepContext


@final
@dataclass(frozen=True)
class PCGrad(GradientAggregator):
    """Mean of projected gradients g_e − min(0, ⟨g_e, g_f⟩)/‖g_f‖²·g_f. Yu et al. 2020, algorithm 1.

    g_e and g_f are the gradients of environments e and f. Each g_e is projected for all f ≠ e, one after
    another in random order. Inner products are over all parameters. The paper sums the projected gradients;
    here, they are averaged.
    """

    name: ClassVar[str] = "pcgrad"
    paper: ClassVar[str] = "Yu et al. 2020, arXiv 2001.06782"
    minimum_environments: ClassVar[int] = 2
    stochastic: ClassVar[bool] = True

    def combine(
        self, gradients: Mapping[str, Tensor], state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        flat = torch.cat([g.flatten(1) for g in gradients.values()], dim=1)
        order = context.permutation(len(flat), like=flat)
        mean = _projected(flat, order).mean(dim=0)
        parts = mean.split([g[0].numel() for g in gradients.values()])
        shapes = ((name, g.shape[1:]) for name, g in gradients.items())
        return {n: p.reshape(shape) for (n, shape), p in zip(shapes, parts, strict=True)}, state, {}


def _projected(gradients: Tensor, order: Tensor) -> Tensor:
    """Remove from each environment's gradient the components that conflict with other environments.

    Args:
        gradients: Gradients, `[environments, parameters]`.
        order: Permutation of the environments; each gradient is compared with the others in this order.
    """
    tiny, shuffled = torch.finfo(gradients.dtype).tiny, gradients[order]
    projected: list[Tensor] = []
    for e, own in enumerate(gradients):
        result = own
        for number, other in zip(order, shuffled, strict=True):
            conflict = (result @ other).clamp(max=0) / other.square().sum().clamp(min=tiny)
            result = torch.where(number == e, result, result - conflict * other)
        projected.append(result)
    return torch.stack(projected)
