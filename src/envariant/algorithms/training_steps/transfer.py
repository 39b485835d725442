"""Transfer: no head near the present one may do much better in one environment than in another."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, final

import torch
from torch import Tensor
from torch.func import grad, grad_and_value

from envariant.algorithms.base import Metrics, Model, Parameters, State, TrainContext, TrainingStep
from envariant.algorithms.training_steps import adam
from envariant.core import specs
from envariant.core.environments import EnvironmentBatch
from envariant.core.errors import EnvariantError
from envariant.core.search_space import Choice, LogUniform, Uniform
from envariant.core.step_context import StepContext


@final
@dataclass(frozen=True)
class Transfer(TrainingStep):
    """ERM's step, then one down λ·(max_e R_e − min_e R_e) of an adversary head. Zhang et al. 2021.

    A step on the mean risk; a step of the featurizer on the gap of the adversary that the last step left;
    then the adversary starts again from the head and climbs `climbs` steps of gradient ascent on the gap,
    held within a ball of radius δ round the head. DomainBed's `gda`, always on in its random search, gives
    plain gradient descent the adversary's parameters and so trains nothing else; here `descent` trains the
    model.

    Attributes:
        weight: λ.
        delta: δ, Euclidean over the head's weights and biases together.
        climbs: steps of the adversary.
        rate: its learning rate.
        descent: "adam", or "sgd" for plain gradient descent, of the model's own two steps.
    """

    name: ClassVar[str] = "transfer"
    paper: ClassVar[str] = "Zhang, Zhao, Yu, Poupart 2021, arXiv 2106.03632"
    minimum_environments: ClassVar[int] = 2
    needs_features: ClassVar[bool] = True
    returns_updates: ClassVar[bool] = True
    weight: Annotated[float, LogUniform(1e-2, 1e1)] = 1.0
    delta: Annotated[float, Uniform(0.1, 3.0)] = 2.0
    climbs: Annotated[int, Choice((1, 2, 5, 10))] = 10
    rate: Annotated[float, LogUniform(10**-4.5, 10**-2.5)] = 1e-3
    descent: Annotated[Literal["adam", "sgd"], Choice(("adam", "sgd"))] = "adam"

    def __post_init__(self) -> None:
        specs.checked(Transfer, vars(self), "Transfer")
        if self.climbs < 1:
            raise EnvariantError(f"Transfer: climbs must be at least 1; got {self.climbs}")

    def init(self, params: Parameters, context: TrainContext) -> State:
        head = {name: value.clone() for name, value in adam.part(params, "head").items()}
        return {
            "adversary": head,
            "head": adam.moments(head),
            "featurizer": adam.moments(adam.part(params, "featurizer")),
        }

    def gradients(
        self, model: Model, params: Parameters, batch: EnvironmentBatch, state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        def risk(params: Parameters) -> Tensor:
            return batch.task.losses(model(params, batch.inputs)[1], batch.targets).mean()

        first, value = grad_and_value(risk)(params)
        rate, new = context.learning_rate, dict(state)
        ahead, new["head"] = self._step(params, adam.part(first, "head"), state["head"], rate)
        ahead, new["featurizer"] = self._step(
            ahead, adam.part(first, "featurizer"), state["featurizer"], rate
        )

        def seen_gap(own: Parameters) -> Tensor:
            features, _ = model({**ahead, **own}, batch.inputs)
            return self.weight * gap_of(model, state["adversary"], features, batch)

        second = adam.slopes(seen_gap, adam.part(ahead, "featurizer"))
        ahead, new["featurizer"] = self._step(ahead, second, new["featurizer"], rate)
        features = model(ahead, batch.inputs)[0].detach()
        head = adam.part(ahead, "head")
        adversary = head

        def adversary_gap(own: Parameters) -> Tensor:
            return self.weight * gap_of(model, own, features, batch)

        for _ in range(self.climbs):
            up = grad(adversary_gap)(adversary)
            adversary = {name: value + self.rate * up[name] for name, value in adversary.items()}
            adversary = within(adversary, head, self.delta)
        return adam.moved(params, ahead), {**new, "adversary": adversary}, {"risk": value.detach()}

    def _step(
        self, params: Parameters, gradients: Parameters, memory: State, rate: Any
    ) -> tuple[dict[str, Tensor], State]:
        if self.descent == "adam":
            return adam.step(params, gradients, memory, rate)
        return {**params, **{name: params[name] - rate * g for name, g in gradients.items()}}, memory


def gap_of(model: Model, adversary: Parameters, features: Tensor, batch: EnvironmentBatch) -> Tensor:
    """max_e R_e − min_e R_e of the adversary's head."""
    losses = batch.task.losses(model.head(adversary, features), batch.targets)
    risks = batch.per_environment_mean(losses)
    return risks.max() - risks.min()


def within(point: Parameters, center: Parameters, radius: Any) -> dict[str, Tensor]:
    """The point of the ball round the center that is nearest to `point`."""
    apart = {name: value - center[name] for name, value in point.items()}
    distance = torch.stack([value.square().sum() for value in apart.values()]).sum().sqrt()
    share = torch.clamp(radius / distance.clamp(min=1e-30), max=1)
    return {name: center[name] + share * value for name, value in apart.items()}
