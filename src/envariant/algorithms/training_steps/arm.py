"""ARM: give the model an additional input for each row, a learned summary of the row's environment."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import grad_and_value

from envariant.algorithms.base import Metrics, Model, Parameters, State, TrainContext, TrainingStep
from envariant.algorithms.training_steps.context import GroupMeans
from envariant.core.environments import EnvironmentBatch
from envariant.core.step_context import StepContext


@final
@dataclass(frozen=True)
class ARM(TrainingStep):
    """Risk of the model f([x_i; mean_j c(x_j)]), called ARM-CML. Zhang et al. 2020.

    The input of the model f is row x_i together with the mean output of a context network c over rows j from
    the environment of row i. The context network computes an additional channel of an image (by three 5×5
    convolutions) or an additional column of a table. In training, the mean is over the environment's rows in
    the batch. In prediction, the rows are split into blocks of 256 consecutive rows and the mean is over one
    block, whose rows must all come from one environment. The context network is trained with the model; the
    released code never trains it. Group norm replaces the released code's batch norm, so that the context
    depends only on the rows of a block.

    Attributes:
        trained: Whether to train the context network instead of keeping its random initial weights.
        width: Width of the context network's hidden layers.
    """

    name: ClassVar[str] = "arm"
    paper: ClassVar[str] = "Zhang et al. 2020, arXiv 2007.02931"
    aggregates_risk: ClassVar[bool] = True
    trained: bool = True
    width: Annotated[int, Field(ge=1, le=4096)] = 64

    def wrap_model(self, module: nn.Module, context: TrainContext) -> nn.Module:
        channels, *rest = context.input_shape
        # A frozen network has no trained parameters, so weight decay cannot change it.
        own = _context(context.input_shape, self.width).requires_grad_(self.trained)
        return _WithContext(own, context.another((channels + 1, *rest)))

    def gradients(
        self, model: Model, params: Parameters, batch: EnvironmentBatch, state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        def loss(params: Parameters) -> Tensor:
            logits = torch.cat([model(params, inputs)[1] for inputs in batch.split(batch.inputs)])
            return batch.risk(batch.task.losses(logits, batch.targets))

        gradient, value = grad_and_value(loss)(params)
        return gradient, state, {"risk": value.detach()}


@final
class _WithContext(nn.Module):
    """Model with an additional input channel, computed by a context network."""

    def __init__(self, context: nn.Module, model: nn.Module) -> None:
        super().__init__()
        self.context, self.means, self.model = context, GroupMeans(), model

    def forward(self, inputs: Tensor) -> Tensor:
        context = self.means(self.context(inputs))
        return self.model(torch.cat([inputs, context.to(inputs.dtype)], dim=1))


def _context(input_shape: Sequence[int], width: int) -> nn.Module:
    if len(input_shape) == 3:
        groups = math.gcd(8, width)
        return nn.Sequential(
            nn.Conv2d(input_shape[0], width, 5, padding=2),
            nn.GroupNorm(groups, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 5, padding=2),
            nn.GroupNorm(groups, width),
            nn.ReLU(),
            nn.Conv2d(width, 1, 5, padding=2),
        )
    inner = math.prod(input_shape[1:])
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(input_shape), width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, inner),
        nn.Unflatten(1, (1, *input_shape[1:])),
    )
