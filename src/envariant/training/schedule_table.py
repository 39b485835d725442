"""`ScheduleTable`: hyperparameters or learning rates of all replicas at a step, as one tensor."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from envariant.core.schedules import Schedule


@final
class ScheduleTable:
    """Table of hyperparameters or learning rates, constant or scheduled, with one row per replica.

    Args:
        rows: One row of numbers or schedules per replica; all rows have the same length.
        device: Device of the returned tensors.
    """

    def __init__(self, rows: Sequence[Sequence[Schedule | float]], device: torch.device) -> None:
        # Many replicas may share few schedules; evaluate each distinct schedule once per step.
        distinct = list(dict.fromkeys(number for row in rows for number in row))
        places = {number: i for i, number in enumerate(distinct)}
        self._distinct, self._device = distinct, device
        self._index = torch.tensor([[places[number] for number in row] for row in rows], dtype=torch.long)
        self._values: list[float] | None = None
        self._tensor = torch.empty(0)

    def at(self, step: int) -> Float[Tensor, "replicas numbers"]:
        """Return all values at a step, `[replicas, numbers]`; the step is the number of completed updates."""
        values = [n(step) if isinstance(n, Schedule) else n for n in self._distinct]
        if values != self._values:
            self._values = values
            self._tensor = torch.tensor(values, dtype=torch.float32)[self._index].to(self._device)
        return self._tensor
