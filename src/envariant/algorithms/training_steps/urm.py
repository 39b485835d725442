"""URM: features spread evenly over a cube, so that none of them is left out; by a discriminator."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, final

import torch.nn.functional as F  # noqa: N812
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
from envariant.core import specs
from envariant.core.environments import EnvironmentBatch
from envariant.core.errors import EnvariantError
from envariant.core.search_space import Choice, LogUniform, Uniform
from envariant.core.step_context import StepContext

_DISCRIMINATOR = "urm-discriminator"


@final
@dataclass(frozen=True)
class URM(TrainingStep):
    """R + a·BCE(D(h), 1) for the model; BCE(D(u), 1) + a·BCE(D(h), 0) for D, u uniform. Krishnamachari 2024.

    The featurizer ends in a tanh for good, or a ReLU, and the noise u fills the range of that. Both sides
    step at every step, D on the features as they were; two Adams. Environments are not used.

    Attributes:
        weight: a.
        output: what the featurizer ends in, "tanh" or "relu".
        layers: hidden layers of D between the first and the last.
        width: of D's hidden layers.
        rate: D's learning rate, as a multiple of the run's.
        smoothing: ς; targets are drawn from (1 − ς, 1) and (0, ς).
    """

    name: ClassVar[str] = "urm"
    paper: ClassVar[str] = "Krishnamachari, Ng, Foo 2024, TMLR"
    needs_features: ClassVar[bool] = True
    stochastic: ClassVar[bool] = True
    returns_updates: ClassVar[bool] = True
    weight: Annotated[float, Uniform(0.0, 0.2)] = 0.1
    output: Annotated[Literal["tanh", "relu"], Choice(("tanh", "relu"))] = "tanh"
    layers: Annotated[int, Choice((1, 2, 3))] = 1
    width: int = 100
    rate: Annotated[float, LogUniform(1e-2, 1e1)] = 1.0
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        specs.checked(URM, vars(self), "URM")
        if self.layers < 0 or self.width < 1 or not 0 <= self.smoothing < 1:
            raise EnvariantError(
                f"URM: layers must be at least 0, width at least 1 and smoothing lie in [0, 1); got "
                f"{self.layers}, {self.width}, {self.smoothing:g}"
            )

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

        def doubt(own: Parameters, features: Tensor, real: bool, draw: int) -> Tensor:
            logits = model.network(_DISCRIMINATOR, own, features).flatten()
            blur = self.smoothing * context.uniform(len(logits), draw=draw, like=logits)
            return F.binary_cross_entropy_with_logits(logits, 1 - blur if real else blur)

        def pleasing(rest: Parameters) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            features, logits = model(rest, batch.inputs)
            risk = batch.task.losses(logits, batch.targets).mean()
            return risk + self.weight * doubt(own, features, True, 0), (features.detach(), risk.detach())

        rest = adam.without(params, (_DISCRIMINATOR,))
        toward, (_, (features, risk)) = grad_and_value(pleasing, has_aux=True)(rest)
        noise = context.uniform(*features.shape, draw=1, like=features)
        noise = 2 * noise - 1 if self.output == "tanh" else noise

        def telling(own: Parameters) -> Tensor:
            return doubt(own, noise, True, 2) + self.weight * doubt(own, features, False, 3)

        learned, told = grad_and_value(telling)(own)
        ahead, moments = adam.step(rest, toward, state["model"], context.learning_rate)
        sharper, sharpened = adam.step(
            own, learned, state["discriminator"], context.learning_rate * self.rate
        )
        new = {"model": moments, "discriminator": sharpened}
        metrics = {"risk": risk, "discriminator loss": told.detach()}
        return adam.moved(params, {**ahead, **sharper}), new, metrics
