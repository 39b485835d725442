"""Imitation of several models by one featurizer with several heads, the last stage of rich features."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.func import grad_and_value

from envariant.algorithms.base import Metrics, Model, Parameters, State, TrainContext, TrainingStep
from envariant.core.environments import EnvironmentBatch
from envariant.core.step_context import StepContext
from envariant.models.base import xavier


def head_name(k: int) -> str:
    """Return the name of the auxiliary network that is the head for model k."""
    return f"imitating-head-{k}"


@final
@dataclass(frozen=True)
class Imitation(TrainingStep):
    """Imitation of several models by one featurizer with one head per imitated model.

    The loss is (1/K) Σ_k mean_i ℓ(w_k·h_i, ŷ_ik), with K imitated models, the features h_i of row i, the head
    w_k for model k and the prediction ŷ_ik of model k. All environments contain the same rows; the targets of
    environment k are the predictions of model k.

    Attributes:
        full_batches: Whether a batch contains all rows of all environments, so that the features of one
            environment serve all heads. Otherwise, the batches of environments contain different rows.
    """

    name: ClassVar[str] = "imitation"
    paper: ClassVar[str] = "Zhang, Lopez-Paz, Bottou 2022, arXiv 2203.15516"
    needs_features: ClassVar[bool] = True
    needs_linear_head: ClassVar[bool] = True
    full_batches: bool = True

    def auxiliary_networks(self, context: TrainContext) -> Mapping[str, nn.Module]:
        return {
            head_name(k): xavier(nn.Linear(context.features, context.task.outputs))
            for k in range(context.environments)
        }

    def gradients(
        self, model: Model, params: Parameters, batch: EnvironmentBatch, state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        answers = batch.split(batch.targets)
        inputs = batch.split(batch.inputs)[0] if self.full_batches else batch.inputs

        def loss(params: Parameters) -> Tensor:
            features, _ = model(params, inputs)
            own = [features] * len(answers) if self.full_batches else batch.split(features)
            losses = [
                batch.task.losses(batch.task.logits(model.network(head_name(k), params, own[k])), answer)
                for k, answer in enumerate(answers)
            ]
            return torch.stack(losses).mean()

        gradient, value = grad_and_value(loss)(params)
        return gradient, state, {"risk": value.detach()}
