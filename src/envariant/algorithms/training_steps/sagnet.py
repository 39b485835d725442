"""SagNet: reduce the influence of style (mean and variance of each row's features) on predictions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn
from torch.func import grad_and_value

from envariant.algorithms.base import Metrics, Model, Parameters, State, TrainContext, TrainingStep
from envariant.algorithms.training_steps import adam
from envariant.core.environments import EnvironmentBatch
from envariant.core.errors import EnvariantError
from envariant.core.search_space import LogUniform
from envariant.core.step_context import StepContext

_STYLE = "sagnet-style"


@final
@dataclass(frozen=True)
class SagNet(TrainingStep):
    """Minimize R(A(content, mixed style)), with an adversary S on the style. Nam et al. 2021.

    R is the risk, A the head of the model, and S a second head. The style of a row is the mean and variance
    of its features; the content is the row's standardized features. Each training step has three parts.
    Part (1) trains the featurizer and A on features whose style is mixed with another row's style. Part (2)
    trains S to predict the class from the row's style and another row's content. Part (3) trains the
    featurizer so that S predicts equal probabilities for all classes. Featurizer, A and S have separate Adam
    optimizers. Features are vectors, as in DomainBed; the paper uses convolutional feature maps.

    Attributes:
        weight: Weight of part (3).
    """

    name: ClassVar[str] = "sagnet"
    paper: ClassVar[str] = "Nam et al. 2019, arXiv 1910.11645"
    needs_features: ClassVar[bool] = True
    needs_classes: ClassVar[bool] = True
    stochastic: ClassVar[bool] = True
    depends_on_sizes: ClassVar[bool] = True
    returns_updates: ClassVar[bool] = True
    aggregates_risk: ClassVar[bool] = True
    weight: Annotated[NonNegativeFloat, LogUniform(1e-2, 1e1)] = 0.1

    def auxiliary_networks(self, context: TrainContext) -> Mapping[str, nn.Module]:
        if context.features < 2:
            raise EnvariantError(
                "sagnet: needs features of width 2 or more, because a single feature has no style"
            )
        return {_STYLE: nn.Linear(context.features, context.task.outputs)}

    def init(self, params: Parameters, context: TrainContext) -> State:
        groups = {"featurizer": adam.part(params, "featurizer"), "head": adam.part(params, "head")}
        groups["style"] = adam.part(params, _STYLE)
        return {name: adam.moments(group) for name, group in groups.items()}

    def gradients(
        self, model: Model, params: Parameters, batch: EnvironmentBatch, state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        like, rows, task = next(iter(params.values())), len(batch.targets), batch.task
        groups = {name: list(adam.part(params, name)) for name in ("featurizer", "head", _STYLE)}

        def random_rows(turn: int) -> tuple[Tensor, Tensor]:
            order = context.permutation(rows, draw=2 * turn, like=like)
            return order, context.uniform(rows, 1, draw=2 * turn + 1, like=like)

        def some(params: Parameters, *names: str) -> dict[str, Tensor]:
            return {key: params[key] for name in names for key in groups[name]}

        def content_loss(own: Parameters) -> Tensor:
            features, _ = model({**params, **own}, batch.inputs)
            restyled = with_style_of(features, *random_rows(0))
            return batch.risk(task.losses(model.head(own, restyled), batch.targets))

        def style_logits(params: Parameters, turn: int) -> Tensor:
            """Return the logits of the style head S for features that have the content of other rows."""
            features, _ = model(params, batch.inputs)
            return task.logits(model.network(_STYLE, params, with_content_of(features, random_rows(turn)[0])))

        first, risk = grad_and_value(content_loss)(some(params, "featurizer", "head"))
        new = dict(state)
        after, new["head"] = adam.step(params, some(first, "head"), state["head"], context)
        after, new["featurizer"] = adam.step(after, some(first, "featurizer"), state["featurizer"], context)

        def style_loss(own: Parameters) -> Tensor:
            return batch.risk(task.losses(style_logits({**after, **own}, 1), batch.targets))

        second = adam.gradients_of(style_loss, some(after, _STYLE))
        last, new["style"] = adam.step(after, second, state["style"], context)

        def flatness_loss(own: Parameters) -> Tensor:
            return self.weight * batch.mean(_flatness(style_logits({**last, **own}, 2)))

        third = adam.gradients_of(flatness_loss, some(last, "featurizer"))
        last, new["featurizer"] = adam.step(last, third, new["featurizer"], context)
        return adam.update(params, last), new, {"risk": risk.detach()}


def with_style_of(features: Tensor, order: Tensor, share: Tensor) -> Tensor:
    """Mix the mean and variance of each row's features with those of another row's features.

    Args:
        features: Features, `[rows, width]`.
        order: Index of the other row, for each row, `[rows]`.
        share: Weight of each row's original mean and variance, `[rows, 1]`.
    """
    content, mean, variance = _content_and_style(features)
    mean = share * mean + (1 - share) * mean[order]
    variance = share * variance + (1 - share) * variance[order]
    return content * (variance + _TINY).sqrt() + mean


def with_content_of(features: Tensor, order: Tensor) -> Tensor:
    """Replace the content of row i by the content of row `order[i]`, and keep the style of row i.

    The new content is treated as a constant in the gradient.
    """
    content, mean, variance = _content_and_style(features)
    return content[order].detach() * (variance + _TINY).sqrt() + mean


_TINY = 1e-5


def _content_and_style(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean, variance = features.mean(dim=1, keepdim=True), features.var(dim=1, keepdim=True)
    return (features - mean) / (variance + _TINY).sqrt(), mean, variance


def _flatness(logits: Tensor) -> Tensor:
    """Return −log p of every class, `[rows, classes]`; the mean is smallest for equal probabilities.

    A single logit is converted to two classes.
    """
    classes = torch.stack([torch.zeros_like(logits), logits], dim=1) if logits.dim() == 1 else logits
    return -classes.log_softmax(dim=1)
