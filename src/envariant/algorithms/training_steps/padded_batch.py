"""Minibatches padded to the same number of rows in every environment, so that rows can be paired."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from envariant.core.environments import EnvironmentBatch


@final
@dataclass(frozen=True, eq=False)
class PaddedBatch:
    """Rows of every environment, padded with zeros to the size of the largest environment.

    Attributes:
        inputs: Inputs, `[environments, rows, *input_shape]`.
        targets: Targets, `[environments, rows]`.
        counts: 1 for rows of the batch and 0 for padding, `[environments, rows]`.
    """

    inputs: Shaped[Tensor, "environments rows *input_shape"]
    targets: Shaped[Tensor, "environments rows"]
    counts: Float[Tensor, "environments rows"]

    @classmethod
    def of(cls, batch: EnvironmentBatch, like: Tensor) -> "PaddedBatch":
        """Pad the rows of a batch; `counts` has the dtype and device of `like`."""
        largest = max(batch.sizes)
        ones = batch.split(like.new_ones(len(batch.targets)))
        parts = (batch.split(batch.inputs), batch.split(batch.targets), ones)
        return cls(*(torch.stack([_padded(piece, largest) for piece in part]) for part in parts))

    def at(self, order: Tensor) -> "PaddedBatch":
        """Return the padded batch with its environments in the order `order`."""
        return PaddedBatch(self.inputs[order], self.targets[order], self.counts[order])


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean along the last axis; 0 if all weights are 0."""
    return (values * weights).sum(dim=-1) / weights.sum(dim=-1).clamp(min=1)


def _padded(values: Tensor, rows: int) -> Tensor:
    missing = rows - len(values)
    return torch.cat([values, values.new_zeros(missing, *values.shape[1:])]) if missing else values
