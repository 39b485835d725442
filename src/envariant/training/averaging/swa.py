"""Stochastic weight averaging."""

from dataclasses import dataclass, field
from typing import ClassVar, final

from jaxtyping import Float
from pydantic import NonNegativeInt
from torch import Tensor

from envariant.core.specs import Percent
from envariant.training.averaging.base import Averaging, State, running_mean


@final
@dataclass(frozen=True)
class SWA(Averaging):
    """Mean of the weights after updates `start`, `start` + `every`, `start` + 2·`every` and so on.

    Each of these updates changes the mean θ̃ to θ̃ + (θ − θ̃) / (n + 1), where θ are the current weights and
    n is the number of weights averaged before. Izmailov et al. 2018, arXiv 1803.05407; in the paper, a cycle
    is an epoch. Before update `start`, the current weights are used. To change the learning rate in the
    averaging phase, as the paper does, set the option `learning_rate` of the run to a schedule.

    Attributes:
        start: First update whose weights are averaged: its number, counted from 1, or a share of the run.
        every: Length of a cycle: a number of updates, or a share of the run; at least one update.
    """

    name: ClassVar[str] = "swa"
    start: NonNegativeInt | Percent = field(default=Percent(75))
    every: NonNegativeInt | Percent = field(default=Percent(1))

    def update(self, state: State, params: Float[Tensor, "replicas numbers"], step: int) -> State:
        assert isinstance(self.start, int)
        assert isinstance(self.every, int)
        earlier, rest = divmod(max(0, step - max(1, self.start)), max(1, self.every))
        return state if rest else {"average": running_mean(state["average"], params, earlier)}
