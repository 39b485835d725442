"""DANN and CDANN: features from which a discriminator cannot tell the environment, trained turn by turn."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, final

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.func import grad, grad_and_value

from envariant.algorithms.base import Metrics, Model, Parameters, State, TrainContext, TrainingStep
from envariant.algorithms.training_steps import adam
from envariant.algorithms.training_steps.adversary import discriminator
from envariant.core.environments import EnvironmentBatch
from envariant.core.errors import EnvariantError
from envariant.core.search_space import Choice, LogUniform, UniformInteger
from envariant.core.step_context import StepContext
from envariant.core.tasks import Task

_ADVERSARY, _EMBEDDING = "dann-discriminator", "dann-embedding"


@final
@dataclass(frozen=True)
class DANN(TrainingStep):
    """min_D L_D, L_D = CE(D(h), e) + γ·GP, in turn with min_θ R − λ·L_D. Ganin et al. 2016; Li et al. 2018.

    CDANN adds an embedding of the class to the features that the discriminator sees, and weighs rows so
    that every class counts alike. GP is the mean squared slope of the discriminator's loss in its input.
    Both sides have an Adam of their own. With n the steps made, this one included, and k = `turns`, the
    discriminator steps where n mod (1 + k) < k, as in DomainBed; the DANN paper moves both at once through
    a reversed gradient.

    Attributes:
        weight: λ.
        conditional: CDANN.
        gradient_penalty: γ.
        turns: k, steps of the discriminator for one of the model.
        beta1: of both Adams.
        rate: the discriminator's learning rate, as a multiple of the run's.
        width: of the discriminator's hidden layers.
        depth: its linear layers.
    """

    name: ClassVar[str] = "dann"
    paper: ClassVar[str] = "Ganin et al. 2015, arXiv 1505.07818; Li et al., ECCV 2018"
    minimum_environments: ClassVar[int] = 2
    needs_features: ClassVar[bool] = True
    returns_updates: ClassVar[bool] = True
    weight: Annotated[float, LogUniform(1e-2, 1e2)] = 1.0
    conditional: bool = False
    gradient_penalty: Annotated[float, LogUniform(1e-2, 1e1)] = 0.0
    turns: Annotated[int, UniformInteger(1, 8)] = 1
    beta1: Annotated[float, Choice((0.0, 0.5))] = 0.5
    rate: Annotated[float, LogUniform(1e-1, 1e1)] = 1.0
    width: Annotated[int, Choice((64, 128, 256, 512, 1024))] = 256
    depth: Annotated[int, Choice((3, 4, 5))] = 3

    def __post_init__(self) -> None:
        if self.turns < 1 or self.width < 1 or self.depth < 2:
            raise EnvariantError(
                f"DANN: turns and width must be at least 1 and depth at least 2; got {self.turns}, "
                f"{self.width}, {self.depth}"
            )

    def auxiliary_networks(self, context: TrainContext) -> Mapping[str, nn.Module]:
        found: dict[str, nn.Module] = {
            _ADVERSARY: discriminator(context.features, context.environments, self.width, self.depth)
        }
        if self.conditional:
            found[_EMBEDDING] = nn.Embedding(_classes(context.task), context.features)
        return found

    def init(self, params: Parameters, context: TrainContext) -> State:
        if self.conditional and context.task.name == "regression":
            raise EnvariantError("cdann: needs classes, but the task is regression")
        own = adam.part(params, _ADVERSARY, _EMBEDDING)
        model = adam.without(params, (_ADVERSARY, _EMBEDDING))
        return {"adversary": adam.moments(own), "model": adam.moments(model)}

    def gradients(
        self, model: Model, params: Parameters, batch: EnvironmentBatch, state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        owners = batch.environment_of_rows()
        own = adam.part(params, _ADVERSARY, _EMBEDDING)
        rest = adam.without(params, (_ADVERSARY, _EMBEDDING))

        def against(rest: Parameters) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            features, logits = model(rest, batch.inputs)
            told = self.discriminator_loss(model, own, features, batch, owners)
            risk = batch.task.losses(logits, batch.targets).mean()
            return risk - self.weight * told, (features.detach(), risk.detach())

        toward, (_, (features, risk)) = grad_and_value(against, has_aux=True)(rest)

        def telling(own: Parameters) -> Tensor:
            return self.discriminator_loss(model, own, features, batch, owners)

        learned, told = grad_and_value(telling)(own)
        rate, beta1 = context.learning_rate, self.beta1
        after, moments = adam.step(rest, toward, state["model"], rate, beta1, 0.9)
        sharper, sharpened = adam.step(own, learned, state["adversary"], rate * self.rate, beta1, 0.9)
        # Both are worked out, for which of them counts is known to the step alone; the adversary's is cheap.
        turn = torch.as_tensor((context.step + 1) % (1 + self.turns) < self.turns, device=risk.device)
        new = {
            "adversary": adam.chosen(turn, sharpened, state["adversary"]),
            "model": adam.chosen(turn, state["model"], moments),
        }
        ahead = {**adam.chosen(turn, rest, after), **adam.chosen(turn, sharper, own)}
        return adam.moved(params, ahead), new, {"risk": risk, "discriminator loss": told.detach()}

    def discriminator_loss(
        self, model: Model, own: Parameters, features: Tensor, batch: EnvironmentBatch, owners: Tensor
    ) -> Tensor:
        """L_D on some features whose rows come from the environments `owners`."""
        weights: Any = 1 / len(features)
        if self.conditional:
            features = features + model.network(_EMBEDDING, own, batch.targets.long())
            weights = class_weights(batch.targets, _classes(batch.task)).to(features.dtype)
        losses = _cross_entropies(model, own, features, owners)

        def total(seen: Tensor) -> Tensor:
            return _cross_entropies(model, own, seen, owners).sum()

        slopes = grad(total)(features)
        # Skipping it where γ is 0 would be a branch on a number that replicas may differ in.
        return (weights * losses).sum() + self.gradient_penalty * slopes.square().sum(dim=1).mean()


def class_weights(targets: Tensor, classes: int) -> Tensor:
    """1/(n_y·C') for a row of class y: n_y rows have it, and C' is the largest class here plus 1."""
    of_class = targets[:, None] == torch.arange(classes, device=targets.device)
    counts = of_class.sum(dim=0)
    return 1 / (counts[targets.long()] * (targets.max() + 1))


def _classes(task: Task) -> int:
    """A single logit has two."""
    return max(2, task.outputs)


def _cross_entropies(model: Model, own: Parameters, features: Tensor, owners: Tensor) -> Tensor:
    logits = model.network(_ADVERSARY, own, features)
    return F.cross_entropy(logits, owners, reduction="none")
