"""Gradients of random networks on spirals, and which entries AND-mask keeps (Parascandolo et al. 2020)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn.functional import binary_cross_entropy_with_logits as loss_of

from envariant import data
from envariant.core.counter_rng import private_random_numbers
from envariant.models import model_config

_POINT = 2


def correlations(
    source: str, model: str, thresholds: Sequence[float], seeds: Sequence[int]
) -> dict[str, Any]:
    """Correlate the mean gradient with the gradients of the mechanism alone and of the shortcut alone.

    Correlations are computed separately over the entries that AND-mask keeps, with |mean sign| ≥ τ, and over
    those that it masks. Entries at which the mean gradient is exactly 0 are left out. The gradient of the
    mechanism is the mean gradient on data whose signatures are permuted over the rows of each environment.
    For the gradient of the shortcut, the points are permuted instead.

    Args:
        source: Name of the spiral data.
        model: Name of the model, whose initial weights are used.
        thresholds: Thresholds τ of the mask.
        seeds: Seeds of the initial weights and of the permutations; the data have seed 0.

    Returns:
        For each key and threshold, a list of correlations, one per seed. A key such as "kept mechanism" names
        the entries ("kept" or "masked") and the gradient ("mechanism" or "shortcut"). A correlation is None
        if there are fewer than two entries, or all entries of one of the two gradients are equal.
    """
    drawn = data.source(source).sample(0)
    rows = [(drawn[name].inputs, drawn[name].targets) for name in drawn.names if name not in drawn.test]
    found: dict[str, Any] = {
        f"{mask} {cause}": [[] for _ in thresholds]
        for mask in ("kept", "masked")
        for cause in ("mechanism", "shortcut")
    }
    for seed in seeds:
        with private_random_numbers(seed, torch.device("cpu")):
            module = model_config(model).build(rows[0][0].shape[1:], 1)
        generator = torch.Generator().manual_seed(seed)
        each = _gradients(module, rows)
        mean, agreement = each.mean(dim=0), each.sign().mean(dim=0).abs()
        alone = {
            "mechanism": _gradients(module, [(_permuted(x, generator, point=False), y) for x, y in rows]),
            "shortcut": _gradients(module, [(_permuted(x, generator, point=True), y) for x, y in rows]),
        }
        for cause, gradients in alone.items():
            target = gradients.mean(dim=0)
            for i, threshold in enumerate(thresholds):
                kept = agreement >= threshold - 1e-6
                found[f"kept {cause}"][i].append(_correlation(mean[kept], target[kept]))
                found[f"masked {cause}"][i].append(_correlation(mean[~kept], target[~kept]))
    return found


def _gradients(module: nn.Module, rows: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the gradient of each environment's risk, `[environments, parameters]`."""
    params = {name: value.detach() for name, value in module.named_parameters()}

    def risk(params: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        return loss_of(functional_call(module, params, (inputs,)).squeeze(1), targets)

    gradients = (grad(risk)(params, *pair) for pair in rows)
    return torch.stack([torch.cat([part.flatten() for part in each.values()]) for each in gradients])


def _permuted(inputs: Tensor, generator: torch.Generator, *, point: bool) -> Tensor:
    """Permute one part of the inputs over the rows: the points if `point` is True, else the signatures."""
    other = inputs[torch.randperm(len(inputs), generator=generator)]
    first, second = (other, inputs) if point else (inputs, other)
    return torch.cat([first[:, :_POINT], second[:, _POINT:]], dim=1)


def _correlation(first: Tensor, second: Tensor) -> float | None:
    # Entries of an exactly zero gradient, as at dead units, count as masked.
    used = first != 0
    if used.sum() < 2:
        return None
    value = torch.corrcoef(torch.stack([first[used], second[used]]).double())[0, 1].item()
    return value if value == value else None
