"""Abstract base classes of predictors that are fitted in one call, without gradient steps."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self, final

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor

from envariant.core.attributes import training_weights
from envariant.core.environments import ROW_GROUP, EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Regression, Task

if TYPE_CHECKING:
    import pandas as pd

LIMIT = 15.0
"""Log-odds beyond which a probability is 0 or 1 in float32."""

Description = Mapping[str, Any]
"""JSON-compatible description of a fitted predictor."""

Tensors = Mapping[str, Tensor]
"""Arrays of a fitted predictor, by name."""


@final
class UntrustedTypes(Exception):  # noqa: N818
    """Error raised if a stored predictor refers to untrusted classes or functions."""


class FittedPredictor(ABC):
    """Base class of fitted predictors.

    Attributes:
        iterations: Number of iterations or trees; 1 if the fit has no iterations.
        kind: Name of the storage format in saved models; "" if the predictor cannot be saved.
        columns: Names of the raw table columns that `logits` needs; empty if it needs encoded inputs only.
    """

    kind: ClassVar[str] = ""
    iterations: int
    columns: tuple[str, ...] = ()

    @property
    def rows_are_independent(self) -> bool:
        """Whether a row's logits are known not to depend on the other rows in the same call."""
        return False

    @abstractmethod
    def logits(
        self, inputs: Float[Tensor, "rows *input_shape"], columns: "pd.DataFrame | None" = None
    ) -> Float[Tensor, "rows *c"]:
        """Return logits, `[rows]` or `[rows, classes]`; for regression, predicted targets, `[rows]`.

        Args:
            inputs: Inputs, `[rows, *input_shape]`, encoded as in training.
            columns: Raw columns of the same rows, at least those in `self.columns`; None if `self.columns` is
                empty.
        """

    def note(self, names: Sequence[str]) -> str:
        """Return a remark on the fit, such as which inputs were omitted; "" if there is none.

        Args:
            names: Names of the inputs.
        """
        del names
        return ""

    def stored_form(self) -> "FittedPredictor":
        """Return the predictor to write to saved models instead of this one. Default: this predictor."""
        return self

    def store(self) -> tuple[Description, Tensors]:
        """Return a description and arrays, from which `restore` rebuilds the predictor.

        Raises:
            EnvariantError: If the predictor cannot be saved.
        """
        raise EnvariantError(
            f"{type(self).__name__}: cannot be saved; define kind, store and restore, or use a predictor of "
            f"the library or a scikit-learn estimator"
        )

    @classmethod
    def restore(
        cls, description: Description, tensors: Tensors, task: Task, width: int, trusted: Sequence[str] = ()
    ) -> Self:
        """Rebuild the predictor from the output of `store`, which may come from an untrusted file.

        Args:
            description: Description returned by `store`.
            tensors: Arrays returned by `store`, by name.
            task: Prediction task.
            width: Number of encoded inputs per row.
            trusted: Full names of classes and functions that the content may refer to.

        Raises:
            ValueError: If the content is not valid.
            UntrustedTypes: If the content refers to a class or function that is not trusted.
        """
        raise NotImplementedError


class Predictor(ABC):
    """Base class of predictors, which are fitted to the training environments in one call.

    Attributes:
        name: Name shown in tables; unique in a study.
        minimum_environments: Smallest number of training environments.
    """

    name: str
    minimum_environments: ClassVar[int] = 1

    @abstractmethod
    def fit(self, environments: EnvironmentSet, seed: int) -> FittedPredictor:
        """Fit the predictor to the training environments.

        Args:
            environments: Training environments only.
            seed: Random seed of the fit.

        Raises:
            EnvariantError: If the predictor cannot be fitted to the data.
        """

    def unsuitable(self, task: Task) -> str:
        """Return why the predictor cannot be fitted to a task, such as "needs numeric targets"; "" if it can.

        Args:
            task: Prediction task.
        """
        del task
        return ""


def pooled(
    environments: EnvironmentSet,
) -> tuple[Shaped[Tensor, "rows width"], Shaped[Tensor, " rows"], Float[Tensor, " rows"] | None]:
    """Concatenate the inputs, targets and sample weights of all environments.

    Args:
        environments: Environments with equal input shapes.

    Returns:
        Flattened inputs, `[rows, width]`; targets, `[rows]`; weights, `[rows]`, or None if there are none.
    """
    rows: list[tuple[Tensor, Tensor]] = [environment.rows() for environment in environments.environments]
    inputs, targets = (torch.cat(parts) for parts in zip(*rows, strict=True))
    parts = [training_weights(environment.attributes) for environment in environments.environments]
    weights = [part for part in parts if part is not None]
    return inputs.flatten(1), targets, torch.cat(weights) if weights else None


def numbers_of(tensors: Tensors, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a stored array after checking its type, shape and values.

    Args:
        tensors: Stored arrays by name.
        name: Name of the array to return.
        shape: Required shape.
        dtype: Required type.

    Raises:
        ValueError: If the array is missing, has another type or shape, or is not finite.
    """
    value = tensors.get(name)
    if value is None or value.dtype != dtype or tuple(value.shape) != tuple(shape):
        raise ValueError(f"the array '{name}' must be {dtype} of shape {tuple(shape)}")
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"the array '{name}' must be finite numbers")
    return value


def classes_of(description: Description, task: Task) -> tuple[int, ...]:
    """Check the stored classes of a fitted predictor, and return them; empty for regression.

    Raises:
        ValueError: If the stored classes are not increasing class indices of the task.
    """
    classes: list[int] = description["classes"]
    number = 0 if isinstance(task, Regression) else max(2, task.outputs)
    if not all(type(k) is int and 0 <= k < number for k in classes) or sorted(set(classes)) != classes:
        raise ValueError("classes: must be increasing class numbers of the task")
    if number and len(classes) < 2:
        raise ValueError("classes: must be at least two")
    return tuple(classes)


def task_logits(task: Task, scores: NDArray[np.float64], classes: Sequence[int]) -> Tensor:
    """Convert a predictor's scores to logits of the task, in float32.

    Classes without training rows get a very low logit.

    Args:
        task: Prediction task.
        scores: Log-odds of the second class, `[rows]` or `[rows, 1]`; class scores, `[rows, classes]`; or
            predicted targets for regression, `[rows]`.
        classes: Indices of the classes with training rows, in increasing order.
    """
    if isinstance(task, Regression):
        return torch.from_numpy(np.asarray(scores, dtype=np.float64).reshape(len(scores))).float()
    bounded = np.clip(np.asarray(scores, dtype=np.float64).reshape(len(scores), -1), -LIMIT, LIMIT)
    # Classes without training rows have the lowest logit.
    logits = np.full((len(bounded), max(2, task.outputs)), -LIMIT)
    if len(classes) == 1:
        logits[:, classes[0]] = LIMIT
    elif task.outputs == 1:
        return torch.from_numpy(bounded[:, 0]).float()
    elif len(classes) == 2:
        half = bounded[:, 0] / 2 if bounded.shape[1] == 1 else (bounded[:, 1] - bounded[:, 0]) / 2
        logits[:, classes[0]], logits[:, classes[1]] = -half, half
    else:
        logits[:, list(classes)] = bounded
    if task.outputs > 1:
        return torch.from_numpy(logits).float()
    return torch.from_numpy((logits[:, 1] - logits[:, 0]) / 2).float()


def row_groups(environments: EnvironmentSet) -> NDArray[np.int64] | None:
    """Return the group index of each row of all environments, `[rows]`; None if there are no groups."""
    attributes: list[Any] = [environment.attributes for environment in environments.environments]
    if ROW_GROUP not in attributes[0]:
        return None
    return torch.cat([each[ROW_GROUP] for each in attributes]).numpy()
