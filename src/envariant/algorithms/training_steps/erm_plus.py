"""ERM++: ERM whose head warms up alone, and that predicts with the mean of the weights it passed through."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor
from torch.func import grad_and_value

from envariant.algorithms.base import Metrics, Model, Parameters, State, TrainContext, TrainingStep
from envariant.algorithms.training_steps import adam
from envariant.core.environments import EnvironmentBatch
from envariant.core.errors import EnvariantError
from envariant.core.search_space import LogUniform
from envariant.core.step_context import StepContext


@final
@dataclass(frozen=True)
class ERMPlus(TrainingStep):
    """ERM with a head-only start, eval_params with the mean of its own weights. Teterwak et al. 2023.

    The head trains alone, by an Adam of its own, while at most `head_steps` updates were made; then all
    parameters do, by another. From update `average_from` on predictions use the plain mean of the iterates
    from the one before it onward. The schedule of learning rates that a first pass finds on validation data
    and a second repeats, and LARS, which the released code cannot construct, are left out.

    Attributes:
        head_steps: n, after whose update number n + 1 everything trains; below 0 there is no such start.
        head_rate: its learning rate, as a multiple of the run's.
        average_from: the update with which the mean begins.
    """

    name: ClassVar[str] = "erm++"
    paper: ClassVar[str] = "Teterwak et al. 2023, arXiv 2304.01973"
    needs_features: ClassVar[bool] = True
    returns_updates: ClassVar[bool] = True
    head_steps: int = 500
    head_rate: Annotated[float, LogUniform(1e-1, 1e1)] = 1.0
    average_from: int = 600

    def __post_init__(self) -> None:
        if self.average_from < 1:
            raise EnvariantError(f"erm++: average_from must be at least 1; got {self.average_from}")

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
            return batch.task.losses(model(params, batch.inputs)[1], batch.targets).mean()

        slope, value = grad_and_value(loss)(params)
        rate = context.learning_rate
        by_head, head = adam.step(params, adam.part(slope, "head"), state["head"], rate * self.head_rate)
        by_all, everything = adam.step(params, slope, state["all"], rate)
        warm = torch.as_tensor(context.step > self.head_steps, device=value.device)
        ahead = adam.chosen(warm, by_all, by_head)
        new = {
            "head": adam.chosen(warm, state["head"], head),
            "all": adam.chosen(warm, everything, state["all"]),
            "mean": running_mean(state["mean"], ahead, context.step + 1, self.average_from),
        }
        return adam.moved(params, ahead), new, {"risk": value.detach()}


def running_mean(mean: Parameters, newest: Parameters, update: int, start: int) -> dict[str, Tensor]:
    """θ̃ after an update, counted from 1: the newest weights before `start`, then their mean from there on."""
    # Before it counts 0 earlier iterates, at it one, and so on.
    earlier = torch.clamp(torch.as_tensor(update - start + 1), min=0)
    return {name: mean[name] + (value - mean[name]) / (earlier + 1) for name, value in newest.items()}
