"""Differentiable communication between the processes of a distributed training run.

Every process computes the same loss from the rows of all processes. `DistributedDataParallel` averages the
gradients of the W processes. The backward passes below therefore multiply by W what a process contributes, so
that the average is the gradient of the loss on the joined batch.
"""

from dataclasses import dataclass
from typing import Any, cast, final

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor


@final
@dataclass(frozen=True)
class Processes:
    """Processes that share a batch, and the number of rows of each.

    Attributes:
        counts: Number of rows of each process; one entry if training is not distributed.
        rank: Index of this process.
        group: Process group; None for the default group.
    """

    counts: tuple[int, ...]
    rank: int = 0
    group: Any = None

    @classmethod
    def of(cls, rows: int, device: torch.device, group: Any = None) -> "Processes":
        """Exchange the number of rows between all processes.

        Args:
            rows: Number of rows of this process.
            device: Device of the rows.
            group: Process group; None for the default group.
        """
        own = torch.tensor([rows], device=device)
        counts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(counts, own, group=group)
        return cls(tuple(int(count) for count in torch.cat(counts).tolist()), dist.get_rank(group), group)

    @property
    def number(self) -> int:
        """Number of processes."""
        return len(self.counts)

    @property
    def own(self) -> slice:
        """Rows of this process in the joined batch."""
        start = sum(self.counts[: self.rank])
        return slice(start, start + self.counts[self.rank])

    def joined(self, rows: Shaped[Tensor, "rows *shape"]) -> Shaped[Tensor, "all *shape"]:
        """Return the rows of all processes, in the order of the processes; differentiable."""
        if self.number == 1:
            return rows
        if 0 in rows.shape[1:]:
            return rows.new_zeros(sum(self.counts), *rows.shape[1:])
        return cast("Tensor", _JoinedRows.apply(rows, self))

    def total(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes; differentiable."""
        return values if self.number == 1 else cast("Tensor", _Total.apply(values, self))


def is_distributed(group: Any = None) -> bool:
    """Return whether several processes train together.

    Args:
        group: Process group; None for the default group.
    """
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def _gathered(rows: Tensor, processes: Processes) -> Tensor:
    longest = max(processes.counts)
    # Collective operations need equal shapes.
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in processes.counts]
    dist.all_gather(parts, padded, group=processes.group)
    return torch.cat([part[:count] for part, count in zip(parts, processes.counts, strict=True)])


@final
class _JoinedRows(torch.autograd.Function):
    """Rows of all processes; the gradient of a process's rows is multiplied by the number of processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes
        return _gathered(rows.detach(), processes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # Every process has the same gradient, so nothing has to be communicated.
        return gradients[0][ctx.processes.own] * ctx.processes.number, None


@final
class _Total(torch.autograd.Function):
    """Sum over all processes; the gradient is multiplied by the number of processes."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, processes: Processes) -> Tensor:
        ctx.number = processes.number
        total = values.detach().clone()
        dist.all_reduce(total, group=processes.group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.number, None
