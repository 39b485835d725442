"""MLDG: a step that helps some environments should also help others that it was not made for."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor
from torch.func import grad_and_value

from envariant.algorithms.contract import Metrics, Model, Parameters, Procedure, State
from envariant.algorithms.procedures import adam
from envariant.algorithms.procedures.pairs import Stack, weighted_mean
from envariant.environments import EnvironmentBatch
from envariant.errors import EnvariantError
from envariant.now import Now
from envariant.search_space import Choice, LogUniform


@final
@dataclass(frozen=True)
class MLDG(Procedure):
    """(1/E) Σ_pairs ∇R_i(θ) + β·∇R_j(θ'), θ' one step of a fresh Adam along ∇R_i. Li et al. 2018.

    In random order, the last `held_out` environments are the j, the others the i, paired one after
    another. First order, as in DomainBed: ∇R_j(θ') is taken as if at θ. The paper's inner step is plain
    gradient descent and is differentiated.

    Attributes:
        beta: β, the weight of the environments held out.
        held_out: how many they are; at most all but one.
    """

    name: ClassVar[str] = "mldg"
    paper: ClassVar[str] = "Li, Yang, Song, Hospedales 2017, arXiv 1710.03463"
    minimum_environments: ClassVar[int] = 2
    draws: ClassVar[bool] = True
    beta: Annotated[float, LogUniform(1e-1, 1e1)] = 1.0
    held_out: Annotated[int, Choice((1, 2))] = 2

    def __post_init__(self) -> None:
        if self.held_out < 1:
            raise EnvariantError(f"MLDG: held_out must be at least 1; got {self.held_out}")

    def gradients(
        self, model: Model, params: Parameters, batch: EnvironmentBatch, state: State, now: Now
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        like = next(iter(params.values()))
        environments = len(batch.sizes)
        stack = Stack.of(batch, like).at(now.permutation(environments, like=like))
        held_out = min(self.held_out, environments - 1)
        meta = environments - held_out
        # No more pairs than environments to train on; those left over have no say in this step.
        total = {name: torch.zeros_like(value) for name, value in params.items()}
        risks: list[Tensor] = []
        for i in range(meta):
            j = meta + i % held_out
            counts = stack.counts[i] * stack.counts[j]

            def risk(p: Parameters, e: int, counts: Tensor = counts) -> Tensor:
                losses = batch.task.losses(model(p, stack.inputs[e])[1], stack.targets[e])
                return weighted_mean(losses, counts)

            own, value = grad_and_value(risk)(params, i)
            inner = adam.first_step(own, now.learning_rate)
            moved = {name: params[name] - inner[name] for name in params}
            other, _ = grad_and_value(risk)(moved, j)
            total = {k: g + (own[k] + self.beta * other[k]) / environments for k, g in total.items()}
            risks.append(value.detach())
        return total, state, {"risk": torch.stack(risks).mean()}
