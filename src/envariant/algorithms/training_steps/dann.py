"""DANN and CDANN: learn features from which a discriminator cannot predict the environment."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, final

import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
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
    """Adversarial training: alternate min_D L_D and min_θ R − λ·L_D. Ganin et al. 2016; Li et al. 2018.

    R is the risk, θ are the parameters of the model, and L_D = CE(D(h), e) + γ·GP is the loss of the
    discriminator D. CE is the cross-entropy for the environment e, predicted from the features h. The
    gradient penalty GP is the mean squared gradient of D's loss with respect to D's input. CDANN adds an
    embedding of the class to the input of D, and weights rows so that all classes have equal weight in CE.
    The model and D have separate Adam optimizers and are updated alternately, as in DomainBed; the DANN paper
    updates both at once through a reversed gradient.

    Attributes:
        weight: λ, weight of the discriminator's loss.
        conditional: Whether to condition the discriminator on the class (CDANN).
        gradient_penalty: γ, weight of GP.
        discriminator_steps: k, number of times that D is updated per model update. In step n, counted from 1,
            D is updated if n mod (1 + k) < k, and the model otherwise.
        beta1: Decay rate β_1 of both Adam optimizers.
        rate: Learning rate of the discriminator, as a multiple of the run's learning rate.
        width: Width of the discriminator's hidden layers.
        depth: Number of linear layers of the discriminator.
    """

    name: ClassVar[str] = "dann"
    paper: ClassVar[str] = "Ganin et al. 2015, arXiv 1505.07818; Li et al., ECCV 2018"
    minimum_environments: ClassVar[int] = 2
    needs_features: ClassVar[bool] = True
    returns_updates: ClassVar[bool] = True
    aggregates_risk: ClassVar[bool] = True
    weight: Annotated[NonNegativeFloat, LogUniform(1e-2, 1e2)] = 1.0
    conditional: bool = False
    gradient_penalty: Annotated[NonNegativeFloat, LogUniform(1e-2, 1e1)] = 0.0
    discriminator_steps: Annotated[PositiveInt, UniformInteger(1, 8)] = 1
    beta1: Annotated[float, Choice((0.0, 0.5)), Field(ge=0, lt=1)] = 0.5
    rate: Annotated[PositiveFloat, LogUniform(1e-1, 1e1)] = 1.0
    width: Annotated[PositiveInt, Choice((64, 128, 256, 512, 1024))] = 256
    depth: Annotated[int, Choice((3, 4, 5)), Field(ge=2, le=100)] = 3

    def auxiliary_networks(self, context: TrainContext) -> Mapping[str, nn.Module]:
        networks: dict[str, nn.Module] = {
            _ADVERSARY: discriminator(context.features, context.environments, self.width, self.depth)
        }
        if self.conditional:
            networks[_EMBEDDING] = nn.Embedding(_classes(context.task), context.features)
        return networks

    def init(self, params: Parameters, context: TrainContext) -> State:
        if self.conditional and context.task.name == "regression":
            raise EnvariantError("cdann: needs a classification task, but the task is regression")
        if self.conditional and context.task.target_shape:
            raise EnvariantError(
                f"cdann: supports only one target per row, but the task is {context.task.name}"
            )
        own = adam.part(params, _ADVERSARY, _EMBEDDING)
        model = adam.without(params, (_ADVERSARY, _EMBEDDING))
        return {"adversary": adam.moments(own), "model": adam.moments(model)}

    def gradients(
        self, model: Model, params: Parameters, batch: EnvironmentBatch, state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        owners = batch.environment_of_rows()
        own = adam.part(params, _ADVERSARY, _EMBEDDING)
        rest = adam.without(params, (_ADVERSARY, _EMBEDDING))

        def model_loss(rest: Parameters) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            features, logits = model(rest, batch.inputs)
            own_loss = self.discriminator_loss(model, own, features, batch, owners)
            risk = batch.risk(batch.task.losses(logits, batch.targets))
            return risk - self.weight * own_loss, (features.detach(), risk.detach())

        gradient, (_, (features, risk)) = grad_and_value(model_loss, has_aux=True)(rest)

        def discriminator_loss(own: Parameters) -> Tensor:
            return self.discriminator_loss(model, own, features, batch, owners)

        own_gradient, own_loss = grad_and_value(discriminator_loss)(own)
        k, step = self.discriminator_steps, partial(adam.step, context=context, beta1=self.beta1, beta2=0.9)
        rest_after, rest_moments = step(rest, gradient, state["model"])
        own_after, own_moments = step(own, own_gradient, state["adversary"], rate=self.rate)
        # Both updates are computed, because the step number is a tensor; the discriminator's is cheap.
        turn = torch.as_tensor((context.step + 1) % (1 + k) < k, device=risk.device)
        new = {
            "adversary": adam.where(turn, own_moments, state["adversary"]),
            "model": adam.where(turn, state["model"], rest_moments),
        }
        after = {**adam.where(turn, rest, rest_after), **adam.where(turn, own_after, own)}
        return adam.update(params, after), new, {"risk": risk, "discriminator loss": own_loss.detach()}

    def discriminator_loss(
        self, model: Model, own: Parameters, features: Tensor, batch: EnvironmentBatch, owners: Tensor
    ) -> Tensor:
        """Return the discriminator's loss L_D for features `[rows, width]` and environments `[rows]`."""
        if self.conditional:
            features = features + model.network(_EMBEDDING, own, batch.targets.long())
        losses = _cross_entropies(model, own, features, owners)

        def total(features: Tensor) -> Tensor:
            return _cross_entropies(model, own, features, owners).sum()

        slopes = grad(total)(features)
        if self.conditional:
            weights = class_weights(batch.targets, batch.row_weights(features), _classes(batch.task))
            entropy = (weights * losses).sum()
        else:
            entropy = batch.mean(losses)
        # No shortcut for γ = 0: γ may differ between replicas, so Python must not branch on it.
        return entropy + self.gradient_penalty * batch.mean(slopes.square().sum(dim=1))


def class_weights(targets: Tensor, weights: Tensor, classes: int) -> Tensor:
    """Rescale row weights, `[rows]`, so that their sum is the same in every class of the batch.

    The sum is 1/C', where C' is 1 plus the largest class index in the batch.

    Args:
        targets: Class index of each row, `[rows]`.
        weights: Relative weight of each row within its class, `[rows]`.
        classes: Number of classes.
    """
    of_class = targets[:, None] == torch.arange(classes, device=targets.device)
    totals = weights @ of_class.to(weights.dtype)
    return weights / (totals[targets.long()] * (targets.max() + 1))


def _classes(task: Task) -> int:
    """Return the number of classes of a task; 2 if the model has a single logit."""
    return max(2, task.outputs)


def _cross_entropies(model: Model, own: Parameters, features: Tensor, owners: Tensor) -> Tensor:
    logits = model.network(_ADVERSARY, own, features)
    return F.cross_entropy(logits, owners, reduction="none")
