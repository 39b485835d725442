"""WiSE-FT: linear interpolation between the weights before and after fine-tuning."""

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
class WiSEFT(Averaging):
    """Interpolation θ̃ = (1 − α)·θ₀ + α·θ. Wortsman et al. 2022 (arXiv 2109.01903).

    θ₀ are the initial parameters, usually of a pretrained network whose head is a linear probe. θ are the
    current parameters.

    Attributes:
        share: Weight α of the current parameters θ. The paper recommends 0.5 if there is no data for tuning
            α.
    """

    name: ClassVar[str] = "wise-ft"
    share: Annotated[float, Field(ge=0, le=1)] = 0.5

    def __str__(self) -> str:
        return specs.describe(self.name, self, positional=("share",))

    def init(self, params: Float[Tensor, "replicas numbers"]) -> State:
        return {"average": params.clone(), "initial": params.clone()}

    def update(self, state: State, params: Float[Tensor, "replicas numbers"], step: int) -> State:
        initial = state["initial"]
        return {"average": torch.lerp(initial, params, self.share), "initial": initial}
