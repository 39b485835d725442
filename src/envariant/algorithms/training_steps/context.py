"""Means over neighboring rows, for models that read a row's environment off the rows beside it."""

from typing import final

import torch
from torch import Tensor, nn

ROWS = 256
"""How many rows make up one context when eval_params."""


@final
class GroupMeans(nn.Module):
    """Each row's group mean: `[rows, *shape]` to the same shape.

    In training all rows are one group; when eval_params, every `ROWS` neighbors are, and what is left.
    """

    rows_together = ROWS

    def forward(self, values: Tensor) -> Tensor:
        if self.training:
            return values.mean(dim=0, keepdim=True).expand_as(values)
        groups = values.split(ROWS)
        return torch.cat([group.mean(dim=0, keepdim=True).expand_as(group) for group in groups])
