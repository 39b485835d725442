"""Adapter that makes any scikit-learn estimator a predictor."""

import copy
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from envariant.core.environments import EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Regression, Task
from envariant.predictors.base import (
    FittedPredictor,
    Predictor,
    pooled,
    task_logits,
)
from envariant.predictors.majority_class import FittedConstant
from envariant.predictors.trees import FittedTrees


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
        name: Name of the predictor, for error messages.
        task: Prediction task.
        classes: Classes with training rows, in the order of the estimator's classes; empty for regression.
        estimator: Fitted estimator.
        iterations: Number of boosting rounds or solver iterations; 1 if the estimator does not report it.
    """

    kind: ClassVar[str] = "estimator"

    name: str
    task: Task
    classes: tuple[int, ...]
    estimator: Any = field(repr=False)
    iterations: int = 1

    def logits(self, inputs: Tensor, columns: Any = None) -> Tensor:
        del columns
        scores = self._scores(inputs.flatten(1).cpu().numpy())
        return task_logits(self.task, scores, self.classes).to(inputs.device)

    def _scores(self, rows: Any) -> NDArray[np.float64]:
        """Return log-odds `[rows]` for two classes, class scores `[rows, classes]`, or predicted targets."""
        if isinstance(self.task, Regression):
            return np.asarray(self.estimator.predict(rows), dtype=np.float64)
        if hasattr(self.estimator, "predict_proba") and not hasattr(self.estimator, "_raw_predict"):
            with np.errstate(divide="ignore"):
                logs = np.log(self.estimator.predict_proba(rows))
            return logs[:, 1] - logs[:, 0] if logs.shape[1] == 2 else logs
        return self.estimator.decision_function(rows)

    def stored_form(self) -> FittedPredictor:
        if hasattr(self.estimator, "_predictors") and not np.any(self.estimator.is_categorical_):
            return FittedTrees.of(self.task, self.classes, self.estimator)
        return self


def fit_estimator(name: str, estimator: Any, environments: EnvironmentSet) -> FittedPredictor:
    """Fit a scikit-learn estimator to the pooled rows of environments.

    Args:
        name: Name of the predictor, for error messages.
        estimator: Unfitted estimator; it is fitted in place.
        environments: Training environments.

    Raises:
        EnvariantError: If the estimator rejects the data.
    """
    task, (inputs, targets, weights) = environments.task, pooled(environments)
    y, classes = targets.numpy(), ()
    if not isinstance(task, Regression):
        # Estimators such as XGBoost's need classes numbered without gaps.
        present, y = np.unique(y.astype(np.int64), return_inverse=True)
        classes = tuple(present.tolist())
        if len(classes) == 1:
            return FittedConstant(task_logits(task, np.zeros((1, 1)), classes)[0])
    options = {} if weights is None else {"sample_weight": weights.numpy()}
    try:
        estimator.fit(inputs.numpy(), y, **options)
    except (ValueError, TypeError) as error:
        raise EnvariantError(f"{name}: {str(error).splitlines()[0]}") from None
    iterations = getattr(estimator, "n_iter_", None)
    count = 1 if iterations is None else max(1, int(np.max(iterations)))
    return FittedEstimator(name, task, classes, estimator, count)
