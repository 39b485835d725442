"""Majority-class baseline, with the same prediction for every row."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from envariant.core.environments import EnvironmentSet
from envariant.core.tasks import Binary, Regression
from envariant.predictors.base import FittedPredictor, Predictor, pooled


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
        task, (_, targets, _) = environments.task, pooled(environments)
        if isinstance(task, Regression):
            return _ConstantPredictor(targets.double().mean().float())
        if isinstance(task, Binary):
            return _ConstantPredictor(torch.logit(targets.double().mean(), eps=1e-6).float())
        shares = torch.bincount(targets.long(), minlength=task.outputs).double() / len(targets)
        return _ConstantPredictor(shares.clamp(min=1e-6).log().float())


@final
@dataclass(frozen=True, eq=False)
class _ConstantPredictor(FittedPredictor):
    value: Tensor
    iterations: int = 1

    def logits(self, inputs: Tensor) -> Tensor:
        return self.value.to(inputs.device).expand(len(inputs), *self.value.shape)
