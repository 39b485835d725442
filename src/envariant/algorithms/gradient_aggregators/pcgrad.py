"""PCGrad: where two environments pull against each other, each gives up what harms the other."""

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
    """Every g_e loses its part along each g_f with ⟨g_e, g_f⟩ < 0; then the mean. Yu et al. 2020.

    g_e ← g_e − ⟨g_e, g_f⟩/‖g_f‖²·g_f over all parameters, the f in random order, as in algorithm 1. The
    paper adds the results up; the mean is that divided by E.
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
        whole = _projected(flat, order).mean(dim=0)
        parts = whole.split([g[0].numel() for g in gradients.values()])
        shapes = ((name, g.shape[1:]) for name, g in gradients.items())
        return {n: p.reshape(shape) for (n, shape), p in zip(shapes, parts, strict=True)}, state, {}


def _projected(gradients: Tensor, order: Tensor) -> Tensor:
    """Every gradient less what conflicts with the others, taken in that order."""
    tiny, shuffled = torch.finfo(gradients.dtype).tiny, gradients[order]
    found: list[Tensor] = []
    for e, own in enumerate(gradients):
        left = own
        for number, against in zip(order, shuffled, strict=True):
            conflict = (left @ against).clamp(max=0) / against.square().sum().clamp(min=tiny)
            left = torch.where(number == e, left, left - conflict * against)
        found.append(left)
    return torch.stack(found)
