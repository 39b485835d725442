"""MLDG: train so that a step on some environments also reduces the risk in the others."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor
from torch.func import grad_and_value

from envariant.algorithms.base import Metrics, Model, Parameters, State, TrainingStep
from envariant.algorithms.training_steps import adam
from envariant.algorithms.training_steps.padded_batch import PaddedBatch, weighted_mean
from envariant.core.environments import EnvironmentBatch
from envariant.core.search_space import Choice, LogUniform
from envariant.core.step_context import StepContext


@final
@dataclass(frozen=True)
class MLDG(TrainingStep):
    """Gradient (1/E) Σ_i [∇R_i(θ) + β·∇R_j(θ')], with θ' from an Adam step on R_i. Li et al. 2018.

    E is the number of environments, R_i the risk of environment i, and θ the parameters; Adam starts with
    moments of 0. Environments are permuted at random. The last `meta_test_environments` are the meta-test
    environments j, and the others are the meta-train environments i. Each i is paired with the next j; after
    the last j, the pairing continues with the first.
    As in DomainBed, this is a first-order approximation: ∇R_j is computed at θ' and applied at θ. The paper
    uses gradient descent for the inner step and differentiates through this step. `l2` also applies in the
    inner step, but the run's `weight_decay` does not.

    Attributes:
        beta: β, weight of the meta-test gradients.
        meta_test_environments: Number of meta-test environments, at least 1. A number that is too large is
            reduced, so that one environment remains for meta-training.
    """

    name: ClassVar[str] = "mldg"
    paper: ClassVar[str] = "Li, Yang, Song, Hospedales 2017, arXiv 1710.03463"
    minimum_environments: ClassVar[int] = 2
    stochastic: ClassVar[bool] = True
    beta: Annotated[NonNegativeFloat, LogUniform(1e-1, 1e1)] = 1.0
    meta_test_environments: Annotated[PositiveInt, Choice((1, 2))] = 2

    def gradients(
        self, model: Model, params: Parameters, batch: EnvironmentBatch, state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        like = next(iter(params.values()))
        environments = len(batch.sizes)
        stack = PaddedBatch.of(batch, like).at(context.permutation(environments, like=like))
        meta_test = min(self.meta_test_environments, environments - 1)
        meta_train = environments - meta_test

        def risk(p: Parameters, e: int) -> Tensor:
            losses = batch.task.losses(model(p, stack.inputs[e])[1], stack.targets[e])
            return weighted_mean(losses, stack.counts[e])

        # There is one pair per meta-train environment; additional meta-test environments are not used.
        total = {name: torch.zeros_like(value) for name, value in params.items()}
        risks: list[Tensor] = []
        for i in range(meta_train):
            j = meta_train + i % meta_test
            own, value = grad_and_value(risk)(params, i)
            inner = adam.first_step(adam.decayed(params, own, context), context.learning_rate)
            moved = {name: params[name] - inner[name] for name in params}
            other, _ = grad_and_value(risk)(moved, j)
            total = {k: g + (own[k] + self.beta * other[k]) / environments for k, g in total.items()}
            risks.append(value.detach())
        return total, state, {"risk": torch.stack(risks).mean()}
