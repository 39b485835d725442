"""Environments paired at random, though their sizes differ: rows in a rectangle, and which of them count."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from envariant.core.environments import EnvironmentBatch


@final
@dataclass(frozen=True, eq=False)
class Stack:
    """Every environment's rows side by side, the short ones filled up with zeros.

    Attributes:
        inputs: `[environments, rows, *input_shape]`.
        targets: `[environments, rows]`.
        counts: 1 for a row that is there, 0 for a filling.
    """

    inputs: Shaped[Tensor, "environments rows *input_shape"]
    targets: Shaped[Tensor, "environments rows"]
    counts: Float[Tensor, "environments rows"]

    @classmethod
    def of(cls, batch: EnvironmentBatch, like: Tensor) -> "Stack":
        """The rows of a batch; what counts is told in the type of `like`."""
        most = max(batch.sizes)
        ones = batch.split(like.new_ones(len(batch.targets)))
        parts = (batch.split(batch.inputs), batch.split(batch.targets), ones)
        return cls(*(torch.stack([_filled(piece, most) for piece in part]) for part in parts))

    def at(self, order: Tensor) -> "Stack":
        """The environments in another order."""
        return Stack(self.inputs[order], self.targets[order], self.counts[order])


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Along the last axis."""
    return (values * weights).sum(dim=-1) / weights.sum(dim=-1).clamp(min=1)


def _filled(values: Tensor, rows: int) -> Tensor:
    missing = rows - len(values)
    return torch.cat([values, values.new_zeros(missing, *values.shape[1:])]) if missing else values
