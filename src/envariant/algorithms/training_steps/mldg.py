"""MLDG: a step that helps some environments should also help others that it was not made for."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor
from torch.func import grad_and_value

from envariant.algorithms.base import Metrics, Model, Parameters, State, TrainingStep
from envariant.algorithms.training_steps import adam
from envariant.algorithms.training_steps.pairs import Stack, weighted_mean
from envariant.core.environments import EnvironmentBatch
from envariant.core.errors import EnvariantError
from envariant.core.search_space import Choice, LogUniform
from envariant.core.step_context import StepContext


@final
@dataclass(frozen=True)
class MLDG(TrainingStep):
    """(1/E) Σ_pairs ∇R_i(θ) + β·∇R_j(θ'), θ' one step of a fresh Adam along ∇R_i. Li et al. 2018.

    In random order, the last `test_environments` environments are the j, the others the i, paired one after
    another. First order, as in DomainBed: ∇R_j(θ') is taken as if at θ. The paper's inner step is plain
    gradient descent and is differentiated.

    Attributes:
        beta: β, the weight of the environments held out.
        test_environments: how many they are; at most all but one.
    """

    name: ClassVar[str] = "mldg"
    paper: ClassVar[str] = "Li, Yang, Song, Hospedales 2017, arXiv 1710.03463"
    minimum_environments: ClassVar[int] = 2
    stochastic: ClassVar[bool] = True
    beta: Annotated[float, LogUniform(1e-1, 1e1)] = 1.0
    test_environments: Annotated[int, Choice((1, 2))] = 2

    def __post_init__(self) -> None:
        if self.test_environments < 1:
            raise EnvariantError(f"MLDG: test_environments must be at least 1; got {self.test_environments}")

    def gradients(
        self, model: Model, params: Parameters, batch: EnvironmentBatch, state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        like = next(iter(params.values()))
        environments = len(batch.sizes)
        stack = Stack.of(batch, like).at(context.permutation(environments, like=like))
        test_environments = min(self.test_environments, environments - 1)
        meta = environments - test_environments
        # No more pairs than environments to train on; those left over have no say in this step.
        total = {name: torch.zeros_like(value) for name, value in params.items()}
        risks: list[Tensor] = []
        for i in range(meta):
            j = meta + i % test_environments
            counts = stack.counts[i] * stack.counts[j]

            def risk(p: Parameters, e: int, counts: Tensor = counts) -> Tensor:
                losses = batch.task.losses(model(p, stack.inputs[e])[1], stack.targets[e])
                return weighted_mean(losses, counts)

            own, value = grad_and_value(risk)(params, i)
            inner = adam.first_step(own, context.learning_rate)
            moved = {name: params[name] - inner[name] for name in params}
            other, _ = grad_and_value(risk)(moved, j)
            total = {k: g + (own[k] + self.beta * other[k]) / environments for k, g in total.items()}
            risks.append(value.detach())
        return total, state, {"risk": torch.stack(risks).mean()}
