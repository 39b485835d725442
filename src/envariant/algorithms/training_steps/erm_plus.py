"""ERM++: ERM that first trains only the head, and that predicts with averaged weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
from pydantic import PositiveFloat
from torch import Tensor
from torch.func import grad_and_value

from envariant.algorithms.base import Metrics, Model, Parameters, State, TrainContext, TrainingStep
from envariant.algorithms.training_steps import adam
from envariant.core.environments import EnvironmentBatch
from envariant.core.search_space import LogUniform
from envariant.core.step_context import StepContext


@final
@dataclass(frozen=True)
class ERMPlus(TrainingStep):
    """Minimize the risk R, first over the head only; predict with averaged weights. Teterwak et al. 2023.

    The first `head_steps` + 1 updates train only the head; later updates train all parameters, with a second
    Adam optimizer. Unless the option `average` of the run is set, predictions use the unweighted mean of the
    weights after update 599 and after each later update. Two features of the released code are omitted: a
    first pass that selects learning rates on validation data, and LARS, which raises an error in that code.

    Attributes:
        head_steps: Number of initial updates that train only the head, minus 1. With a negative number, all
            updates train all parameters.
        head_rate: Learning rate of these initial updates, as a multiple of the run's learning rate.
    """

    name: ClassVar[str] = "erm++"
    paper: ClassVar[str] = "Teterwak et al. 2023, arXiv 2304.01973"
    needs_features: ClassVar[bool] = True
    returns_updates: ClassVar[bool] = True
    aggregates_risk: ClassVar[bool] = True
    default_average: ClassVar[str | None] = "ma(start=599)"
    head_steps: int = 500
    head_rate: Annotated[PositiveFloat, LogUniform(1e-1, 1e1)] = 1.0

    def switch_steps(self) -> Mapping[str, int]:
        return {"head_steps": self.head_steps + 1}

    def init(self, params: Parameters, context: TrainContext) -> State:
        return {"head": adam.moments(adam.part(params, "head")), "all": adam.moments(params)}

    def gradients(
        self, model: Model, params: Parameters, batch: EnvironmentBatch, state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        def loss(params: Parameters) -> Tensor:
            return batch.risk(batch.task.losses(model(params, batch.inputs)[1], batch.targets))

        gradient, value = grad_and_value(loss)(params)
        head_gradient = adam.part(gradient, "head")
        head_after, head = adam.step(params, head_gradient, state["head"], context, rate=self.head_rate)
        all_after, everything = adam.step(params, gradient, state["all"], context)
        warmed_up = torch.as_tensor(context.step > self.head_steps, device=value.device)
        after = adam.where(warmed_up, all_after, head_after)
        new = {
            "head": adam.where(warmed_up, state["head"], head),
            "all": adam.where(warmed_up, everything, state["all"]),
        }
        return adam.update(params, after), new, {"risk": value.detach()}
