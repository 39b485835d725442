"""MTL: give the head the mean features of a row's environment as additional inputs."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, final

import torch
from pydantic import Field
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
from envariant.algorithms.training_steps.context import GroupMeans
from envariant.core.environments import EnvironmentBatch
from envariant.core.search_space import Choice
from envariant.core.step_context import StepContext


@final
@dataclass(frozen=True)
class MTL(TrainingStep):
    """Marginal transfer learning: minimize Σ_e R_e with a head on [h_i; ε_e]. Blanchard et al. 2017.

    R_e is the risk of environment e, and h_i are the features of row i in environment e. The embedding ε_e is
    a moving average of the mean features: ε_e ← memory·mean_i h_i + (1 − memory)·ε_e. At prediction time, the
    rows are split into blocks of 256 consecutive rows. ε_e is then the mean over one block, whose rows must
    all come from one environment. In DomainBed's code, noise overwrites the embedding before it reaches the
    head; here, the head receives the embedding.

    Attributes:
        memory: Weight in [0, 1] of the newest mean in the moving average; with 1, only the newest mean is
            used.
    """

    name: ClassVar[str] = "mtl"
    paper: ClassVar[str] = "Blanchard et al. 2017, arXiv 1711.07910"
    needs_features: ClassVar[bool] = True
    needs_linear_head: ClassVar[bool] = True
    memory: Annotated[float, Choice((0.5, 0.9, 0.99, 1.0)), Field(ge=0, le=1)] = 0.99

    def wrap_model(self, module: nn.Module, context: TrainContext) -> nn.Module:
        _, head = featurizer_and_head(module, self.name)
        module.add_module("head", _ContextHead(head))
        return module

    def init(self, params: Parameters, context: TrainContext) -> State:
        like = next(iter(params.values()))
        return {"embeddings": like.new_zeros(context.environments, context.features)}

    def gradients(
        self, model: Model, params: Parameters, batch: EnvironmentBatch, state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        def loss(params: Parameters) -> tuple[Tensor, Tensor]:
            features, _ = model(params, batch.inputs)
            means = batch.per_environment_mean(features)
            embeddings = self.memory * means + (1 - self.memory) * state["embeddings"]
            context = embeddings[batch.environment_of_rows()]
            logits = model.head(params, torch.cat([features, context], dim=1))
            risks = batch.per_environment_mean(batch.task.losses(logits, batch.targets))
            return risks.sum(), embeddings

        gradient, (value, embeddings) = grad_and_value(loss, has_aux=True)(params)
        risk = value.detach() / len(batch.sizes)
        return gradient, {"embeddings": embeddings.detach()}, {"risk": risk}


@final
class _ContextHead(nn.Module):
    """Linear head on features and context; if no context is given, it is the mean of neighboring rows."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.means = GroupMeans()
        self.linear = nn.Linear(2 * head.in_features, head.out_features)
        with torch.no_grad():
            # Zero weights for the context: the initial logits equal the logits of the model's head.
            self.linear.weight[:, : head.in_features] = head.weight
            self.linear.weight[:, head.in_features :] = 0
            self.linear.bias.copy_(head.bias)

    def forward(self, features: Tensor) -> Tensor:
        if features.shape[1] < self.linear.in_features:
            features = torch.cat([features, self.means(features)], dim=1)
        return self.linear(features)
