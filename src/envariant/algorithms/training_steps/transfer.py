"""Transfer: learn features for which similar heads have equal risks in all environments."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, final

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.func import grad, grad_and_value

from envariant.algorithms.base import Metrics, Model, Parameters, State, TrainContext, TrainingStep
from envariant.algorithms.training_steps import adam
from envariant.core.environments import EnvironmentBatch
from envariant.core.search_space import Choice, LogUniform, Uniform
from envariant.core.step_context import StepContext


@final
@dataclass(frozen=True)
class Transfer(TrainingStep):
    """Alternation of min R and min_h λ·max_{‖a−w‖≤δ} [max_e R_e(a) − min_e R_e(a)]. Zhang et al. 2021.

    R is the risk, h are the features, and w are the weights of the model's head. The adversary a is another
    head within distance δ of w, and R_e(a) is the risk of environment e with this head. The term in brackets
    is the risk gap between environments. Each step consists of (1) an update of the model on R, (2) an update
    of the featurizer on the risk gap of the adversary from the previous step, and (3) a new adversary:
    `climbs` steps of gradient ascent on the gap, starting from the head and projected onto a ball of radius
    δ. In DomainBed's random search, the option `gda` is always on. The optimizer then contains only the
    adversary's parameters, and the model is never trained. Here, the optimizer `descent` trains the model.

    Attributes:
        weight: λ, weight of the risk gap.
        delta: δ, Euclidean radius of the ball around w, in the space of all weights and biases of the head.
        climbs: Number of ascent steps of the adversary.
        rate: Learning rate of the ascent.
        descent: Optimizer of updates (1) and (2): "adam", or "sgd" for gradient descent.
    """

    name: ClassVar[str] = "transfer"
    paper: ClassVar[str] = "Zhang, Zhao, Yu, Poupart 2021, arXiv 2106.03632"
    minimum_environments: ClassVar[int] = 2
    needs_features: ClassVar[bool] = True
    returns_updates: ClassVar[bool] = True
    aggregates_risk: ClassVar[bool] = True
    weight: Annotated[NonNegativeFloat, LogUniform(1e-2, 1e1)] = 1.0
    delta: Annotated[NonNegativeFloat, Uniform(0.1, 3.0)] = 2.0
    climbs: Annotated[int, Choice((1, 2, 5, 10)), Field(ge=1, le=1000)] = 10
    rate: Annotated[PositiveFloat, LogUniform(10**-4.5, 10**-2.5)] = 1e-3
    descent: Annotated[Literal["adam", "sgd"], Choice(("adam", "sgd"))] = "adam"

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
            return batch.risk(batch.task.losses(model(params, batch.inputs)[1], batch.targets))

        first, value = grad_and_value(risk)(params)
        after, new = dict(params), dict(state)
        for name in ("head", "featurizer"):
            after, new[name] = self._step(after, adam.part(first, name), state[name], context)

        def featurizer_gap(own: Parameters) -> Tensor:
            features, _ = model({**after, **own}, batch.inputs)
            return self.weight * risk_gap(model, state["adversary"], features, batch)

        second = adam.gradients_of(featurizer_gap, adam.part(after, "featurizer"))
        after, new["featurizer"] = self._step(after, second, new["featurizer"], context)
        features = model(after, batch.inputs)[0].detach()
        head = adam.part(after, "head")
        adversary = head

        def adversary_gap(own: Parameters) -> Tensor:
            return self.weight * risk_gap(model, own, features, batch)

        for _ in range(self.climbs):
            ascent = grad(adversary_gap)(adversary)
            adversary = {name: value + self.rate * ascent[name] for name, value in adversary.items()}
            adversary = project(adversary, head, self.delta)
        return adam.update(params, after), {**new, "adversary": adversary}, {"risk": value.detach()}

    def _step(
        self, params: Parameters, gradients: Parameters, memory: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State]:
        if self.descent == "adam":
            return adam.step(params, gradients, memory, context)
        slopes = adam.decayed(params, gradients, context)
        return {**params, **{k: params[k] - context.learning_rate * g for k, g in slopes.items()}}, memory


def risk_gap(model: Model, adversary: Parameters, features: Tensor, batch: EnvironmentBatch) -> Tensor:
    """Return the largest minus the smallest risk of the adversary over environments.

    Args:
        model: Model as a function of its parameters.
        adversary: Parameters of the adversary, another head.
        features: Features of the rows, `[rows, width]`.
        batch: Rows of every environment.
    """
    losses = batch.task.losses(model.head(adversary, features), batch.targets)
    risks = batch.per_environment_mean(losses)
    return risks.max() - risks.min()


def project(point: Parameters, center: Parameters, radius: Any) -> dict[str, Tensor]:
    """Project parameters onto the Euclidean ball with a given center and radius."""
    difference = {name: value - center[name] for name, value in point.items()}
    distance = torch.stack([value.square().sum() for value in difference.values()]).sum().sqrt()
    share = torch.clamp(radius / distance.clamp(min=1e-30), max=1)
    return {name: center[name] + share * value for name, value in difference.items()}
