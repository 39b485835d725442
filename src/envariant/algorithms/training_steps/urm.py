"""URM: learn features that a discriminator cannot distinguish from uniform random numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, final

import torch.nn.functional as F  # noqa: N812
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.func import grad_and_value

from envariant.algorithms.base import (
    Metrics,
    Model,
    Parameters,
    State,
    TrainContext,
    TrainingStep,
    featurizer_and_head,
)
from envariant.algorithms.training_steps import adam
from envariant.core.environments import EnvironmentBatch
from envariant.core.search_space import Choice, LogUniform, Uniform
from envariant.core.step_context import StepContext

_DISCRIMINATOR = "urm-discriminator"


@final
@dataclass(frozen=True)
class URM(TrainingStep):
    """Minimize R + a·BCE(D(h), 1) with a discriminator D of features h. Krishnamachari 2024.

    D is trained to minimize BCE(D(u), 1) + a·BCE(D(h), 0). R is the risk, u are uniform random numbers, and
    BCE is the binary cross-entropy. A tanh or ReLU is appended to the featurizer, and u is uniform on [−1, 1]
    for tanh or on [0, 1] for ReLU. The model and D are both updated at every step, with separate Adam
    optimizers. D is trained on the features before the model's update. Environment labels are not used.

    Attributes:
        weight: a, weight of the term that contains D(h), in the model's loss and in D's loss.
        output: Function appended to the featurizer, "tanh" or "relu".
        layers: Number of linear layers of D between its first and its last linear layer.
        width: Width of D's hidden layers.
        rate: Learning rate of D, as a multiple of the run's learning rate.
        smoothing: ς in [0, 1), label smoothing: the targets 1 and 0 of D are replaced by random numbers that
            are uniform on (1 − ς, 1) and (0, ς).
    """

    name: ClassVar[str] = "urm"
    paper: ClassVar[str] = "Krishnamachari, Ng, Foo 2024, TMLR"
    needs_features: ClassVar[bool] = True
    stochastic: ClassVar[bool] = True
    returns_updates: ClassVar[bool] = True
    aggregates_risk: ClassVar[bool] = True
    weight: Annotated[NonNegativeFloat, Uniform(0.0, 0.2)] = 0.1
    output: Annotated[Literal["tanh", "relu"], Choice(("tanh", "relu"))] = "tanh"
    layers: Annotated[int, Choice((1, 2, 3)), Field(ge=0, le=100)] = 1
    width: PositiveInt = 100
    rate: Annotated[PositiveFloat, LogUniform(1e-2, 1e1)] = 1.0
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def wrap_model(self, module: nn.Module, context: TrainContext) -> nn.Module:
        featurizer, _ = featurizer_and_head(module, self.name)
        end = nn.Tanh() if self.output == "tanh" else nn.ReLU()
        module.add_module("featurizer", nn.Sequential(featurizer, end))
        return module

    def auxiliary_networks(self, context: TrainContext) -> Mapping[str, nn.Module]:
        layers: list[nn.Module] = [nn.Linear(context.features, self.width), nn.LeakyReLU()]
        for _ in range(self.layers):
            layers += [nn.Linear(self.width, self.width), nn.LeakyReLU()]
        return {_DISCRIMINATOR: nn.Sequential(*layers, nn.Linear(self.width, 1))}

    def init(self, params: Parameters, context: TrainContext) -> State:
        return {
            "model": adam.moments(adam.without(params, (_DISCRIMINATOR,))),
            "discriminator": adam.moments(adam.part(params, _DISCRIMINATOR)),
        }

    def gradients(
        self, model: Model, params: Parameters, batch: EnvironmentBatch, state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        own = adam.part(params, _DISCRIMINATOR)

        def entropy(own: Parameters, features: Tensor, uniform: bool, draw: int) -> Tensor:
            """Return the smoothed cross-entropy of D for target 1 if `uniform` is true, else for target 0."""
            logits = model.network(_DISCRIMINATOR, own, features).flatten()
            smoothing = self.smoothing * context.uniform(len(logits), draw=draw, like=logits)
            goals = 1 - smoothing if uniform else smoothing
            return batch.mean(F.binary_cross_entropy_with_logits(logits, goals, reduction="none"))

        def model_loss(rest: Parameters) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            features, logits = model(rest, batch.inputs)
            risk = batch.risk(batch.task.losses(logits, batch.targets))
            return risk + self.weight * entropy(own, features, True, 0), (features.detach(), risk.detach())

        rest = adam.without(params, (_DISCRIMINATOR,))
        gradient, (_, (features, risk)) = grad_and_value(model_loss, has_aux=True)(rest)
        noise = context.uniform(*features.shape, draw=1, like=features)
        noise = 2 * noise - 1 if self.output == "tanh" else noise

        def discriminator_loss(own: Parameters) -> Tensor:
            return entropy(own, noise, True, 2) + self.weight * entropy(own, features, False, 3)

        own_gradient, own_loss = grad_and_value(discriminator_loss)(own)
        rest_after, rest_moments = adam.step(rest, gradient, state["model"], context)
        own_after, own_moments = adam.step(own, own_gradient, state["discriminator"], context, rate=self.rate)
        new = {"model": rest_moments, "discriminator": own_moments}
        metrics = {"risk": risk, "discriminator loss": own_loss.detach()}
        return adam.update(params, {**rest_after, **own_after}), new, metrics
