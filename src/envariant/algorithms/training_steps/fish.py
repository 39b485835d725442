"""Fish: update the model on one environment after another, so that the environments' gradients align."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
from pydantic import Field
from torch import Tensor
from torch.func import grad_and_value

from envariant.algorithms.base import Metrics, Model, Parameters, State, TrainContext, TrainingStep
from envariant.algorithms.training_steps import adam
from envariant.algorithms.training_steps.padded_batch import PaddedBatch, weighted_mean
from envariant.core.environments import EnvironmentBatch
from envariant.core.search_space import Choice
from envariant.core.step_context import StepContext


@final
@dataclass(frozen=True)
class Fish(TrainingStep):
    """Update θ ← θ + ε·(θ' − θ) with θ' from one inner step per environment. Shi et al. 2021, algorithm 1.

    θ are the parameters, and θ' the parameters after one inner step on each environment in turn. To first
    order, the update increases the inner products of the environments' gradients. As in DomainBed, the inner
    steps use Adam with the run's learning rate, and Adam's moments are kept from one training step to the
    next. There is no outer optimizer.

    Attributes:
        meta_rate: ε in (0, 1], step size towards θ'.
        shuffled: Whether the inner steps visit the environments in random order, as in the paper, instead of
            in the order of the data.
    """

    name: ClassVar[str] = "fish"
    paper: ClassVar[str] = "Shi et al. 2021, arXiv 2104.09937"
    minimum_environments: ClassVar[int] = 2
    stochastic: ClassVar[bool] = True
    returns_updates: ClassVar[bool] = True
    meta_rate: Annotated[float, Choice((0.05, 0.1, 0.5)), Field(gt=0, le=1)] = 0.5
    shuffled: bool = False

    def init(self, params: Parameters, context: TrainContext) -> State:
        return adam.moments(params)

    def gradients(
        self, model: Model, params: Parameters, batch: EnvironmentBatch, state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        stack = PaddedBatch.of(batch, next(iter(params.values())))
        if self.shuffled:
            stack = stack.at(context.permutation(len(batch.sizes), like=stack.counts))

        def risk(p: Parameters, e: int) -> Tensor:
            return weighted_mean(
                batch.task.losses(model(p, stack.inputs[e])[1], stack.targets[e]), stack.counts[e]
            )

        inner, memory, risks = dict(params), state, list[Tensor]()
        for e in range(len(batch.sizes)):
            gradient, value = grad_and_value(risk)(inner, e)
            inner, memory = adam.step(inner, gradient, memory, context)
            risks.append(value.detach())
        update = {name: self.meta_rate * u for name, u in adam.update(params, inner).items()}
        return update, memory, {"risk": torch.stack(risks).mean()}
