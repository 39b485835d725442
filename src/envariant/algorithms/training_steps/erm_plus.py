"""ERM++: ERM that trains only the head at first, and uses averaged weights for prediction."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
from pydantic import PositiveFloat, PositiveInt
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
    """Minimize the risk R, at first over the head only, with weight averaging. Teterwak et al. 2023.

    The first `head_steps` + 1 updates train only the head; later updates train all parameters, with a second
    Adam optimizer. From update `average_from` on, predictions use the unweighted mean of the weights, taken
    after update `average_from` − 1 and after each later update. Two features of the released code are
    omitted: a first pass that selects learning rates on validation data, and LARS, which raises an error in
    that code.

    Attributes:
        head_steps: Number of initial updates that train only the head, minus 1. With a negative number, all
            updates train all parameters.
        head_rate: Learning rate of these initial updates, as a multiple of the run's learning rate.
        average_from: Number of the update, counted from 1, at which averaging begins.
    """

    name: ClassVar[str] = "erm++"
    paper: ClassVar[str] = "Teterwak et al. 2023, arXiv 2304.01973"
    needs_features: ClassVar[bool] = True
    returns_updates: ClassVar[bool] = True
    aggregates_risk: ClassVar[bool] = True
    head_steps: int = 500
    head_rate: Annotated[PositiveFloat, LogUniform(1e-1, 1e1)] = 1.0
    average_from: PositiveInt = 600

    def switch_steps(self) -> Mapping[str, int]:
        return {"head_steps": self.head_steps + 1, "average_from": self.average_from - 1}

    def init(self, params: Parameters, context: TrainContext) -> State:
        return {
            "head": adam.moments(adam.part(params, "head")),
            "all": adam.moments(params),
            "mean": {name: value.clone() for name, value in params.items()},
        }

    def eval_params(self, params: Parameters, state: State) -> Parameters:
        return state["mean"]

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
            "mean": running_mean(state["mean"], after, context.step + 1, self.average_from),
        }
        return adam.update(params, after), new, {"risk": value.detach()}


def running_mean(mean: Parameters, newest: Parameters, update: int, start: int) -> dict[str, Tensor]:
    """Return the running mean of the weights, including the newest weights.

    Args:
        mean: Previous running mean.
        newest: Weights after the current update.
        update: Number of the current update, counted from 1.
        start: Number of the update at which averaging begins. Before this update, the newest weights are
            returned.
    """
    # Number of earlier iterates in the mean: 0 before update `start`, 1 at it, and so on.
    earlier = torch.clamp(torch.as_tensor(update - start + 1), min=0)
    return {name: mean[name] + (value - mean[name]) / (earlier + 1) for name, value in newest.items()}
