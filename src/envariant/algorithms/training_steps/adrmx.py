"""ADRMX: features less what a second featurizer knows of the environment, set against a discriminator."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, final

import torch
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
from envariant.algorithms.penalties import distances
from envariant.algorithms.training_steps import adam
from envariant.algorithms.training_steps.adversary import discriminator
from envariant.core.environments import EnvironmentBatch
from envariant.core.errors import EnvariantError
from envariant.core.search_space import Choice
from envariant.core.step_context import StepContext
from envariant.core.tasks import Task

_ADVERSARY, _OTHER, _PLACE, _DOMAIN = (
    f"adrmx-{word}" for word in ("discriminator", "difference-head", "environment-head", "environment")
)
_TEMPERATURE = 0.07


@final
@dataclass(frozen=True)
class ADRMX(TrainingStep):
    """CE(A h, y) + CE(B c, y) + CE(G d, e) + Remix + SC(h) + SC(c) − δ·CE(D(c), e), c = h − d. Demirel 2023.

    h are features for the class, d those of a second featurizer for the environment. SC brings rows of one
    class together, those of other environments more; Remix asks A for the class of c of one row with d of
    another of that class. The discriminator D takes `turns` of every `turns` + 1 steps. All heads have
    three layers; two Adams with β = (0.5, 0.9). The released code takes places within a class for places
    in the batch when it remixes; here they are what they say. A learning rate of three times ERM's is usual.

    Attributes:
        contrast, environment, remix: weights of SC, of CE(G d, e) and of Remix.
        adversary: δ.
        turns: k; D steps where n mod (1 + k) < k, n the steps made with this one.
        depth: linear layers of D.
        width: of its hidden layers.
        rows: at most so many rows of each environment are contrasted, drawn anew at each step.
    """

    name: ClassVar[str] = "adrmx"
    paper: ClassVar[str] = "Demirel, Aptoula, Ozkan 2023, arXiv 2308.06624"
    minimum_environments: ClassVar[int] = 2
    needs_features: ClassVar[bool] = True
    needs_linear_head: ClassVar[bool] = True
    needs_classes: ClassVar[bool] = True
    stochastic: ClassVar[bool] = True
    returns_updates: ClassVar[bool] = True
    contrast: float = 1.0
    environment: float = 1.0
    remix: float = 1.0
    adversary: float = 0.75
    turns: int = 2
    depth: Annotated[int, Choice((8, 9, 10))] = 9
    width: int = 256
    rows: int = 512

    def __post_init__(self) -> None:
        if self.turns < 1 or self.width < 1 or self.depth < 2:
            raise EnvariantError(
                f"ADRMX: turns and width must be at least 1 and depth at least 2; got {self.turns}, "
                f"{self.width}, {self.depth}"
            )

    def wrap_model(self, module: nn.Module, context: TrainContext) -> nn.Module:
        head: Any = featurizer_and_head(module, self.name)[1]
        module.add_module("head", _deep(head.in_features, head.out_features))
        return module

    def auxiliary_networks(self, context: TrainContext) -> Mapping[str, nn.Module]:
        width, places = context.features, context.environments
        return {
            _ADVERSARY: discriminator(width, places, self.width, self.depth),
            _OTHER: _deep(width, context.task.outputs),
            _PLACE: _deep(width, places),
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

        def told(own: Parameters, common: Tensor) -> Tensor:
            return F.cross_entropy(model.network(_ADVERSARY, own, common), owners)

        def generator(rest: Parameters) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            features, logits = model(rest, batch.inputs)
            domain = model.network(_DOMAIN, rest, batch.inputs)
            common = features - domain
            risk = task.losses(logits, targets).mean()
            index, _ = distances.few_rows(batch.predicted(features, logits, context), self.rows)
            near = [contrast(v[index], targets[index], owners[index]) for v in (features, common)]
            other = task.logits(model.network(_OTHER, rest, common))
            first, second, met = pairs_within_classes(
                targets, context.uniform(len(targets), like=features), task
            )
            mixed = task.losses(model.head(rest, common[first] + domain[second]), targets[first])
            total = (
                risk
                + task.losses(other, targets).mean()
                + self.environment * F.cross_entropy(model.network(_PLACE, rest, domain), owners)
                + self.remix * torch.where(met, mixed, 0.0).mean()
                + self.contrast * (near[0] + near[1])
                - self.adversary * told(own, common)
            )
            return total, (common.detach(), risk.detach())

        toward, (_, (common, risk)) = grad_and_value(generator, has_aux=True)(rest)
        learned, guess = grad_and_value(told)(own, common)
        rate = context.learning_rate
        after, moments = adam.step(rest, toward, state["model"], rate, 0.5, 0.9)
        sharper, sharpened = adam.step(own, learned, state["adversary"], rate, 0.5, 0.9)
        turn = torch.as_tensor((context.step + 1) % (1 + self.turns) < self.turns, device=risk.device)
        new = {
            "adversary": adam.chosen(turn, sharpened, state["adversary"]),
            "model": adam.chosen(turn, state["model"], moments),
        }
        ahead = {**adam.chosen(turn, rest, after), **adam.chosen(turn, sharper, own)}
        return adam.moved(params, ahead), new, {"risk": risk, "discriminator loss": guess.detach()}


def contrast(features: Tensor, targets: Tensor, environments: Tensor) -> Tensor:
    """SC = −Σ_i s_i/(n + 1) over the n rows that have others of their class.

    s_i is the mean over those others p of log(ω_ip·e_ip / (Σ_k ω_ik·e_ik + 1e-5) + 1e-5), e_ij =
    exp(⟨h_i, h_j⟩/0.07) of features of length 1 and ω = ½, within an environment and across alike.
    """
    rows = F.normalize(features, dim=1)
    others = ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    alike = (targets[:, None] == targets[None]) & others
    # The released weights are one half for the same environment and one less a half for others.
    together = environments[:, None] == environments[None]
    weights = torch.where(together, 0.5, 1 - 0.5)
    scores = weights * torch.exp(rows @ rows.T / _TEMPERATURE)
    shares = torch.log(scores / (torch.where(others, scores, 0.0).sum(dim=1, keepdim=True) + 1e-5) + 1e-5)
    counts = alike.sum(dim=1)
    means = torch.where(alike, shares, 0.0).sum(dim=1) / counts.clamp(min=1)
    used = counts > 0
    return -torch.where(used, means, 0.0).sum() / (used.sum() + 1)


def pairs_within_classes(targets: Tensor, numbers: Tensor, task: Task) -> tuple[Tensor, Tensor, Tensor]:
    """For every class the two of its rows with the smallest numbers, and whether there are two."""
    classes = torch.arange(max(2, task.outputs), device=targets.device)
    member = targets[None] == classes[:, None]
    # Numbers lie below 1, so that a class's own rows come first.
    order = torch.where(member, numbers[None], 2.0).argsort(dim=1)[:, :2]
    return order[:, 0], order[:, 1], member.sum(dim=1) >= 2


def _deep(inputs: int, outputs: int) -> nn.Sequential:
    half, quarter = max(1, inputs // 2), max(1, inputs // 4)
    return nn.Sequential(
        nn.Linear(inputs, half), nn.ReLU(), nn.Linear(half, quarter), nn.ReLU(), nn.Linear(quarter, outputs)
    )
