"""ADRMX: subtract learned environment features from the model's features, with adversarial training."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, final

import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import Field, NonNegativeFloat, PositiveInt
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
from envariant.algorithms.penalties import distances
from envariant.algorithms.training_steps import adam
from envariant.algorithms.training_steps.adversary import discriminator
from envariant.core.environments import EnvironmentBatch
from envariant.core.search_space import Choice
from envariant.core.step_context import StepContext
from envariant.core.tasks import Task

_ADVERSARY, _OTHER, _ENVIRONMENT, _DOMAIN = (
    f"adrmx-{word}" for word in ("discriminator", "difference-head", "environment-head", "environment")
)
_TEMPERATURE = 0.07


@final
@dataclass(frozen=True)
class ADRMX(TrainingStep):
    """Loss CE(A h, y) + CE(B c, y) + CE(G d, e) + Remix + SC(h) + SC(c) − δ·CE(D(c), e). Demirel et al. 2023.

    CE is the cross-entropy for the class y or the environment e. h are the model's features. A second
    featurizer computes features d, which describe the environment, and c = h − d is the difference. A, B and
    G are heads with three layers, and D is a discriminator. SC is a supervised contrastive loss between rows
    of one class. Remix is the cross-entropy of A on the sum of one row's c and another row's d, for two rows
    of the same class. D and the other networks have separate Adam optimizers with β = (0.5, 0.9) and are
    updated alternately. In Remix, the released code pairs the wrong rows, because it uses positions within a
    class as positions in the batch; this is corrected here. The paper's learning rate is three times the
    learning rate of ERM.

    Attributes:
        contrast: Weight of both SC terms.
        environment: Weight of CE(G d, e).
        remix: Weight of Remix.
        adversary: δ, weight of CE(D(c), e).
        discriminator_steps: k, number of times that D is updated per update of the other networks. In step n,
            counted from 1, D is updated if n mod (1 + k) < k, and the other networks otherwise.
        depth: Number of linear layers of D.
        width: Width of D's hidden layers.
        max_rows: Maximum number of rows per environment in SC; larger environments are subsampled at random
            at each step.
    """

    name: ClassVar[str] = "adrmx"
    paper: ClassVar[str] = "Demirel, Aptoula, Ozkan 2023, arXiv 2308.06624"
    minimum_environments: ClassVar[int] = 2
    needs_features: ClassVar[bool] = True
    needs_linear_head: ClassVar[bool] = True
    needs_classes: ClassVar[bool] = True
    stochastic: ClassVar[bool] = True
    depends_on_sizes: ClassVar[bool] = True
    returns_updates: ClassVar[bool] = True
    aggregates_risk: ClassVar[bool] = True
    contrast: NonNegativeFloat = 1.0
    environment: NonNegativeFloat = 1.0
    remix: NonNegativeFloat = 1.0
    adversary: NonNegativeFloat = 0.75
    discriminator_steps: PositiveInt = 2
    depth: Annotated[int, Choice((8, 9, 10)), Field(ge=2, le=100)] = 9
    width: PositiveInt = 256
    max_rows: PositiveInt = 512

    def wrap_model(self, module: nn.Module, context: TrainContext) -> nn.Module:
        head: Any = featurizer_and_head(module, self.name)[1]
        module.add_module("head", _deep(head.in_features, head.out_features))
        return module

    def auxiliary_networks(self, context: TrainContext) -> Mapping[str, nn.Module]:
        width, environments = context.features, context.environments
        return {
            _ADVERSARY: discriminator(width, environments, self.width, self.depth),
            _OTHER: _deep(width, context.task.outputs),
            _ENVIRONMENT: _deep(width, environments),
            _DOMAIN: featurizer_and_head(context.another(), self.name)[0],
        }

    def init(self, params: Parameters, context: TrainContext) -> State:
        return {
            "adversary": adam.moments(adam.part(params, _ADVERSARY)),
            "model": adam.moments(adam.without(params, (_ADVERSARY,))),
        }

    def gradients(
        self, model: Model, params: Parameters, batch: EnvironmentBatch, state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        task, targets, owners = batch.task, batch.targets, batch.environment_of_rows()
        own, rest = adam.part(params, _ADVERSARY), adam.without(params, (_ADVERSARY,))

        def discriminator_loss(own: Parameters, common: Tensor) -> Tensor:
            scores = model.network(_ADVERSARY, own, common)
            return batch.mean(F.cross_entropy(scores, owners, reduction="none"))

        def model_loss(rest: Parameters) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            features, logits = model(rest, batch.inputs)
            domain = model.network(_DOMAIN, rest, batch.inputs)
            common = features - domain
            risk = batch.risk(task.losses(logits, targets))
            index, _ = distances.subsample(batch.predicted(features, logits, context), self.max_rows)
            contrasts = [contrast(v[index], targets[index], owners[index]) for v in (features, common)]
            other = task.logits(model.network(_OTHER, rest, common))
            domains = model.network(_ENVIRONMENT, rest, domain)
            first, second, paired = pairs_within_classes(
                targets, context.uniform(len(targets), like=features), task
            )
            mixed = task.losses(model.head(rest, common[first] + domain[second]), targets[first])
            total = (
                risk
                + batch.risk(task.losses(other, targets))
                + self.environment * batch.mean(F.cross_entropy(domains, owners, reduction="none"))
                + self.remix * torch.where(paired, mixed, 0.0).mean()
                + self.contrast * (contrasts[0] + contrasts[1])
                - self.adversary * discriminator_loss(own, common)
            )
            return total, (common.detach(), risk.detach())

        gradient, (_, (common, risk)) = grad_and_value(model_loss, has_aux=True)(rest)
        own_gradient, own_loss = grad_and_value(discriminator_loss)(own, common)
        step = partial(adam.step, context=context, beta1=0.5, beta2=0.9)
        rest_after, rest_moments = step(rest, gradient, state["model"])
        own_after, own_moments = step(own, own_gradient, state["adversary"])
        k = self.discriminator_steps
        turn = torch.as_tensor((context.step + 1) % (1 + k) < k, device=risk.device)
        new = {
            "adversary": adam.where(turn, own_moments, state["adversary"]),
            "model": adam.where(turn, state["model"], rest_moments),
        }
        after = {**adam.where(turn, rest, rest_after), **adam.where(turn, own_after, own)}
        return adam.update(params, after), new, {"risk": risk, "discriminator loss": own_loss.detach()}


def contrast(features: Tensor, targets: Tensor, environments: Tensor) -> Tensor:
    """Return the supervised contrastive loss SC = −Σ_i s_i/(n + 1) of `ADRMX`.

    The sum is over the n rows whose class has at least one other row. s_i is the mean of log(ω_ip·e_ip /
    (Σ_{k≠i} ω_ik·e_ik + 1e-5) + 1e-5) over the other rows p of row i's class. Here e_ij = exp(⟨h_i,
    h_j⟩/0.07) for features h scaled to length 1. The weight ω_ik is ½ within an environment and 1 − ½ = ½
    between environments, so the loss does not depend on `environments`.

    Args:
        features: Features h, `[rows, width]`.
        targets: Class of each row, `[rows]`.
        environments: Environment of each row, `[rows]`.
    """
    rows = F.normalize(features, dim=1)
    others = ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    same_class = (targets[:, None] == targets[None]) & others
    # The released weights are ½ within an environment and 1 − ½ between environments.
    same_environment = environments[:, None] == environments[None]
    weights = torch.where(same_environment, 0.5, 1 - 0.5)
    scores = weights * torch.exp(rows @ rows.T / _TEMPERATURE)
    shares = torch.log(scores / (torch.where(others, scores, 0.0).sum(dim=1, keepdim=True) + 1e-5) + 1e-5)
    counts = same_class.sum(dim=1)
    means = torch.where(same_class, shares, 0.0).sum(dim=1) / counts.clamp(min=1)
    used = counts > 0
    return -torch.where(used, means, 0.0).sum() / (used.sum() + 1)


def pairs_within_classes(targets: Tensor, numbers: Tensor, task: Task) -> tuple[Tensor, Tensor, Tensor]:
    """Select two random rows of each class: the two rows with the smallest random numbers.

    Args:
        targets: Class of each row, `[rows]`.
        numbers: Random number in [0, 1) for each row, `[rows]`.
        task: Prediction task.

    Returns:
        For each class, the indices of its first and second row, and whether it has two rows; all three
            `[classes]`. If it does not, the indices may point to rows of other classes.
    """
    classes = torch.arange(max(2, task.outputs), device=targets.device)
    member = targets[None] == classes[:, None]
    # Numbers are below 1, so the rows of the class come first.
    order = torch.where(member, numbers[None], 2.0).argsort(dim=1)[:, :2]
    return order[:, 0], order[:, 1], member.sum(dim=1) >= 2


def _deep(inputs: int, outputs: int) -> nn.Sequential:
    half, quarter = max(1, inputs // 2), max(1, inputs // 4)
    return nn.Sequential(
        nn.Linear(inputs, half), nn.ReLU(), nn.Linear(half, quarter), nn.ReLU(), nn.Linear(quarter, outputs)
    )
