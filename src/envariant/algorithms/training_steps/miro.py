"""MIRO: fine-tuning that keeps the features informative about the features before fine-tuning."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn
from torch.func import grad_and_value

from envariant.algorithms.base import Metrics, Model, Parameters, State, TrainContext, TrainingStep
from envariant.core.environments import EnvironmentBatch
from envariant.core.search_space import Choice
from envariant.core.step_context import StepContext

_NOISE = "miro-noise"
_PARAMETER = f"{_NOISE}.raw"
_LEAST_VARIANCE = 1e-5
FIRST_RAW = -2.2522735494
"""Initial b of every channel: softplus(b) + 1e-5 is 0.1."""


@final
class _Noise(nn.Module):
    """Module with the parameter b, stored after division by `noise_rate`."""

    def __init__(self, channels: int, rate: float) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.full((channels,), FIRST_RAW / rate))


@final
@dataclass(frozen=True)
class MIRO(TrainingStep):
    """Risk R + λ·½·mean[(h − h⁰)² / σ² + log σ²], σ² = softplus(b) + 1e-5. Cha et al. 2022.

    h are the features, and h⁰ are the features from a copy of the featurizer that was frozen before the first
    step. b is a learned vector with one entry per channel. The penalty bounds the mutual information of h and
    h⁰ from below. Start from pretrained weights. The released code sums the penalty over five layers of a
    ResNet; here, the only layer is the input of the head.

    Attributes:
        weight: λ, weight of the penalty.
        noise_rate: Learning rate of b as a multiple of the run's learning rate. The multiple is exact only
            with optimizers such as Adam, whose updates do not depend on the scale of gradients.
    """

    name: ClassVar[str] = "miro"
    paper: ClassVar[str] = "Cha et al. 2022, arXiv 2203.10789"
    needs_features: ClassVar[bool] = True
    aggregates_risk: ClassVar[bool] = True
    weight: Annotated[NonNegativeFloat, Choice((1.0, 0.1, 0.01, 0.001))] = 0.1
    noise_rate: PositiveFloat = 10.0

    def auxiliary_networks(self, context: TrainContext) -> Mapping[str, nn.Module]:
        return {_NOISE: _Noise(context.features, self.noise_rate)}

    def init(self, params: Parameters, context: TrainContext) -> State:
        return {"before": {name: value.detach().clone() for name, value in params.items()}}

    def gradients(
        self, model: Model, params: Parameters, batch: EnvironmentBatch, state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        before = model(state["before"], batch.inputs)[0].detach()

        def loss(params: Parameters) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            features, logits = model(params, batch.inputs)
            risk = batch.risk(batch.task.losses(logits, batch.targets))
            value = penalty(features, before, params[_PARAMETER] * self.noise_rate)
            return risk + self.weight * value, (risk.detach(), value.detach())

        gradient, (_, (risk, value)) = grad_and_value(loss, has_aux=True)(params)
        return gradient, state, {"risk": risk, self.name: value}


def penalty(features: Tensor, before: Tensor, raw: Tensor) -> Tensor:
    """Return ½·mean[(h − h⁰)² / σ² + log σ²] over rows and channels.

    Args:
        features: h, `[rows, channels]`.
        before: h⁰, `[rows, channels]`.
        raw: b, `[channels]` or `[1]`.
    """
    variance = F.softplus(raw) + _LEAST_VARIANCE
    return 0.5 * ((features - before).square() / variance + variance.log()).mean()
