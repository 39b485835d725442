"""Adam with an L1 penalty that is applied after gradient masking, as weight decay is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from envariant.training.optimizers import OptimizerConfig


@final
@dataclass(frozen=True)
class L1Adam(OptimizerConfig):
    """Adam that receives the gradient g + l1·sign(θ), where g is the combined gradient and θ the parameters.

    The term l1·sign(θ) is the gradient of the penalty l1·‖θ‖₁. A parameter whose gradient is masked therefore
    still shrinks. The update depends on the parameters, so each replica has a separate optimizer.

    Attributes:
        l1: Coefficient of the penalty.
    """

    name: ClassVar[str] = "l1-adam"
    l1: NonNegativeFloat = 0.0

    @property
    def stackable(self) -> bool:
        return False

    def build(self, params: Sequence[Tensor], rate: float, decay: float) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(params, lr=rate, weight_decay=decay, fused=True)

        def add_penalty(*_: Any) -> None:
            with torch.no_grad():
                for param in params:
                    # A new tensor, because the gradient may belong to the caller.
                    param.grad = None if param.grad is None else param.grad + self.l1 * param.sign()

        optimizer.register_step_pre_hook(add_penalty)
        return optimizer
