"""Adapter that makes any scikit-learn estimator a predictor."""

import copy
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envariant.core.environments import EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Binary, Regression, Task
from envariant.predictors.base import FittedPredictor, Predictor, pooled

# Log-odds beyond which a probability is 0 or 1 in float32.
_LIMIT = 15.0


@final
@dataclass(frozen=True, eq=False)
class ScikitLearn(Predictor):
    """Scikit-learn estimator, fitted to the pooled rows of the training environments.

    Attributes:
        estimator: Unfitted classifier or regressor; each fit uses a copy.
        name: Name shown in tables. Default: class name of the estimator.
    """

    estimator: Any
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or type(self.estimator).__name__)

    def __str__(self) -> str:
        return self.name

    def fit(self, environments: EnvironmentSet, seed: int) -> FittedPredictor:
        estimator = copy.deepcopy(self.estimator)
        if "random_state" in estimator.get_params():
            estimator.set_params(random_state=seed)
        return fit_estimator(self.name, estimator, environments)


@final
@dataclass(frozen=True, eq=False)
class FittedEstimator(FittedPredictor):
    """Fitted scikit-learn estimator with logits as outputs.

    Attributes:
        task: Prediction task.
        estimator: Fitted estimator.
        iterations: Number of boosting rounds or solver iterations; 1 if the estimator does not report it.
    """

    task: Task
    estimator: Any
    iterations: int

    def logits(self, inputs: Tensor) -> Tensor:
        task, rows = self.task, inputs.flatten(1).cpu().numpy()
        if isinstance(task, Regression):
            return torch.from_numpy(np.asarray(self.estimator.predict(rows))).float()
        classes = self.estimator.classes_.astype(int)
        # Classes without training rows have the lowest logit.
        logits = np.full((len(rows), task.outputs), -_LIMIT)
        if len(classes) == 1:
            binary = isinstance(task, Binary)
            logits[:, 0 if binary else classes[0]] = -_LIMIT if binary and not classes[0] else _LIMIT
            return task.logits(torch.from_numpy(logits).float())
        scores = np.clip(self._scores(rows), -_LIMIT, _LIMIT)
        if isinstance(task, Binary):
            return torch.from_numpy(scores).float()
        if len(classes) == 2:
            logits[:, classes[0]], logits[:, classes[1]] = -scores / 2, scores / 2
        else:
            logits[:, classes] = scores
        return torch.from_numpy(logits).float()

    def _scores(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """Return log-odds `[rows]` for two classes, or class scores `[rows, classes]` for more classes."""
        if hasattr(self.estimator, "predict_proba") and not hasattr(self.estimator, "_raw_predict"):
            with np.errstate(divide="ignore"):
                logs = np.log(self.estimator.predict_proba(rows))
            return logs[:, 1] - logs[:, 0] if logs.shape[1] == 2 else logs
        return self.estimator.decision_function(rows)


def fit_estimator(name: str, estimator: Any, environments: EnvironmentSet) -> FittedEstimator:
    """Fit a scikit-learn estimator to the pooled rows of environments.

    Args:
        name: Name of the predictor, for error messages.
        estimator: Unfitted estimator; it is fitted in place.
        environments: Training environments.

    Raises:
        EnvariantError: If the estimator rejects the data.
    """
    inputs, targets, weights = pooled(environments)
    try:
        if weights is None:
            estimator.fit(inputs.numpy(), targets.numpy())
        else:
            estimator.fit(inputs.numpy(), targets.numpy(), sample_weight=weights.numpy())
    except (ValueError, TypeError) as error:
        raise EnvariantError(f"{name}: {str(error).splitlines()[0]}") from None
    iterations = getattr(estimator, "n_iter_", None)
    count = 1 if iterations is None else max(1, int(np.max(iterations)))
    return FittedEstimator(environments.task, estimator, count)
