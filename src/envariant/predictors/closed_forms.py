"""Closed-form estimators as predictors with names, whose fits are stored as linear models."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
from numpy.typing import NDArray

from envariant import closed_forms
from envariant.core.environments import EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Regression, Task
from envariant.predictors.base import LIMIT, FittedPredictor, Predictor
from envariant.predictors.linear import FittedLinear
from envariant.predictors.scikit_learn import FittedEstimator, fit_estimator

# Names of the regressor and of the classifier of each method; "" if there is no classifier.
_ESTIMATORS = {
    "anchor-regression": ("AnchorRegressor", "AnchorClassifier"),
    "causal-dantzig": ("CausalDantzig", ""),
    "drig": ("DRIGRegressor", ""),
    "icp": ("InvariantCausalPrediction", "InvariantCausalClassifier"),
    "tsls": ("KClassRegressor", ""),
}


@final
@dataclass(frozen=True)
class ClosedForm(Predictor):
    """Closed-form estimator with its default settings, fitted to the encoded inputs of a table.

    For other settings, pass the estimator itself: `AnchorRegressor(gamma=20)` instead of "anchor-regression".

    Attributes:
        name: "anchor-regression", "causal-dantzig", "drig", "icp" or "tsls".
    """

    minimum_environments: ClassVar[int] = 2

    name: str

    def fit(self, environments: EnvironmentSet, seed: int) -> FittedPredictor:
        if problem := self.unsuitable(environments.task):
            raise EnvariantError(
                f"{self.name}: {problem}, but '{environments.label}' has classes; use anchor-regression"
            )
        regressor, classifier = _ESTIMATORS[self.name]
        chosen = regressor if isinstance(environments.task, Regression) else classifier
        fitted = fit_estimator(self.name, getattr(closed_forms, chosen)(), environments)
        if not isinstance(fitted, FittedEstimator):
            return fitted
        return _linear(fitted.estimator, environments.task, fitted.classes)

    def unsuitable(self, task: Task) -> str:
        if isinstance(task, Regression):
            return ""
        if not _ESTIMATORS[self.name][1]:
            return "needs numeric targets"
        return "needs numeric targets or two classes" if self.name == "icp" and task.outputs > 2 else ""


def _linear(estimator: Any, task: Task, classes: tuple[int, ...]) -> FittedLinear:
    """Convert a fitted linear estimator to a linear model of the task's logits."""
    coefficients: NDArray[np.float64] = np.atleast_2d(estimator.coef_).T
    intercepts: NDArray[np.float64] = np.atleast_1d(estimator.intercept_)
    if task.outputs == 1:
        return FittedLinear(torch.tensor(coefficients), torch.tensor(intercepts))
    if len(classes) == 2:
        coefficients = np.hstack([-coefficients, coefficients]) / 2
        intercepts = np.array([-intercepts[0], intercepts[0]]) / 2
    weight, bias = np.zeros((len(coefficients), task.outputs)), np.full(task.outputs, -LIMIT)
    weight[:, classes], bias[list(classes)] = coefficients, intercepts
    return FittedLinear(torch.tensor(weight), torch.tensor(bias))
