"""Scikit-learn estimators for tables with rows from several environments.

Fitted estimators can be cloned, pickled and used in parameter searches like any scikit-learn estimator.
"""

import copy
import secrets
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self, cast, final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted
from torch import nn

from envariant import algorithms
from envariant.algorithms import EIIL, Algorithm, Composition, Part, Recipe, TrainContext
from envariant.core.conversion import text_of, warn_of_look_alikes
from envariant.core.counter_rng import private_random_numbers
from envariant.core.environments import EnvironmentSet
from envariant.core.errors import EnvariantError, EnvariantWarning, shown
from envariant.core.estimator_inputs import (
    errors_in_one_line,
    mean_and_scale,
    plain_targets,
    split_environments,
    validated,
)
from envariant.core.losses import Loss
from envariant.core.multi_target import task_named
from envariant.core.tasks import Binary, Multiclass, Regression, Task
from envariant.data.with_loss import with_loss
from envariant.training.estimator_options import complete, defaults, list_options, run_options
from envariant.training.evaluator import Evaluator
from envariant.training.model_builder import model_builder
from envariant.training.result import TrainingResult
from envariant.training.run_config import built
from envariant.training.schedule_notes import SCALED
from envariant.training.train import train


class InvariantEstimator(BaseEstimator, ABC):
    """Base class of `InvariantClassifier` and `InvariantRegressor`."""

    # Request for scikit-learn's metadata routing: pass `environments` to `fit`.
    __metadata_request__fit = {"environments": True}  # noqa: RUF012  # pyright: ignore[reportUnusedVariable]

    mean_: NDArray[np.float64]
    scale_: NDArray[np.float64]

    algorithm: Any
    hyperparameters: Any
    model: Any
    loss: Any

    @list_options
    def __init__(
        self,
        algorithm: Algorithm | Recipe | Part | str = "irm",
        *,
        infer_environments: bool = False,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
        **options: Any,
    ) -> None:
        for name, value in complete({"algorithm": algorithm, **options}).items():
            setattr(self, name, value)
        self.infer_environments = infer_environments
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: ArrayLike, *, environments: ArrayLike | str | None = None) -> Self:  # noqa: N803
        """Train on the rows of all environments.

        Args:
            X: Numeric inputs `[rows, columns]`: an array or a DataFrame.
            y: Targets `[rows]`.
            environments: Environment labels `[rows]` of any type, or the name of the environment column of
                the DataFrame `X`; this column is not used as an input. Default: no environments; ERM is then
                trained with a warning, unless the algorithm accepts one environment or `infer_environments`
                is set.

        Returns:
            The fitted estimator.

        Raises:
            EnvariantError: If an argument of `fit` or a parameter of the estimator is invalid.
        """
        rows, labels = split_environments(X, environments)
        numeric = isinstance(self, RegressorMixin)
        inputs, y = validated(self, rows, plain_targets(y), dtype=np.float64, y_numeric=numeric)
        with errors_in_one_line():
            task, targets, fitted = self._encode_targets(cast("NDArray[Any]", y))
        mean, scale = mean_and_scale(inputs)
        table = EnvironmentSet.from_arrays(
            (inputs - mean) / scale,
            targets,
            ["all"] * len(inputs) if labels is None else labels,
            task=task,
            label=type(self).__name__,
        )
        # Class weights refer to the classes by name.
        table = replace(table, classes=tuple(map(text_of, fitted.get("classes_", ()))))
        settings = self._settings(len(table.names), labeled=labels is not None)
        requested = _requested(settings)
        # Switch points given in parentheses must not be scaled like those of a recipe.
        explicit = settings["inferred"] and "(" in str(self.algorithm)
        named = isinstance(requested, str | Recipe) and not explicit
        options = run_options({name: getattr(self, name) for name in defaults()}, len(inputs))
        options["algorithm"] = requested if named else _algorithm(settings)
        options["hyperparameters"] = settings["hyperparameters"] if named else {}
        options["model"] = settings["model"]
        with warnings.catch_warnings():
            # The documentation of `steps` says that switch points scale with it.
            warnings.filterwarnings("ignore", f".*{SCALED}", EnvariantWarning)
            result = train(
                table,
                **options,
                seed=self._seed(),
                test_environments=(),
                execution="sequential",
                progress=bool(self.verbose),
            )
        if result.failures:
            raise EnvariantError(f"{type(self).__name__}: training failed: {result.failures[0]}")
        # Set attributes last, so that a failed fit does not change an estimator fitted earlier.
        for name, value in {**fitted, "mean_": mean, "scale_": scale}.items():
            setattr(self, name, value)
        self.environments_ = np.array(table.names)
        self.environment_column_ = environments if isinstance(environments, str) else None
        self.settings_: dict[str, Any] = {**settings, "task": task.name, "outputs": task.outputs}
        trained = result.checkpoints[0]
        tensors = {**trained.params, **trained.buffers}
        self.weights_ = {name: value.detach().cpu().numpy().copy() for name, value in tensors.items()}
        self.result_: TrainingResult | None = result
        return self

    def __getstate__(self) -> dict[str, Any]:
        # The training result contains tensors and is not needed for prediction.
        state = cast("dict[str, Any]", super().__getstate__())
        return {**state, "result_": None} if "result_" in state else state

    def _scaled(self, task: Task) -> Task:
        """Return the task with the scale of the targets in their original unit; unchanged for classes."""
        return task

    @abstractmethod
    def _encode_targets(self, y: NDArray[Any]) -> tuple[Task, NDArray[Any], dict[str, Any]]:
        """Return the task, the encoded targets `[rows]`, and fitted attributes needed for prediction."""

    def _settings(self, environments: int, *, labeled: bool) -> dict[str, Any]:
        """Return the training settings; without environment labels, the algorithm may be replaced by ERM."""
        settings: dict[str, Any] = {
            "algorithm": self.algorithm,
            "hyperparameters": _mapping(self.hyperparameters or {}),
            # Copy, so that later changes of the user's module do not affect the fitted estimator.
            "model": copy.deepcopy(self.model),
            # Other losses do not determine how outputs become predictions.
            "loss": self.loss if isinstance(self.loss, str | Loss) else None,
            "inferred": False,
        }
        # Omit hyperparameters, which may include those of environment inference.
        algorithm = _algorithm({**settings, "hyperparameters": {}})
        name, needed = algorithm.name, algorithm.minimum_environments
        if environments >= needed:
            return settings
        if labeled:
            raise EnvariantError(
                f"{name}: needs at least {needed} environments, but 'environments' contains {environments}. "
                f"Pass more, or use algorithm='erm'"
            )
        if self.infer_environments:
            return {**settings, "inferred": True}
        _algorithm(settings)  # Report misspelled hyperparameters even if ERM is trained.
        warnings.warn(
            f"{type(self).__name__}: {name} needs environments, but fit received none, so ERM was trained "
            f"instead. Pass fit(…, environments=…), or silence this warning with algorithm='erm' or "
            f"infer_environments=True",
            UserWarning,
            stacklevel=3,
        )
        return {**settings, "algorithm": "erm", "hyperparameters": {}}

    def _seed(self) -> int:
        state = self.random_state
        if state is None:
            # Do not change the state of NumPy's global generator.
            return secrets.randbits(32)
        if isinstance(state, np.random.RandomState):
            return int(state.randint(2**32, dtype=np.uint32))
        with errors_in_one_line():
            check_random_state(state)  # Reject invalid values as scikit-learn does.
        return int(state)

    def _network(self) -> tuple[nn.Module, Task]:
        """Return the network with its trained weights, and the task."""
        task, loss = task_named(self.settings_["task"], self.settings_["outputs"]), self.settings_["loss"]
        task = task if loss is None else with_loss(self._scaled(task), loss)
        shape, builder = self.mean_.shape, model_builder(self.settings_["model"])

        def build(shape: Sequence[int]) -> nn.Module:
            return built(builder, shape, task.outputs)

        with private_random_numbers(0, torch.device("cpu")):
            module = build(shape)
            linear = isinstance(getattr(module, "head", None), nn.Linear)
            setting = TrainContext(
                tuple(map(str, self.environments_)),
                (),
                task,
                input_shape=shape,
                linear_head=linear,
                build=build,
            )
            module = _algorithm(self.settings_).wrap_model(module, setting)
        # The algorithm's auxiliary networks are not needed for prediction.
        module.load_state_dict({name: torch.from_numpy(self.weights_[name]) for name in module.state_dict()})
        # Double precision, so that the prediction of a row does not depend on the other rows of its block.
        return module.double().eval(), task

    def _outputs(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """Return the network's outputs: `[rows]`, or `[rows, classes]` for more than two classes."""
        check_is_fitted(self)
        column = self.environment_column_
        rows = split_environments(X, column)[0] if column in getattr(X, "columns", ()) else X
        inputs = (validated(self, rows, dtype=np.float64, reset=False) - self.mean_) / self.scale_
        network, task = self._network()
        return Evaluator.of_module(network, task).logits(torch.from_numpy(inputs)).numpy()


@final
class InvariantClassifier(ClassifierMixin, InvariantEstimator):
    """Classifier for tables with rows from several environments, such as sites, years or instruments.

    Columns are standardized by the mean and standard deviation of the rows passed to `fit`. The same
    `random_state`, rows and parameters give bit-identical predictions.

    The options `stop_early`, `keep="best(…)"` and `average="swad"` need validation rows. With one of them,
    `fit` holds out a random 20 % of the rows of every environment, or the share set by `holdout_fraction`.
    The network is not trained on these rows. The model is evaluated on them about 25 times during training,
    or every `evaluate_every` steps. The split depends on `random_state`.

    Args:
        algorithm: Name such as `vrex`, `irm(coefficient=100)` or `vrex + and-mask` (`envariant algorithms`
            lists all names), recipe, part such as `VREx()`, or `Algorithm`.
        infer_environments: Whether to infer two environments by EIIL if `fit` receives none: one with the
            rows that a reference model predicts well, and one with the rows that it predicts poorly.
            `hyperparameters` may include those of EIIL, such as `reference_steps`. The option is ignored if
            the algorithm does not need environments.
        random_state: Seed of initial weights, batch order and validation rows. Default: a new seed for each
            fit.
        verbose: Whether to show progress.
        options: Any option of `RunSpec` that applies to one network trained on a table, such as `clip`,
            `accumulate`, `class_weights` (keys may be labels in `y`), `average`, `keep` or `init`. The
            following options have defaults that differ from those in `RunSpec`:

            - hyperparameters: New values by hyperparameter name, if `algorithm` is a name; they override
              values in `algorithm`. Default: none.
            - model: Name, `ModelConfig`, function that returns a new module, or module with initial
              weights. Default: "mlp(hidden=(64, 64))".
            - steps: Number of optimizer updates. By default, the coefficients of irm and vrex increase after
              a fifth of the steps. Default: 500.
            - batch_size: Number of rows per environment and step, sampled with replacement. "full": all rows.
              "auto" (default): all rows of tables with at most 5,000 rows, otherwise 256 per environment;
              also 256 with `class_weights` or `accumulate`, which need minibatches.
            - learning_rate: Number or schedule, or one of these for each parameter group, as a mapping.
              Default: 0.001.
            - precision: Precision of matrix products in training. Predictions are computed in float64 on the
              CPU. Default: "float32".
            - holdout_fraction: Share of validation rows. Default: 0.2 if an option needs them, otherwise 0.
            - evaluate_every: Number of steps between evaluations. Default: the last step only, unless an
              option needs validation rows.
            - device: Device to train on: "cpu", "cuda" or "auto". Default: "cpu".

    Attributes:
        classes_: Class labels, sorted.
        n_features_in_: Number of input columns, without the environment column.
        feature_names_in_: Names of the input columns, if `X` had names.
        environments_: Names of the training environments. If `fit` received none, the only name is "all",
            even if environments were inferred.
        environment_column_: Name of the environment column, if any; `predict` accepts `X` with or without it.
        settings_: Training settings: algorithm, hyperparameters, model and task.
        weights_: Trained weights of the network, as arrays by parameter name.
        mean_: Mean of each input column.
        scale_: Standard deviation of each input column.
        result_: `TrainingResult` of the run; None in an unpickled estimator.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> X, site = rng.normal(size=(90, 2)), np.repeat(["north", "south", "east"], 30)
        >>> clf = InvariantClassifier("vrex", model="linear", steps=150, random_state=0)
        >>> clf.fit(X, X[:, 0] > 0, environments=site).environments_.tolist()
        ['east', 'north', 'south']
    """

    classes_: NDArray[Any]

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """Return the most probable class of each row, `[rows]`."""
        outputs = self._outputs(X)
        return self.classes_[(outputs > 0).astype(int) if outputs.ndim == 1 else outputs.argmax(axis=1)]

    def predict_proba(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """Return the probability of every class, `[rows, classes]`, in the order of `classes_`."""
        outputs = self._outputs(X)
        if outputs.ndim == 2:
            return softmax(outputs, axis=1)
        return np.column_stack([expit(-outputs), expit(outputs)])

    def decision_function(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """Return logits: `[rows]` for two classes (positive for the second), else `[rows, classes]`."""
        return self._outputs(X)

    def _encode_targets(self, y: NDArray[Any]) -> tuple[Task, NDArray[Any], dict[str, Any]]:
        check_classification_targets(y)
        classes, targets = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise EnvariantError(f"y must hold at least two classes; got one class ({classes[0]})")
        warn_of_look_alikes(map(str, classes), f"{type(self).__name__}: y")
        task = Binary() if len(classes) == 2 else Multiclass(len(classes))
        return task, targets, {"classes_": classes}


@final
class InvariantRegressor(RegressorMixin, InvariantEstimator):
    """Regressor, trained on the squared error, for tables with rows from several environments.

    Targets are standardized for training, so that penalty coefficients do not depend on the unit of the
    target. Predictions are in the original unit. See `InvariantClassifier` for details of the parameters and
    of the validation rows that some options need.

    Args:
        algorithm: Name, recipe, part or `Algorithm`.
        infer_environments: Whether to infer two environments by EIIL if `fit` receives none.
        random_state: Seed of initial weights, batch order and validation rows.
        verbose: Whether to show progress.
        options: Any option of `RunSpec` that applies to one network trained on a table, such as `model`,
            `loss`, `steps`, `learning_rate`, `clip`, `average` or `stop_early`. Defaults are those of
            `InvariantClassifier`.

    Attributes:
        target_mean_: Mean of the training targets.
        target_scale_: Standard deviation of the training targets.
        n_features_in_, feature_names_in_, environments_, environment_column_, settings_, weights_, mean_,
            scale_, result_: See `InvariantClassifier`.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> X, year = rng.normal(size=(90, 2)), np.repeat([2021, 2022, 2023], 30)
        >>> reg = InvariantRegressor("vrex", model="linear", steps=150, random_state=0)
        >>> reg.fit(X, 100 + X[:, 0], environments=year).predict(X).shape
        (90,)
    """

    target_mean_: float
    target_scale_: float

    def predict(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """Return the predicted target of each row, `[rows]`, in the original unit of the target."""
        return self._outputs(X) * self.target_scale_ + self.target_mean_

    def _encode_targets(self, y: NDArray[Any]) -> tuple[Task, NDArray[Any], dict[str, Any]]:
        (mean,), (scale,) = mean_and_scale(y[:, None])
        # Some losses need the unit of the targets, but without one, recorded scores have no unit.
        task = Regression() if self.loss is None else Regression(scale=scale, center=mean)
        return task, (y - mean) / scale, {"target_mean_": mean, "target_scale_": scale}

    def _scaled(self, task: Task) -> Task:
        return Regression(scale=self.target_scale_, center=self.target_mean_)


def _requested(settings: Mapping[str, Any]) -> Any:
    """Return the requested algorithm, with inferred environments if `settings` require it."""
    requested = settings["algorithm"]
    if not settings["inferred"]:
        return requested
    known = algorithms.recipe(requested) if isinstance(requested, str) else requested
    if not isinstance(known, Recipe):
        return requested
    # Set it in the recipe, so that `hyperparameters` may include those of environment inference.
    default = replace(known.default, environment_inference=EIIL())
    return replace(known, name=f"{known.name} + {EIIL.name}", default=default)


def _algorithm(settings: Mapping[str, Any]) -> Algorithm:
    """Return the algorithm that the training settings specify."""
    requested, inferred = _requested(settings), settings["inferred"]
    algorithm = algorithms.as_algorithm(requested, settings["hyperparameters"])
    if not inferred or isinstance(requested, Recipe):
        return algorithm
    if not isinstance(algorithm, Composition):
        raise EnvariantError(
            f"{algorithm.name}: infer_environments needs a named algorithm or a Composition; "
            f"pass environments to fit instead"
        )
    return replace(algorithm, environment_inference=EIIL())


def _mapping(hyperparameters: object) -> dict[str, Any]:
    if not isinstance(hyperparameters, Mapping):
        raise EnvariantError(f"hyperparameters must be a mapping; got {shown(hyperparameters)}")
    return dict(cast("Mapping[str, Any]", hyperparameters))
