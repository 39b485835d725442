"""WiSE-FT: interpolate between the weights before and after fine-tuning.

Wortsman et al. 2022 (arXiv 2109.01903).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from envariant.core.errors import EnvariantError


def interpolated(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    share: float = 0.5,
    *,
    fisher_before: Mapping[str, Tensor] | None = None,
    fisher_after: Mapping[str, Tensor] | None = None,
    floor: float = 1e-8,
) -> dict[str, Tensor]:
    """Return (c₀θ₀ + c₁θ₁) / (c₀ + c₁), with c₀ = (1 − α)·max(F₀, floor) and c₁ = α·max(F₁, floor).

    Without Fisher information, F₀ and F₁ are 1, and the result is (1 − α)θ₀ + αθ₁. Buffers, such as running
    statistics of BatchNorm, are interpolated too. Integer buffers, such as counters, are taken from `after`.

    Args:
        before: θ₀, for example `state_dict()` of the pretrained network with a linear probe as head.
        after: θ₁, for example `state_dict()` of the fine-tuned network.
        share: α, weight of the fine-tuned network; the paper recommends 0.5 if there is no data for tuning α.
        fisher_before: Diagonal Fisher information F₀, by name. It must contain every floating-point entry of
            `before`, including buffers. Default: 1 for all entries.
        fisher_after: Diagonal Fisher information F₁, in the same form. Default: 1 for all entries.
        floor: Smallest Fisher information.

    Returns:
        Weights by name, for `load_state_dict`.

    Raises:
        EnvariantError: If the share is outside [0, 1], or names or shapes differ.
    """
    if not 0 <= share <= 1:
        raise EnvariantError(f"interpolated: share must be in [0, 1], got {share:g}")
    shapes = [{name: value.shape for name, value in weights.items()} for weights in (before, after)]
    if shapes[0] != shapes[1]:
        raise EnvariantError("interpolated: both networks must have the same weights, by name and shape")
    mixed: dict[str, Tensor] = {}
    for name, end in after.items():
        if not end.is_floating_point():
            mixed[name] = end.clone()
            continue
        weight = [
            scale * (torch.ones_like(end) if known is None else known[name].clamp(min=floor))
            for known, scale in ((fisher_before, 1 - share), (fisher_after, share))
        ]
        mixed[name] = (weight[0] * before[name] + weight[1] * end) / (weight[0] + weight[1])
    return mixed
