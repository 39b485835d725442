"""Scikit-learn estimators: a table and a column that says where each row came from, in; predictions, out.

They standardize columns, lay rows out in environments and call `envariant.training.train`. A fitted one
holds plain numbers, NumPy arrays and text, so that it is cloned, searched over and stored as any other.
"""

import secrets
import warnings
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, Self, cast, final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from envariant.algorithms import EIIL, Algorithm, Composition, TrainContext, recipes
from envariant.core.counter_rng import private_random_numbers
from envariant.core.environments import EnvironmentSet
from envariant.core.errors import EnvariantError, unknown_name
from envariant.core.tasks import Binary, Multiclass, Regression, Task, task_named
from envariant.models import ModelConfig, model_config
from envariant.training import TrainingResult, train
from envariant.training.evaluator import Evaluator

# With "auto": up to so many rows a step takes all of them, which is exact and, for such tables, no slower
# than drawing; above, it takes so many of each environment.
_FULL_BATCH = 5000
_BATCH = 256
# scikit-learn ships no types, and those that are guessed from its code do not hold.
_validated: Any = validate_data


class InvariantEstimator(BaseEstimator, ABC):
    """What the classifier and the regressor share; see there."""

    # Read by scikit-learn where metadata routing is on: what is called so belongs to `fit`.
    __metadata_request__fit = {"environments": True}  # noqa: RUF012  # pyright: ignore[reportUnusedVariable]

    mean_: NDArray[np.float64]
    scale_: NDArray[np.float64]

    def __init__(
        self,
        algorithm: Algorithm | str = "irm",
        *,
        hyperparameters: Mapping[str, Any] | None = None,
        model: ModelConfig | str = "mlp(hidden=(64, 64))",
        steps: int = 500,
        batch_size: int | Literal["auto", "full"] = "auto",
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        optimizer: str | None = None,
        precision: str = "float32",
        device: str = "cpu",
        infer_environments: bool = False,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        self.algorithm = algorithm
        self.hyperparameters = hyperparameters
        self.model = model
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.optimizer = optimizer
        self.precision = precision
        self.device = device
        self.infer_environments = infer_environments
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: ArrayLike, *, environments: ArrayLike | str | None = None) -> Self:  # noqa: N803
        """Trains on the rows of all environments.

        Args:
            X: `[rows, columns]`, numbers: an array, or a DataFrame.
            y: `[rows]`.
            environments: where each row came from: `[rows]` labels of any kind, or the name of a column of
                the DataFrame `X`, which is taken out of it. None trains ERM, with a warning, unless the
                algorithm makes do with one environment or `infer_environments` is set.

        Returns:
            The estimator.

        Raises:
            ValueError: something does not fit; the message says what and how to mend it.
        """
        with _refusals():
            rows, labels = _parted(X, environments)
            numeric = isinstance(self, RegressorMixin)
            inputs, column = _validated(self, rows, y, dtype=np.float64, y_numeric=numeric)
            task, targets, seen = self._seen(column)
            mean, scale = _scaling(inputs)
            table = EnvironmentSet.from_arrays(
                (inputs - mean) / scale,
                targets,
                ["all"] * len(inputs) if labels is None else labels,
                task=task,
                label=type(self).__name__,
            )
            settings = self._settings(len(table.names), given=labels is not None)
            named = isinstance(self.algorithm, str) and not settings["inferred"]
            result = train(
                table,
                settings["algorithm"] if named else _built(settings),
                hyperparameters=settings["hyperparameters"] if named else None,
                model=settings["model"],
                steps=self.steps,
                seed=self._seed(),
                batch_size=_rows_a_step(self.batch_size, len(inputs)),
                learning_rate=self.learning_rate,
                weight_decay=self.weight_decay,
                optimizer=self.optimizer,
                precision=self.precision,
                test_environments=(),
                evaluate_every=self.steps,
                device=self.device,
                execution="sequential",
                progress=bool(self.verbose),
            )
            if result.failures:
                raise EnvariantError(f"{type(self).__name__}: training failed: {result.failures[0]}")
        # Not before, so that a fit that is refused leaves what an earlier one learned.
        for name, value in {**seen, "mean_": mean, "scale_": scale}.items():
            setattr(self, name, value)
        self.environments_ = np.array(table.names)
        self.environment_column_ = environments if isinstance(environments, str) else None
        self.settings_: dict[str, Any] = {**settings, "task": task.name, "outputs": task.outputs}
        trained = result.checkpoints[0]
        held = {**trained.params, **trained.buffers}
        self.weights_ = {name: value.detach().cpu().numpy().copy() for name, value in held.items()}
        self.result_: TrainingResult | None = result
        return self

    def __getstate__(self) -> dict[str, Any]:
        # The run's record holds tensors and is of use where the run was made; a stored model predicts.
        state = cast("dict[str, Any]", super().__getstate__())
        return {**state, "result_": None} if "result_" in state else state

    @abstractmethod
    def _seen(self, y: NDArray[Any]) -> tuple[Task, NDArray[Any], dict[str, Any]]:
        """The task, the targets as it wants them, and what predictions will need, by attribute."""

    def _settings(self, environments: int, *, given: bool) -> dict[str, Any]:
        """What is trained: the algorithm, or what stands in for it, its hyperparameters and the model."""
        if not isinstance(self.model, str | ModelConfig):
            raise EnvariantError(
                f"model must be a name such as 'mlp(hidden=64)', by which a stored estimator builds it "
                f"again; got {type(self.model).__name__}"
            )
        settings: dict[str, Any] = {
            "algorithm": self.algorithm,
            "hyperparameters": dict(self.hyperparameters or {}),
            "model": str(self.model),
            "inferred": False,
        }
        # Without hyperparameters, among which may be those of what infers environments.
        needed = _built({**settings, "hyperparameters": {}}).minimum_environments
        name = getattr(self.algorithm, "name", self.algorithm)
        if environments >= needed:
            return settings
        if given:
            raise EnvariantError(
                f"{name}: needs at least {needed} environments, to see what holds in all of them; "
                f"environments has {environments}. Give more, or use algorithm='erm'"
            )
        if self.infer_environments:
            return {**settings, "inferred": True}
        _built(settings)  # A misspelt setting is an error, whatever is trained.
        warnings.warn(
            f"{type(self).__name__}: fit was given no environments, which {name} cannot do without, so ERM "
            f"was trained instead and nothing about this model is invariant. Give fit(…, environments=…), "
            f"or say that it is meant: algorithm='erm', or infer_environments=True",
            UserWarning,
            stacklevel=3,
        )
        return {**settings, "algorithm": "erm", "hyperparameters": {}}

    def _seed(self) -> int:
        state = self.random_state
        if state is None:
            # Not from NumPy's global numbers, which others may count on.
            return secrets.randbits(32)
        if isinstance(state, np.random.RandomState):
            return int(state.randint(2**32, dtype=np.uint32))
        check_random_state(state)  # Refuses what scikit-learn refuses.
        return int(state)

    def _network(self) -> tuple[nn.Module, Task]:
        """The trained network, built again from text and arrays, and its task."""
        task = task_named(self.settings_["task"], self.settings_["outputs"])
        shape = self.mean_.shape
        family = model_config(self.settings_["model"])

        def build(shape: Sequence[int]) -> nn.Module:
            return family.build(shape, task.outputs)

        with private_random_numbers(0, torch.device("cpu")):
            module = build(shape)
            linear = isinstance(getattr(module, "head", None), nn.Linear)
            setting = TrainContext(
                len(self.environments_), task, input_shape=shape, linear_head=linear, build=build
            )
            module = _built(self.settings_).wrap_model(module, setting)
        # Networks of the algorithm's own have done their work.
        module.load_state_dict({name: torch.from_numpy(self.weights_[name]) for name in module.state_dict()})
        # In double precision a row's answer does not depend on which rows are predicted beside it.
        return module.double().eval(), task

    def _outputs(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """What the network says of each row: `[rows]`, or `[rows, classes]` with more than two."""
        check_is_fitted(self)
        column = self.environment_column_
        rows = _parted(X, column)[0] if column in getattr(X, "columns", ()) else X
        inputs = (_validated(self, rows, dtype=np.float64, reset=False) - self.mean_) / self.scale_
        network, task = self._network()
        return Evaluator.of_module(network, task).logits(torch.from_numpy(inputs)).numpy()


@final
class InvariantClassifier(ClassifierMixin, InvariantEstimator):
    """A classifier for tables whose rows come from several environments: sites, years, instruments.

    Columns are standardized by the mean and the standard deviation of the rows trained on. The same
    `random_state`, rows and settings give the same bits.

    Args:
        algorithm: a recipe such as `vrex`, `irm(coefficient=100)` or `vrex + and-mask` (`envariant
            algorithms` lists them), or an `Algorithm`.
        hyperparameters: changes to the recipe's settings; they win over those in `algorithm`.
        model: a name such as `linear` or `mlp(hidden=(64, 64))`.
        steps: optimizer updates. The default penalties of irm and vrex are switched on at step 100.
        batch_size: rows of each environment a step, drawn with replacement; "full" is all rows; "auto" is
            all rows up to 5,000, and 256 of each environment above.
        learning_rate: of the optimizer.
        weight_decay: of the optimizer.
        optimizer: `adam`, `adamw` or `sgd(momentum=0.9)`; None is adam, or the algorithm's own steps.
        precision: of matrix products in training, "float32", "bfloat16" or "auto". Predictions are
            computed in double precision on the CPU.
        device: to train on: "cpu", "cuda" or "auto".
        infer_environments: where `fit` is given no environments, whether to find two by EIIL (the rows on
            which a first model is right, and those on which it is wrong). The first model's settings, such
            as `reference_steps`, are hyperparameters as well. Without effect where none are needed.
        random_state: of weights and batches; None is another at every fit.
        verbose: whether to draw progress.

    Attributes:
        classes_: the labels, sorted.
        n_features_in_, feature_names_in_: the columns that `predict` wants, environments not among them.
        environments_: names of the environments that were trained on; "all" where none were given.
        environment_column_: the column that told them; `predict` takes `X` with it or without.
        settings_: what was trained: algorithm, hyperparameters, model and task.
        weights_: of the network, by name.
        mean_, scale_: of the columns.
        result_: the run's history and record; None in a copy or a stored estimator.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> X, site = rng.normal(size=(90, 2)), np.repeat(["north", "south", "east"], 30)
        >>> clf = InvariantClassifier("vrex", model="linear", steps=20, random_state=0)
        >>> clf.fit(X, X[:, 0] > 0, environments=site).environments_.tolist()
        ['east', 'north', 'south']
    """

    classes_: NDArray[Any]

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """The likeliest class of each row: `[rows]`."""
        outputs = self._outputs(X)
        return self.classes_[(outputs > 0).astype(int) if outputs.ndim == 1 else outputs.argmax(axis=1)]

    def predict_proba(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """Every class's probability: `[rows, classes]`, in the order of `classes_`."""
        outputs = self._outputs(X)
        if outputs.ndim == 2:
            return softmax(outputs, axis=1)
        return np.column_stack([expit(-outputs), expit(outputs)])

    def decision_function(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """Logits: `[rows]`, above 0 for the second of two classes, or `[rows, classes]`."""
        return self._outputs(X)

    def _seen(self, y: NDArray[Any]) -> tuple[Task, NDArray[Any], dict[str, Any]]:
        check_classification_targets(y)
        classes, targets = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise EnvariantError(f"y holds one class ({classes[0]}); a classifier needs two classes at least")
        task = Binary() if len(classes) == 2 else Multiclass(len(classes))
        return task, targets, {"classes_": classes}


@final
class InvariantRegressor(RegressorMixin, InvariantEstimator):
    """A regressor for tables whose rows come from several environments, by squared error.

    Targets are standardized as columns are, and predictions are in the targets' own unit. Penalties see
    the standardized error: a coefficient means the same in grams and in kilograms.

    Args:
        algorithm, hyperparameters, model, steps, batch_size, learning_rate, weight_decay, optimizer,
            precision, device, infer_environments, random_state, verbose: as of `InvariantClassifier`.

    Attributes:
        target_mean_, target_scale_: of the targets that were trained on.
        n_features_in_, feature_names_in_, environments_, environment_column_, settings_, weights_, mean_,
            scale_, result_: as of `InvariantClassifier`.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> X, year = rng.normal(size=(90, 2)), np.repeat([2021, 2022, 2023], 30)
        >>> reg = InvariantRegressor("vrex", model="linear", steps=20, random_state=0)
        >>> reg.fit(X, 100 + X[:, 0], environments=year).predict(X).shape
        (90,)
    """

    target_mean_: float
    target_scale_: float

    def predict(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """The prediction for each row, in the targets' unit: `[rows]`."""
        return self._outputs(X) * self.target_scale_ + self.target_mean_

    def _seen(self, y: NDArray[Any]) -> tuple[Task, NDArray[Any], dict[str, Any]]:
        (mean,), (scale,) = _scaling(y[:, None])
        return Regression(), (y - mean) / scale, {"target_mean_": mean, "target_scale_": scale}


@contextmanager
def _refusals() -> Generator[None]:
    """Scikit-learn and its users expect a ValueError for an input that cannot be used."""
    try:
        yield
    except EnvariantError as error:
        raise ValueError(str(error)) from error


def _built(settings: Mapping[str, Any]) -> Algorithm:
    """The algorithm of some settings."""
    algorithm, inferred = settings["algorithm"], {"inference": EIIL()} if settings["inferred"] else {}
    if isinstance(algorithm, str):
        terms = recipes.terms(algorithm)
        known = recipes.added(algorithm, [term.build(given) for term, given in terms])
        return replace(known, default=replace(known.default, **inferred)).build(settings["hyperparameters"])
    if isinstance(algorithm, Composition):
        return replace(algorithm, **inferred)
    if not isinstance(algorithm, Algorithm) or inferred:
        raise EnvariantError(f"algorithm must be a name such as 'vrex', or a Composition; got {algorithm!r}")
    return algorithm


def _parted(X: Any, environments: ArrayLike | str | None) -> tuple[Any, Any]:  # noqa: N803
    """The table without the column that tells environments, and their labels."""
    if not isinstance(environments, str):
        return X, environments
    if not hasattr(X, "columns"):
        raise EnvariantError(
            f"environments='{environments}' names a column, and X, a {type(X).__name__}, has no names; "
            f"give a DataFrame, or an array with one label a row"
        )
    if environments not in X.columns:
        raise unknown_name("column", environments, map(str, X.columns), where="environments")
    return X[[name for name in X.columns if name != environments]], X[environments]


def _rows_a_step(wanted: Any, rows: int) -> int | Literal["full"]:
    if wanted != "auto":
        return wanted
    return "full" if rows <= _FULL_BATCH else _BATCH


def _scaling(columns: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each column's mean and standard deviation, 1 where that is 0 to rounding."""
    scaler: Any = StandardScaler().fit(columns)
    return scaler.mean_, scaler.scale_
