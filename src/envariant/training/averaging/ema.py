"""Exponential moving average of the weights."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from envariant.core import specs
from envariant.training.averaging.base import Averaging, State


@final
@dataclass(frozen=True)
class EMA(Averaging):
    """Exponential moving average: θ̃ ← d·θ̃ + (1 − d)·θ after each update; the first update copies θ.

    The average starts from a copy of θ, so it needs no bias correction. PyTorch's
    `get_ema_multi_avg_fn` uses the same rule.

    Attributes:
        decay: Decay d.
    """

    name: ClassVar[str] = "ema"
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.999

    def __str__(self) -> str:
        return specs.describe(self.name, self, positional=("decay",))

    def update(self, state: State, params: Float[Tensor, "replicas numbers"], step: int) -> State:
        average = params.clone() if step == 1 else torch.lerp(state["average"], params, 1 - self.decay)
        return {"average": average}
