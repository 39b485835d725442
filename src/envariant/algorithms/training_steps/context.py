"""Layer that averages groups of rows, for models that use other rows of an environment as context."""

from typing import final

import torch
from torch import Tensor, nn

ROWS = 256
"""Number of neighboring rows in one group in evaluation mode."""


@final
class GroupMeans(nn.Module):
    """Layer that replaces each row of an input `[rows, *shape]` by the mean of the row's group.

    In training mode, all rows form one group. In evaluation mode, every `ROWS` consecutive rows form a group;
    the last group may be smaller.
    """

    rows_together = ROWS

    def forward(self, values: Tensor) -> Tensor:
        if self.training:
            return values.mean(dim=0, keepdim=True).expand_as(values)
        groups = values.split(ROWS)
        return torch.cat([group.mean(dim=0, keepdim=True).expand_as(group) for group in groups])
