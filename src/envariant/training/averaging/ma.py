"""Running mean of the weights, from a given update on."""

from dataclasses import dataclass
from typing import ClassVar, final

from jaxtyping import Float
from pydantic import NonNegativeInt
from torch import Tensor

from envariant.core.specs import Percent
from envariant.training.averaging.base import Averaging, State, running_mean


@final
@dataclass(frozen=True)
class MovingAverage(Averaging):
    """Mean of the weights after updates `start`, `start` + 1, …; before update `start`, the current weights.

    Arpit et al. 2021, arXiv 2110.10832. The code of DiWA (arXiv 2205.09739) counts the weights after update
    `start` twice; here, the weights after every update count once.

    Attributes:
        start: First update whose weights are averaged: its number, counted from 1, or a share of the run,
            such as 20%.
    """

    name: ClassVar[str] = "ma"
    start: NonNegativeInt | Percent = 100

    def update(self, state: State, params: Float[Tensor, "replicas numbers"], step: int) -> State:
        assert isinstance(self.start, int)
        earlier = max(0, step - max(1, self.start))
        return {"average": running_mean(state["average"], params, earlier)}
