"""Inter-environment mixup: train on convex combinations of rows from two environments."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
from pydantic import PositiveFloat
from torch import Tensor
from torch.func import grad_and_value

from envariant.algorithms.base import Metrics, Model, Parameters, State, TrainingStep
from envariant.algorithms.training_steps.padded_batch import PaddedBatch, weighted_mean
from envariant.core.environments import EnvironmentBatch
from envariant.core.search_space import LogUniform
from envariant.core.step_context import StepContext


@final
@dataclass(frozen=True)
class Mixup(TrainingStep):
    """Mixed risk (1/E) Σ_pairs [λ·R(f(x̃), y_i) + (1 − λ)·R(f(x̃), y_j)]. Yan et al. 2020.

    The E environments are put in random order, and each environment i is paired with the next one, j (the
    last with the first). x_i, y_i are rows and targets of environment i. R is the mean loss of model f on the
    mixed rows x̃ = λ·x_i + (1 − λ)·x_j. Each pair has one λ ~ Beta(α, α). Rows are paired in batch order, up
    to the size of the smaller environment.

    Attributes:
        alpha: α > 0, parameter of the Beta distribution. With a small α, most rows are nearly unchanged.
    """

    name: ClassVar[str] = "mixup"
    paper: ClassVar[str] = "Yan et al. 2020, arXiv 2001.00677; Xu et al. 2019, arXiv 1912.01805"
    stochastic: ClassVar[bool] = True
    depends_on_sizes: ClassVar[bool] = True
    alpha: Annotated[PositiveFloat, LogUniform(1e-1, 1e1)] = 0.2

    def gradients(
        self, model: Model, params: Parameters, batch: EnvironmentBatch, state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        like = next(iter(params.values()))
        environments = len(batch.sizes)
        order = context.permutation(environments, like=like)
        shares = context.symmetric_beta(self.alpha, environments, draw=1, like=like)

        def loss(params: Parameters) -> Tensor:
            return mixed_risk(model, params, batch, order, shares)

        gradient, risk = grad_and_value(loss)(params)
        return gradient, state, {"risk": risk.detach()}


def mixed_risk(
    model: Model, params: Parameters, batch: EnvironmentBatch, order: Tensor, shares: Tensor
) -> Tensor:
    """Return the risk of `Mixup`, the mean loss on mixed rows.

    Args:
        model: Model as a function of its parameters.
        params: Parameters of the model.
        batch: Rows of every environment.
        order: Permutation of the environments; each one is paired with the next.
        shares: Mixing weight λ of each pair, `[environments]`.
    """
    first = PaddedBatch.of(batch, shares).at(order)
    second = first.at(torch.arange(len(shares), device=shares.device).roll(-1))
    share = shares.view(-1, 1, *(1,) * (batch.inputs.dim() - 1)).to(batch.inputs.dtype)
    rows = share * first.inputs + (1 - share) * second.inputs
    logits = model(params, rows.flatten(0, 1))[1]
    losses = [
        batch.task.losses(logits, side.targets.flatten(0, 1)).unflatten(0, side.targets.shape[:2])
        for side in (first, second)
    ]
    both = shares[:, None] * losses[0] + (1 - shares[:, None]) * losses[1]
    return weighted_mean(both, first.counts * second.counts).mean()
