"""Distances between groups of rows, of which several penalties are made: CORAL's and MMD."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from envariant.core.environments import PredictedBatch

WIDE = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0)
"""The γ of the kernels on features in DomainBed."""

# The last of a part's draws, so that it has the others for itself.
_ROWS_DRAW = 15


@final
@dataclass(frozen=True, eq=False)
class Moments:
    """Mean `[width]` and covariance `[width, width]`, with divisor n − 1, of some rows."""

    mean: Float[Tensor, " width"]
    covariance: Float[Tensor, "width width"]

    @classmethod
    def of(cls, rows: Float[Tensor, "rows width"], chosen: Float[Tensor, " rows"]) -> "Moments":
        """Those of the rows at which `chosen` is 1; it is 0 at the others."""
        count = chosen.sum()
        mean = chosen @ rows / count.clamp(min=1)
        centerd = rows - mean
        return cls(mean, centerd.T @ (chosen[:, None] * centerd) / (count - 1).clamp(min=1))


def coral(first: Moments, second: Moments, *, means: bool = True) -> Float[Tensor, ""]:
    """mean_d (μ_X − μ_Y)_d² + mean_dd' (C_X − C_Y)²_dd'. Sun & Saenko 2016.

    Args:
        first: of X.
        second: of Y.
        means: whether the means count; the paper leaves them out and divides by 4.
    """
    apart = (first.covariance - second.covariance).square().mean()
    return (first.mean - second.mean).square().mean() + apart if means else apart / 4


def kernel(rows: Float[Tensor, "rows width"], gammas: Sequence[float] = WIDE) -> Float[Tensor, "rows rows"]:
    """Σ_γ exp(−γ·‖a − b‖²) for every pair of rows: a sum over γ, as in DomainBed, not a mean."""
    if rows.shape[1] == 1:
        # In one dimension differences are as cheap, and nothing cancels.
        distances = (rows - rows.T).square()
    else:
        norms = rows.square().sum(dim=1)
        distances = (norms[:, None] + norms[None] - 2 * rows @ rows.T).clamp(min=1e-30)
    return torch.stack([torch.exp(-gamma * distances) for gamma in gammas]).sum(dim=0)


def squared_mmd(
    kernels: Float[Tensor, "rows rows"], first: Float[Tensor, " rows"], second: Float[Tensor, " rows"]
) -> Float[Tensor, ""]:
    """Mean K(X, X) + mean K(Y, Y) − 2·mean K(X, Y): biased, diagonals included. Gretton et al. 2012, eq. 5.

    Args:
        kernels: of all rows.
        first: 1 for the rows of X, 0 for the others.
        second: 1 for the rows of Y, 0 for the others.
    """
    difference = first / first.sum().clamp(min=1) - second / second.sum().clamp(min=1)
    return difference @ kernels @ difference


def few_rows(predicted: PredictedBatch, most: int) -> tuple[Tensor, tuple[int, ...]]:
    """Row numbers of at most `most` rows of each environment, drawn anew at each step, and how many of each.

    What compares every pair of rows costs their square; a few hundred tell as much.
    """
    sizes = predicted.batch.sizes
    places = torch.arange(sum(sizes), device=predicted.losses.device).split(sizes)
    if max(sizes) > most:
        drawn = predicted.context.uniform(sum(sizes), draw=_ROWS_DRAW, like=predicted.losses).split(sizes)
        places = [
            place if len(place) <= most else place[numbers.argsort()[:most]]
            for place, numbers in zip(places, drawn, strict=True)
        ]
    return torch.cat(list(places)), tuple(min(size, most) for size in sizes)


def membership(sizes: Sequence[int], like: Tensor) -> Float[Tensor, "environments rows"]:
    """For every environment 1 at its rows and 0 elsewhere, rows end to end."""
    return torch.block_diag(*(like.new_ones(1, size) for size in sizes))
