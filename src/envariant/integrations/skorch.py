"""Mixin for the networks of skorch: objectives as criterion, and batches with rows of every environment.

Nothing is imported from skorch until training: the network of skorch is the other base class of your class.
"""

from abc import ABC
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from sklearn.base import is_classifier
from torch import Tensor

from envariant.core.errors import EnvariantError, shown
from envariant.integrations.data_loader import EnvironmentDataLoader
from envariant.integrations.requirement import required
from envariant.integrations.step_loss import recorded_features, step_loss
from envariant.objectives import EnvironmentSampler, objective
from envariant.objectives.tasks import targets_for, task_of

_ENVIRONMENTS = "environments"


class ObjectiveMixin(ABC):
    """Mixin that makes a network of skorch minimize an objective.

    Name it before the network: `class InvariantNet(ObjectiveMixin, NeuralNetClassifier)`. The inputs are a
    mapping from the names of the module's arguments to arrays, such as `{"input": rows, "environments":
    numbers}`. The environments are not passed to the module, and predictions do not need them. The module
    returns logits, and a classifier's `predict_proba` returns probabilities. The validation loss is the mean
    loss of all rows. With skorch's callbacks `Checkpoint` and `LoadInitState`, training resumes with the next
    epoch.

    Args:
        module: Module of the network.
        criterion: Function that builds the objective. Its arguments start with `criterion__`, as in
            `criterion__algorithm="vrex"`.
        batch_size: Number of rows per batch, divided equally among the environments and rounded down; −1 for
            as many rows as the data have.
        head: Name of the module's last layer, whose inputs are the features. Default: the `torch.nn.Linear`
            that the module lists last.
        batch_seed: Random seed of the batches.
        options: Other arguments of the network.

    Example:
        >>> from skorch import NeuralNetClassifier  # doctest: +SKIP
        >>> class InvariantNet(ObjectiveMixin, NeuralNetClassifier): ...  # doctest: +SKIP
        >>> net = InvariantNet(module, criterion__algorithm="vrex(coefficient=10)")  # doctest: +SKIP
        >>> net.fit({"input": inputs, "environments": numbers}, targets)  # doctest: +SKIP
    """

    # Attributes of the network.
    module_: Any
    criterion_: Any
    device: Any
    history: Any
    iterator_train: Any
    predict_nonlinearity: Any
    _set_training: Callable[[bool], None]
    get_params_for: Callable[[str], dict[str, Any]]

    def __init__(
        self,
        module: Any,
        *,
        criterion: Any = objective,
        batch_size: int = 128,
        head: str | None = None,
        batch_seed: int = 0,
        **options: Any,
    ) -> None:
        cast("Any", super()).__init__(module, criterion=criterion, batch_size=batch_size, **options)
        self.batch_size, self.head, self.batch_seed = batch_size, head, batch_seed

    def infer(self, x: Any, **fit_params: Any) -> Any:
        """Return the outputs of the module.

        Args:
            x: Inputs of a batch by name of the module's argument, with or without environments.
            fit_params: Other arguments of the module.
        """
        if isinstance(x, Mapping):
            named = cast("Mapping[str, Any]", x)
            x = {name: value for name, value in named.items() if name != _ENVIRONMENTS}
        return cast("Any", super()).infer(x, **fit_params)

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Compute the loss and the gradients of a batch.

        Args:
            batch: Inputs and targets.
            fit_params: Other arguments of the module.

        Returns:
            Mapping with the loss and the logits.
        """
        self._set_training(True)
        inputs, targets = batch
        with recorded_features(self.criterion_, self.module_, self.head) as features:
            logits = self.infer(inputs, **fit_params)
        loss = step_loss(
            self.criterion_,
            self.module_,
            logits,
            torch.as_tensor(targets).to(self.device),
            inputs[_ENVIRONMENTS],
            features=features.values,
        )
        loss.backward()
        return {"loss": loss, "y_pred": logits}

    def get_loss(self, y_pred: Tensor, y_true: Any, *_: Any, **__: Any) -> Tensor:
        """Return the mean loss of validation rows, whose environments may be unknown.

        Args:
            y_pred: Logits.
            y_true: Targets.
        """
        targets = torch.as_tensor(y_true).to(y_pred.device)
        task = task_of(y_pred, targets, self.get_params_for("criterion").get("loss"))
        return task.losses(task.logits(y_pred), targets_for(task, targets, y_pred)).mean()

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        """Return the batches of a data set; in training, each has rows of every environment.

        Args:
            dataset: Data set of the network.
            training: Whether the batches are used for training.

        Raises:
            EnvariantError: If the training data have no environments, or they are not whole numbers.
        """
        if not training:
            return cast("Any", super()).get_iterator(dataset, training=False)
        numbers = _environments_of(dataset)
        rows = len(numbers) if self.batch_size == -1 else self.batch_size
        count = len(np.unique(numbers))
        if rows < count:
            raise EnvariantError(
                f"batch_size must be at least the number of training environments, {count}; got {rows}"
            )
        sampler = EnvironmentSampler(numbers, rows // count, seed=self.batch_seed)
        # An epoch that was loaded from a checkpoint is not trained again.
        sampler.set_epoch(len(self.history))
        replaced = ("batch_size", "shuffle", "drop_last", "sampler", "batch_sampler")
        options = {k: v for k, v in self.get_params_for("iterator_train").items() if k not in replaced}
        return EnvironmentDataLoader(dataset, sampler, **options)

    def _get_predict_nonlinearity(self) -> Any:
        if self.predict_nonlinearity == "auto" and is_classifier(self):
            return _probabilities
        return cast("Any", super())._get_predict_nonlinearity()


def _environments_of(dataset: Any) -> Any:
    """Return the environment numbers of a data set of skorch, or of a subset of it."""
    inputs, _ = required("skorch.utils", "skorch").data_from_dataset(dataset)
    if not isinstance(inputs, Mapping) or _ENVIRONMENTS not in inputs:
        raise EnvariantError(
            f"fit: the inputs must be a mapping with the key '{_ENVIRONMENTS}', such as {{'input': X, "
            f"'{_ENVIRONMENTS}': numbers}}; got {shown(type(inputs).__name__)}"
        )
    numbers = np.asarray(cast("Mapping[str, Any]", inputs)[_ENVIRONMENTS])
    if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer):
        raise EnvariantError(
            f"fit: {_ENVIRONMENTS} must be whole numbers, one per row; got {numbers.dtype} of shape "
            f"{numbers.shape} (numpy.unique(labels, return_inverse=True) numbers labels)"
        )
    return numbers


def _probabilities(logits: Tensor) -> Tensor:
    """Return the probability of each class, `[rows, classes]`."""
    if logits.dim() == 2 and logits.shape[1] > 1:
        return logits.softmax(dim=-1)
    positive = logits.reshape(-1).sigmoid()
    return torch.stack([1 - positive, positive], dim=1)
