"""Adapter that turns any estimator with `fit` and `predict` into a predictor (scikit-learn, XGBoost, …)."""

import copy
import inspect
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, final

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from envariant.core.environments import EnvironmentSet
from envariant.core.errors import EnvariantError, EnvariantWarning, first_line
from envariant.core.tasks import Regression, Task
from envariant.predictors import estimator_store
from envariant.predictors.base import (
    Description,
    FittedPredictor,
    Predictor,
    Tensors,
    classes_of,
    pooled,
    task_logits,
)
from envariant.predictors.majority_class import FittedConstant
from envariant.predictors.trees import FittedTrees

# Regressors for counts and other positive targets, which cannot be standardized.
_POSITIVE = ("PoissonRegressor", "GammaRegressor", "TweedieRegressor")
_POSITIVE_LOSSES = ("poisson", "gamma", "count:poisson", "reg:gamma", "Poisson")
_ENVIRONMENTS = ("environments", "environment", "groups", "sample_domain")
# Probability of the predicted class if an estimator reports no probabilities.
_CERTAINTY = 0.95
# Seeds of other packages are signed 32-bit integers.
_LARGEST_SEED = 2**31


@final
@dataclass(frozen=True, eq=False)
class ScikitLearn(Predictor):
    """Estimator with `fit` and `predict`, fitted to the pooled rows of the training environments.

    `random_state` is set to the seed of the fit. If the estimator's `fit` has a parameter `environments`,
    `environment`, `groups` or `sample_domain`, it receives the environment number of each row, counted from
    1. If `fit` has a parameter `sample_weight`, it receives the sample weights. In a pipeline, the last step
    receives both, and earlier steps receive `environments`.

    Attributes:
        estimator: Unfitted classifier or regressor; each fit uses a copy.
        name: Name shown in tables. Default: class name of the estimator.
        raw_columns: Whether the estimator is fitted to a data frame with the raw columns of the table,
            instead of encoded inputs. Default: only if the estimator contains a `ColumnTransformer`. In the
            data frame, missing numbers are NaN, categories and free text are text, and dates are datetime64
            values.
    """

    estimator: Any
    name: str = ""
    raw_columns: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or type(self.estimator).__name__)

    def __str__(self) -> str:
        return self.name

    def fit(self, environments: EnvironmentSet, seed: int) -> FittedPredictor:
        with _errors_with_name(self.name):
            estimator = _seeded(copy.deepcopy(self.estimator), seed)
        raw = _has_column_transformer(estimator) if self.raw_columns is None else self.raw_columns
        return fit_estimator(self.name, estimator, environments, raw_columns=raw)


@final
@dataclass(frozen=True, eq=False)
class FittedEstimator(FittedPredictor):
    """Fitted scikit-learn estimator whose outputs are converted to logits.

    Attributes:
        name: Name of the predictor, for error messages.
        task: Prediction task.
        classes: Indices of the classes with training rows, in the estimator's order; empty for regression.
        estimator: Fitted estimator.
        iterations: Number of boosting rounds or solver iterations; 1 if the estimator does not report it.
        frame_columns: Names of the columns in the training data frame; empty for encoded inputs.
        columns: Names of the columns of the training data frame that the estimator uses.
        in_unit: Whether the estimator predicts targets in their original unit instead of standardized
            targets. This is the case for losses that require positive targets, such as counts.
    """

    kind: ClassVar[str] = "estimator"

    name: str
    task: Task
    classes: tuple[int, ...]
    estimator: Any = field(repr=False)
    iterations: int = 1
    frame_columns: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    in_unit: bool = False

    def logits(self, inputs: Tensor, columns: pd.DataFrame | None = None) -> Tensor:
        rows: Any = inputs.flatten(1).cpu().numpy()
        if self.columns:
            assert columns is not None
            rows = columns.reindex(columns=list(self.frame_columns))
        if not len(rows):
            return torch.zeros(0, *self.task.logits_shape)
        with _errors_with_name(self.name):
            scores = self._scores(rows)
            return task_logits(self.task, scores, self.classes).to(inputs.device)

    def _scores(self, rows: Any) -> NDArray[np.float64]:
        """Return log-odds (two classes) or predictions, `[rows]`, or class scores, `[rows, classes]`."""
        if isinstance(self.task, Regression):
            predicted = np.asarray(self.estimator.predict(rows), dtype=np.float64)
            return (predicted - self.task.center) / self.task.scale if self.in_unit else predicted
        if hasattr(self.estimator, "predict_proba") and not hasattr(self.estimator, "_raw_predict"):
            with np.errstate(divide="ignore"):
                logs = np.log(np.asarray(self.estimator.predict_proba(rows), dtype=np.float64))
            if logs.shape != (len(rows), len(self.classes)):
                raise ValueError(
                    f"predict_proba returns the shape {logs.shape} for {len(self.classes)} classes"
                )
            return logs[:, 1] - logs[:, 0] if logs.shape[1] == 2 else logs
        if hasattr(self.estimator, "decision_function"):
            return np.asarray(self.estimator.decision_function(rows), dtype=np.float64)
        predicted = np.asarray(self.estimator.predict(rows)).reshape(len(rows), 1) == np.arange(
            len(self.classes)
        )
        logs = np.log(np.where(predicted, _CERTAINTY, (1 - _CERTAINTY) / (len(self.classes) - 1)))
        return logs[:, 1] - logs[:, 0] if logs.shape[1] == 2 else logs

    @property
    def rows_are_independent(self) -> bool:
        # Histogram gradient boosting, which takes milliseconds per call.
        return hasattr(self.estimator, "_predictors") and not self.columns

    def stored_form(self) -> FittedPredictor:
        trees = self.rows_are_independent and not self.in_unit
        if trees and not np.any(self.estimator.is_categorical_):
            return FittedTrees.of(self.task, self.classes, self.estimator)
        return self

    def store(self) -> tuple[Description, Tensors]:
        facts = {
            "name": self.name,
            "classes": list(self.classes),
            "frame_columns": list(self.frame_columns),
            "columns": list(self.columns),
            "in_unit": self.in_unit,
        }
        return facts, {"estimator": estimator_store.dump(self.name, self.estimator)}

    @classmethod
    def restore(
        cls, description: Description, tensors: Tensors, task: Task, width: int, trusted: Sequence[str] = ()
    ) -> Self:
        texts = [description["name"], *description["frame_columns"], *description["columns"]]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("names must be text")
        return cls(
            description["name"],
            task,
            classes_of(description, task),
            estimator_store.load(tensors["estimator"], trusted),
            frame_columns=tuple(description["frame_columns"]),
            columns=tuple(description["columns"]),
            in_unit=bool(description.get("in_unit")),
        )


def fit_estimator(
    name: str, estimator: Any, environments: EnvironmentSet, *, raw_columns: bool = False
) -> FittedPredictor:
    """Fit an estimator to the pooled rows of environments.

    Args:
        name: Name of the predictor, for error messages.
        estimator: Unfitted estimator; it is fitted in place.
        environments: Training environments.
        raw_columns: Whether to fit the estimator to the raw columns of the table instead of encoded inputs.

    Raises:
        EnvariantError: If the estimator rejects the data.

    Warns:
        EnvariantWarning: If there are sample weights that the estimator cannot use.
    """
    task, (inputs, targets, weights) = environments.task, pooled(environments)
    y, classes = targets.numpy(), ()
    if not isinstance(task, Regression):
        if _is_regressor(estimator):
            raise EnvariantError(f"{name}: is a regressor, but the target has classes; use a classifier")
        # Estimators such as XGBoost's need classes numbered without gaps.
        present, y = np.unique(y.astype(np.int64), return_inverse=True)
        classes = tuple(present.tolist())
        if len(classes) == 1:
            return FittedConstant(task_logits(task, np.zeros((1, 1)), classes)[0])
    in_unit = isinstance(task, Regression) and _needs_unit(estimator)
    if isinstance(task, Regression) and in_unit:
        # Rounding removes the error of standardizing in float32, which would make a 0 negative.
        y = np.round(y.astype(np.float64) * task.scale + task.center, 5 - int(np.log10(task.scale)))
    rows: Any = _frame(name, environments) if raw_columns else inputs.numpy()
    options: dict[str, Any] = {}
    sizes = [len(each) for each in environments.environments]
    for key in _environment_parameters(estimator):
        options[key] = np.repeat(np.arange(1, len(sizes) + 1), sizes)
    if weights is not None and (key := _fit_parameter(estimator, ("sample_weight",))):
        options[key] = weights.numpy()
    elif weights is not None:
        warnings.warn(
            f"{name}: takes no sample weights, so all rows count equally", EnvariantWarning, stacklevel=3
        )
    with _errors_with_name(name):
        # Not all estimators return themselves.
        estimator.fit(rows, y, **options)
    iterations = getattr(estimator, "n_iter_", None)
    count = 1 if iterations is None else max(1, int(np.max(iterations)))
    columns = tuple(rows.columns) if raw_columns else ()
    return FittedEstimator(name, task, classes, estimator, count, columns, _used(estimator, columns), in_unit)


@contextmanager
def _errors_with_name(name: str) -> Generator[None]:
    """Convert errors of an estimator to one-line errors with the estimator's name."""
    try:
        with warnings.catch_warnings():
            # Pooled rows are arrays without column names, although some estimators were fitted with names.
            warnings.filterwarnings("ignore", ".*does not have valid feature names", UserWarning)
            yield
    except EnvariantError:
        raise
    # A user's class can raise anything.
    except Exception as error:
        kind = "" if isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: "
        raise EnvariantError(f"{name}: {kind}{first_line(error)}") from None


def _seeded(estimator: Any, seed: int) -> Any:
    """Set every `random_state` parameter in an estimator and its parts; return the estimator."""
    small = seed % _LARGEST_SEED
    own = seed if type(estimator).__module__.startswith("sklearn.") else small
    if hasattr(estimator, "get_params"):
        keys = [key for key in estimator.get_params() if key.split("__")[-1] == "random_state"]
        # Parts of other packages may be in a pipeline of scikit-learn.
        estimator.set_params(**{key: own if key == "random_state" else small for key in keys})
    elif hasattr(estimator, "random_state"):
        estimator.random_state = own
    return estimator


def _fit_parameter(estimator: Any, names: Sequence[str]) -> str:
    """Return the first of `names` that is a parameter of the estimator's `fit`; "" if none is."""
    if steps := getattr(estimator, "steps", None):
        name, last = steps[-1]
        key = _fit_parameter(last, names)
        return f"{name}__{key}" if key else ""
    try:
        parameters = inspect.signature(estimator.fit).parameters
    except (TypeError, ValueError):
        return ""
    if known := next((name for name in names if name in parameters), ""):
        return known
    # A parameter search passes parameters on, and needs groups if its splitter does.
    if "groups" in names and "Group" in type(getattr(estimator, "cv", None)).__name__:
        return "groups"
    passes_on = any(each.kind == inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    inner = getattr(estimator, "estimator", None)
    return _fit_parameter(inner, names) if passes_on and hasattr(inner, "fit") else ""


def _environment_parameters(estimator: Any) -> list[str]:
    """Return the parameters of `fit` that receive environments; in a pipeline, those of every step."""
    last = _fit_parameter(estimator, _ENVIRONMENTS)
    steps: Any = getattr(estimator, "steps", None) or ()
    # Transformers such as LEACE: only a parameter named `environments` is certain to mean environments.
    before = [f"{name}__environments" for name, step in steps[:-1] if _fit_parameter(step, _ENVIRONMENTS[:1])]
    return [*before, *([last] if last else [])]


def _needs_unit(estimator: Any) -> bool:
    """Return whether an estimator, or the last step of a pipeline, has a loss for positive targets."""
    while steps := getattr(estimator, "steps", None):
        estimator = steps[-1][1]
    losses = (getattr(estimator, key, None) for key in ("loss", "objective", "loss_function"))
    return type(estimator).__name__ in _POSITIVE or any(
        isinstance(loss, str) and loss in _POSITIVE_LOSSES for loss in losses
    )


def _is_regressor(estimator: Any) -> bool:
    if hasattr(estimator, "predict_proba") or hasattr(estimator, "decision_function"):
        return False
    from sklearn.base import is_regressor

    try:
        return bool(is_regressor(estimator))
    except (AttributeError, TypeError):
        return False


def _has_column_transformer(estimator: Any) -> bool:
    """Return whether an estimator contains a `ColumnTransformer`."""
    from sklearn.compose import ColumnTransformer

    parts = estimator.get_params().values() if hasattr(estimator, "get_params") else ()
    return any(isinstance(part, ColumnTransformer) for part in (estimator, *parts))


def _frame(name: str, environments: EnvironmentSet) -> pd.DataFrame:
    """Return the raw columns of all rows as a data frame."""
    frames = [each.input_store.frame() for each in environments.environments]
    known = [frame for frame in frames if frame is not None]
    if len(known) < len(frames):
        raise EnvariantError(
            f"{name}: chooses columns by name, but '{environments.label}' is not a table; pass a table"
        )
    return pd.concat(known, ignore_index=True)


def _used(estimator: Any, columns: tuple[str, ...]) -> tuple[str, ...]:
    """Return the columns that a fitted estimator uses; all columns if this is unknown."""
    while steps := getattr(estimator, "steps", None):
        estimator = steps[0][1]
    indices: Any = getattr(estimator, "_transformer_to_input_indices", None)
    if not indices:
        return columns
    dropped = {name for name, transformer, _ in estimator.transformers_ if transformer == "drop"}
    used = {int(k) for name, own in indices.items() if name not in dropped for k in own}
    return tuple(name for k, name in enumerate(columns) if k in used)
