"""Distances between the features of two groups of rows: CORAL and maximum mean discrepancy (MMD)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from envariant.core.environments import PredictedBatch

WIDE = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0)
"""Values of γ for kernels on features, as in DomainBed."""

# Last random number stream of a part; the part can use all others.
_ROWS_DRAW = 15


@final
@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and covariance of the features in a group of rows.

    Attributes:
        mean: Mean of each feature, `[width]`.
        covariance: Covariance matrix of the features, `[width, width]`, with divisor n − 1.
    """

    mean: Float[Tensor, " width"]
    covariance: Float[Tensor, "width width"]

    @classmethod
    def of(cls, rows: Float[Tensor, "rows width"], members: Float[Tensor, " rows"]) -> "Moments":
        """Compute the mean and covariance of a group of rows.

        Args:
            rows: Features of all rows, `[rows, width]`.
            members: 1 for rows of the group, 0 for other rows, `[rows]`.
        """
        count = members.sum()
        mean = members @ rows / count.clamp(min=1)
        centered = rows - mean
        return cls(mean, centered.T @ (members[:, None] * centered) / (count - 1).clamp(min=1))


def coral(first: Moments, second: Moments, *, means: bool = True) -> Float[Tensor, ""]:
    """Return the CORAL distance mean_d (μ_X − μ_Y)_d² + mean_dd' (C_X − C_Y)²_dd' of two groups X and Y.

    μ_X and C_X are the mean and covariance of group X, with entries d and dd'. Sun & Saenko 2016, eq. 1.

    Args:
        first: Moments of X.
        second: Moments of Y.
        means: Whether to include the first term. If false, the second term is divided by 4, as in the paper.
    """
    distance = (first.covariance - second.covariance).square().mean()
    return (first.mean - second.mean).square().mean() + distance if means else distance / 4


def kernel(rows: Float[Tensor, "rows width"], gammas: Sequence[float] = WIDE) -> Float[Tensor, "rows rows"]:
    """Return the kernel Σ_γ exp(−γ·‖a − b‖²) for all pairs of rows a and b, with γ in `gammas`."""
    if rows.shape[1] == 1:
        # In one dimension, direct differences cost no more and are more accurate.
        distances = (rows - rows.T).square()
    else:
        norms = rows.square().sum(dim=1)
        distances = (norms[:, None] + norms[None] - 2 * rows @ rows.T).clamp(min=1e-30)
    return torch.stack([torch.exp(-gamma * distances) for gamma in gammas]).sum(dim=0)


def squared_mmd(
    kernels: Float[Tensor, "rows rows"], first: Float[Tensor, " rows"], second: Float[Tensor, " rows"]
) -> Float[Tensor, ""]:
    """Return the biased estimate of the squared MMD of two groups X and Y. Gretton et al. 2012, eq. 5.

    The estimate is mean K(X, X) + mean K(Y, Y) − 2·mean K(X, Y) with kernel K.

    Args:
        kernels: Kernel matrix K of all rows, `[rows, rows]`. Pairs of a row with itself are included.
        first: 1 for the rows of X, 0 for others, `[rows]`.
        second: 1 for the rows of Y, 0 for others, `[rows]`.
    """
    difference = first / first.sum().clamp(min=1) - second / second.sum().clamp(min=1)
    return difference @ kernels @ difference


def subsample(predicted: PredictedBatch, max_rows: int) -> tuple[Tensor, tuple[int, ...]]:
    """Sample rows from each environment; return their indices and the number of sampled rows per environment.

    Sampling limits the cost of penalties that compare all pairs of rows; a few hundred rows suffice.

    Args:
        predicted: Batch with its predictions.
        max_rows: Maximum number of rows to sample per environment; smaller environments keep all rows.
    """
    sizes = predicted.batch.sizes
    indices = torch.arange(sum(sizes), device=predicted.losses.device).split(sizes)
    if max(sizes) > max_rows:
        drawn = predicted.context.uniform(sum(sizes), draw=_ROWS_DRAW, like=predicted.losses).split(sizes)
        indices = [
            index if len(index) <= max_rows else index[numbers.argsort()[:max_rows]]
            for index, numbers in zip(indices, drawn, strict=True)
        ]
    return torch.cat(list(indices)), tuple(min(size, max_rows) for size in sizes)


def membership(sizes: Sequence[int], like: Tensor) -> Float[Tensor, "environments rows"]:
    """Return one mask per environment: 1 for rows of the environment, 0 for other rows.

    Args:
        sizes: Number of rows of each environment.
        like: Tensor whose dtype and device the masks get.
    """
    return torch.block_diag(*(like.new_ones(1, size) for size in sizes))
