"""Fish: one environment after another, and then a part of the way there: so that their gradients agree."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor
from torch.func import grad_and_value

from envariant.algorithms.contract import Metrics, Model, Parameters, Procedure, Setting, State
from envariant.algorithms.procedures import adam
from envariant.algorithms.procedures.pairs import Stack, weighted_mean
from envariant.environments import EnvironmentBatch
from envariant.errors import EnvariantError
from envariant.now import Now
from envariant.search_space import Choice


@final
@dataclass(frozen=True)
class Fish(Procedure):
    """θ ← θ + ε·(θ' − θ), θ' after one inner step on each environment in turn. Shi et al. 2021, algorithm 1.

    To first order that raises the inner product of the environments' gradients. The inner Adam, at the
    run's learning rate, keeps its moments from step to step, as in DomainBed; there is no outer optimizer.

    Attributes:
        meta_rate: ε.
        shuffled: environments in random order, as in the paper; else in their own.
    """

    name: ClassVar[str] = "fish"
    paper: ClassVar[str] = "Shi et al. 2021, arXiv 2104.09937"
    minimum_environments: ClassVar[int] = 2
    draws: ClassVar[bool] = True
    moves_itself: ClassVar[bool] = True
    meta_rate: Annotated[float, Choice((0.05, 0.1, 0.5))] = 0.5
    shuffled: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.meta_rate <= 1:
            raise EnvariantError(f"Fish: meta_rate must lie in (0, 1]; got {self.meta_rate:g}")

    def init(self, params: Parameters, setting: Setting) -> State:
        return adam.moments(params)

    def gradients(
        self, model: Model, params: Parameters, batch: EnvironmentBatch, state: State, now: Now
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        stack = Stack.of(batch, next(iter(params.values())))
        if self.shuffled:
            stack = stack.at(now.permutation(len(batch.sizes), like=stack.counts))

        def risk(p: Parameters, e: int) -> Tensor:
            return weighted_mean(
                batch.task.losses(model(p, stack.inputs[e])[1], stack.targets[e]), stack.counts[e]
            )

        there, memory, risks = dict(params), state, list[Tensor]()
        for e in range(len(batch.sizes)):
            gradient, value = grad_and_value(risk)(there, e)
            there, memory = adam.step(there, gradient, memory, now.learning_rate)
            risks.append(value.detach())
        way = {name: self.meta_rate * far for name, far in adam.moved(params, there).items()}
        return way, memory, {"risk": torch.stack(risks).mean()}
