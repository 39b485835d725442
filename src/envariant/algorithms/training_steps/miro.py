"""MIRO: fine-tune a model while its features stay informative about the features of the original model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn
from torch.func import grad_and_value

from envariant.algorithms.base import Metrics, Model, Parameters, State, TrainContext, TrainingStep
from envariant.core.environments import EnvironmentBatch
from envariant.core.errors import EnvariantError
from envariant.core.search_space import Choice
from envariant.core.step_context import StepContext

_NOISE = "miro-noise"
_LEAST_VARIANCE = 1e-5
FIRST_RAW = -2.2522735494
"""Initial b of every channel: softplus(b) + 1e-5 is 0.1."""


@final
class _Noise(nn.Module):
    """Noise parameters b of each layer, stored as b divided by its learning-rate factor `noise_rate`."""

    def __init__(self, channels: Sequence[int], rate: float) -> None:
        super().__init__()
        self.raw = nn.ParameterList([torch.full((each,), FIRST_RAW / rate) for each in channels])


@final
@dataclass(frozen=True)
class MIRO(TrainingStep):
    """Risk R + λ·Σ ½·mean[(h − h⁰)² / σ² + log σ²], σ² = softplus(b) + 1e-5. Cha et al. 2022.

    The sum is over layers. h is the output of a layer, and h⁰ is the output of the same layer in a copy of
    the network that is frozen before the first step. b has one learned entry for each channel of each layer.
    The penalty bounds the mutual information of h and h⁰ from below. Start from pretrained weights. The
    released code uses five layers of a ResNet, the outputs of its stem and of its four stages; the default
    here is only the input of the head.

    Attributes:
        weight: λ, weight of the penalty.
        noise_rate: Learning rate of b as a multiple of the run's learning rate. The multiple is exact with
            Adam, whose updates do not depend on the scale of gradients.
        layers: Names of the submodules whose outputs are regularized, joined by "+", as in
            "featurizer.layer1 + featurizer.layer2"; "features" for the input of the head. Channels are the
            last axis of outputs `[rows, positions, channels]`, and the second axis of all others.
    """

    name: ClassVar[str] = "miro"
    paper: ClassVar[str] = "Cha et al. 2022, arXiv 2203.10789"
    needs_features: ClassVar[bool] = True
    aggregates_risk: ClassVar[bool] = True
    weight: Annotated[NonNegativeFloat, Choice((1.0, 0.1, 0.01, 0.001))] = 0.1
    noise_rate: PositiveFloat = 10.0
    layers: str = "features"

    def __post_init__(self) -> None:
        super().__post_init__()
        names = self.layers_used()
        if not all(names) or len(set(names)) < len(names):
            raise EnvariantError(
                f"miro: layers must be different names joined by '+', such as featurizer.layer1 + features; "
                f"got '{self.layers}'"
            )

    def layers_used(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.layers.split("+"))

    def auxiliary_networks(self, context: TrainContext) -> Mapping[str, nn.Module]:
        channels = [context.layers[name] for name in self.layers_used()]
        return {_NOISE: _Noise(channels, self.noise_rate)}

    def init(self, params: Parameters, context: TrainContext) -> State:
        return {"before": {name: value.detach().clone() for name, value in params.items()}}

    def gradients(
        self, model: Model, params: Parameters, batch: EnvironmentBatch, state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        before = model.layers(state["before"], batch.inputs)[0]

        def loss(params: Parameters) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            outputs, logits = model.layers(params, batch.inputs)
            risk = batch.risk(batch.task.losses(logits, batch.targets))
            raw = (params[f"{_NOISE}.raw.{i}"] * self.noise_rate for i in range(len(outputs)))
            layers = zip(outputs, before, raw, strict=True)
            value = torch.stack([penalty(now, then.detach(), b) for now, then, b in layers]).sum()
            return risk + self.weight * value, (risk.detach(), value.detach())

        gradient, (_, (risk, value)) = grad_and_value(loss, has_aux=True)(params)
        return gradient, state, {"risk": risk, self.name: value}


def penalty(features: Tensor, before: Tensor, raw: Tensor) -> Tensor:
    """Return ½·mean[(h − h⁰)² / σ² + log σ²] over rows, channels and positions.

    Args:
        features: h: `[rows, channels]`, `[rows, positions, channels]` or `[rows, channels, *positions]`.
        before: h⁰, with the shape of h.
        raw: b, `[channels]`, or `[1]` if all channels share one value.
    """
    variance = F.softplus(raw) + _LEAST_VARIANCE
    if features.dim() > 3:
        variance = variance.view(-1, *(1,) * (features.dim() - 2))
    return 0.5 * ((features - before).square() / variance + variance.log()).mean()
