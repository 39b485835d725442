"""Majority-class baseline, which makes the same prediction for every row."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor

from envariant.core.environments import EnvironmentSet
from envariant.core.tasks import Binary, Regression, Task
from envariant.predictors.base import (
    Description,
    FittedPredictor,
    Predictor,
    Tensors,
    numbers_of,
    pooled,
)


@final
@dataclass(frozen=True)
class MajorityClass(Predictor):
    """Baseline that predicts the class frequencies of the training rows (regression: the mean target).

    Attributes:
        name: Name shown in tables.
    """

    name: str = "majority-class"

    def fit(self, environments: EnvironmentSet, seed: int) -> FittedPredictor:
        del seed
        task, (_, targets, weights) = environments.task, pooled(environments)
        w = torch.ones(len(targets)).double() if weights is None else weights.double()
        if isinstance(task, Regression):
            return FittedConstant((w @ targets.double() / w.sum()).float())
        if isinstance(task, Binary):
            return FittedConstant(torch.logit(w @ targets.double() / w.sum(), eps=1e-6).float())
        shares = torch.bincount(targets.long(), weights=w, minlength=task.outputs) / w.sum()
        return FittedConstant(shares.clamp(min=1e-6).log().float())


@final
@dataclass(frozen=True, eq=False)
class FittedConstant(FittedPredictor):
    """Fitted predictor with the same logits for every row.

    Attributes:
        value: Logits of one row, `[]` or `[classes]`.
    """

    kind: ClassVar[str] = "constant"

    value: Tensor = field(repr=False)
    iterations: int = 1

    def logits(self, inputs: Tensor, columns: Any = None) -> Tensor:
        del columns
        return self.value.to(inputs.device).expand(len(inputs), *self.value.shape)

    def store(self) -> tuple[Description, Tensors]:
        return {}, {"value": self.value.clone()}

    @classmethod
    def restore(
        cls, description: Description, tensors: Tensors, task: Task, width: int, trusted: Sequence[str] = ()
    ) -> Self:
        del trusted
        return cls(numbers_of(tensors, "value", task.logits_shape, torch.float32))
