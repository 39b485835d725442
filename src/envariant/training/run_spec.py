"""`RunSpec`: all training options, with defaults and descriptions.

`train`, studies, estimators, command-line flags, stored records and commands that repeat a run all use this
list. Importing this module does not import PyTorch, so `--help` stays fast.
"""

import hashlib
import json
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, SupportsIndex, cast, final

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from envariant.core import specs
from envariant.core.class_weights import class_weights
from envariant.core.display import Displayed, Summary
from envariant.core.errors import unknown_name
from envariant.training.clipping import clipping
from envariant.training.option_errors import one_line
from envariant.training.option_text import plain
from envariant.training.option_values import learning_rate, weight_decay


def _whole(value: object) -> object:
    """Convert any integer type, such as NumPy's integers, to `int`; reject floats and booleans."""
    if isinstance(value, bool):
        raise ValueError("must be a whole number")
    try:
        return operator.index(cast("SupportsIndex", value))
    except TypeError:
        raise ValueError("must be a whole number") from None


def _number(value: object) -> object:
    try:
        number = float("nan" if isinstance(value, bool | str | bytes) else cast("Any", value))
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not math.isfinite(number):
        raise ValueError("must be a number")
    return number


Whole = Annotated[int, BeforeValidator(_whole)]
Number = Annotated[float, BeforeValidator(_number)]


def _option(default: Any, description: str, **limits: Any) -> Any:
    return Field(default, description=description, **limits)


@final
class RunSpec(BaseModel, Displayed):
    """Options of one training run.

    Many options accept a name or an object. An option that is None gets the default value of the data set for
    the algorithm.

    Raises:
        EnvariantError: If an option is unknown or a value is not allowed.

    Example:
        >>> RunSpec(data="colored-digits", algorithm="irm", steps=200).steps
        200
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True
    )

    data: Any = Field(
        description="Environments to train on: a name such as colored-mnist or "
        "colored-digits(label_noise=0.1); in Python also an EnvironmentSource or an EnvironmentSet."
    )
    algorithm: Any = _option(
        "erm",
        'Algorithm: a name such as irm, "irm(l2=0.001)" or "vrex + and-mask"; in Python also an algorithm, '
        "recipe, part, predictor or scikit-learn estimator.",
    )
    hyperparameters: Mapping[str, Any] = _option(
        {}, "Hyperparameters by name; they override values in parentheses after the name of the algorithm."
    )
    model: Any = _option(
        None,
        'Network: a name such as linear, "mlp(hidden=390)", lenet or mnist-cnn; in Python also a '
        "ModelConfig, a function that returns a new module, or a module whose weights are the initial "
        "weights of every replica.",
    )
    loss: Any = _option(
        None,
        "Loss of each row: cross-entropy, focal(gamma=2) or label-smoothing(0.1) for classes; mse, "
        "huber(delta=1), quantile(0.9) or poisson for numbers; by default, the loss of the data's task; in "
        "Python also a function of logits and targets, or a Task.",
    )
    steps: Whole | None = _option(
        None,
        "Number of optimizer updates of each replica; suggested schedules are scaled to this number.",
        ge=1,
        le=1_000_000_000,
    )
    batch_size: Literal["full"] | Whole | None = _option(
        None,
        'Rows of each training environment per step, sampled with replacement; "full" uses all rows.',
    )
    learning_rate: Any = _option(
        None,
        'Learning rate: a number, a schedule such as "cosine(1e-3, warmup=5%)", or one of these by parameter '
        'group, such as "groups(featurizer=1e-5, head=1e-3)"; in Python also a mapping.',
    )
    weight_decay: Any = _option(
        0.0,
        "L2 coefficient applied by the optimizer, after gradient masking: a number, or numbers by parameter "
        'group, such as "groups(head=1e-3)"; in Python also a mapping.',
    )
    decay_weights_only: bool = _option(
        False,
        "Apply weight decay to weights only, not to biases and normalization layers.",
        strict=True,
    )
    optimizer: Any = _option(
        None,
        "Optimizer: adam, adamw or sgd(momentum=0.9); in Python also an OptimizerConfig or a torch.optim "
        "class.",
    )
    clip: Any = _option(
        None,
        "Gradient clipping of each replica, after the gradient aggregator: a number or norm(1.0) for the "
        "largest norm over all parameters, value(0.5) for the largest entry.",
    )
    accumulate: Whole = _option(
        1,
        "Number of batches whose gradients are averaged in one update; penalties are computed for each "
        "batch.",
        ge=1,
        le=100_000,
    )
    class_weights: Any = _option(
        None,
        "Weights of the classes in training: balanced; weights in the order of the classes, such as "
        '"weights(1, 5)"; or weights by name, such as "weights(yes=5)". For networks, they determine how '
        "often rows are sampled in minibatches. In Python also a mapping or sequence.",
    )
    precision: Literal["auto", "float32", "bfloat16", "tf32"] = _option(
        "auto",
        "Precision of matrix products. auto: bfloat16 if the processor supports it natively and the model is "
        "large enough, else float32. tf32 needs CUDA.",
    )
    test_environments: tuple[str, ...] | None = _option(
        None,
        (
            "Names of the test environments, which are not used for training; by default, the test "
            "environments of the data."
        ),
    )
    holdout_fraction: Number = _option(
        0.0,
        "Share of the rows of each training environment kept for validation, in [0, 1).",
        ge=0,
        lt=1,
    )
    average: Any = _option(
        None,
        "Average of the weights that is used for evaluation, prediction and saving: ema(0.99), "
        'ma(start=100), "swa(start=75%)" or swad, with any algorithm; none for the trained weights; by '
        "default, the average of the algorithm, if it has one (erm++); in Python also an Averaging.",
    )
    keep: Any = _option(
        "last",
        'Steps whose weights are kept: last, "best(validation accuracy)", or every(100) for every 100th '
        "step and the last.",
    )
    stop_early: Any = _option(
        None,
        "Rule to stop a replica early: patience(10) stops it after 10 evaluations without a lower validation "
        'loss, "patience(10, metric=accuracy)" without a better score.',
    )
    evaluate_every: Whole | None = _option(
        None, "Number of steps between evaluations; by default about 25 evaluations per run.", ge=1
    )
    augmentation: Any = _option(
        None,
        "Augmentation of training images, such as domainbed, rand-augment, "
        '"affine(rotation=15, shear=10, scale=0.2)" or "random-resized-crop + horizontal-flip".',
    )
    init: Any = _option(
        None,
        'Pretraining that provides the initial weights: erm, "erm(steps=200)", rfc for rich features '
        "(Zhang, Lopez-Paz, Bottou 2022), or \"run('folder')\" for the weights of a stored run.",
    )
    freeze: Literal["features", "batch-norm", "features + batch-norm"] | None = _option(
        None,
        '"features": train only the head, on the pretrained features from init; "batch-norm": keep the '
        'statistics of BatchNorm layers, whose weights still train; "features + batch-norm": both.',
    )
    adapt: Any = _option(
        None,
        "Test-time adaptation: a function that adapts the weights to the unlabeled rows of an environment "
        "before these rows are predicted (`training.evaluator.Adapt`); in Python only.",
    )
    device: Literal["auto", "cpu", "cuda"] = _option("auto", "Device to train on.")
    execution: Any = _option(
        "auto",
        "How replicas are executed: auto, sequential, stacked or stacked(group=50). To repeat a run "
        "bit-identically, use the execution in its record.",
    )
    memory: str | Number | None = _option(
        None, "Memory limit of a replica stack, such as 8GB; by default half of the free memory."
    )
    compile: bool = _option(
        False,
        "Compile each step program with torch.compile; useful for long runs of small models.",
        strict=True,
    )
    replicas: Whole = _option(
        1,
        "Number of replicas: independent runs, each with its own data, initialization and batch-order seeds.",
        ge=1,
        le=100_000,
    )
    shared_init: bool = _option(
        False,
        "Start all replicas from the same initial weights and data, so that they differ only in the order of "
        "their batches and their weights can be averaged (soup).",
        strict=True,
    )
    seed: Whole = _option(0, "Base random seed.", ge=0, lt=2**32)

    def __init__(self, **options: Any) -> None:
        try:
            super().__init__(**options)
        except ValidationError as error:
            raise one_line(error, options, RunSpec.model_fields) from None

    @model_validator(mode="before")
    @classmethod
    def _accept_alias(cls, options: Any) -> Any:
        if isinstance(options, Mapping) and "n_seeds" in options:
            options = dict(cast("Mapping[str, Any]", options))
            if "replicas" in options:
                raise ValueError("replicas and n_seeds are one option; give one of them")
            options["replicas"] = options.pop("n_seeds")
        return options

    @field_validator("test_environments", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        # Treat a string as one name, not as a sequence of letters.
        if isinstance(value, str):
            return (value,)
        names = tuple(cast("Sequence[object]", value)) if isinstance(value, Sequence) else ()
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"must name every environment once; '{repeated[0]}' is named twice")
        return names if isinstance(value, Sequence) else value

    @field_validator("batch_size")
    @classmethod
    def _at_least_one(cls, value: Any) -> Any:
        if isinstance(value, int) and not 1 <= value <= 2**53:
            raise ValueError("must be at least 1" if value < 1 else "must be at most 2⁵³")
        return value

    @field_validator("adapt")
    @classmethod
    def _function(cls, value: object) -> object:
        # A name is the text of a function in a stored record.
        if value is not None and not callable(value) and not isinstance(value, str):
            raise ValueError("must be a function")
        return value

    @field_validator("learning_rate")
    @classmethod
    def _rate(cls, value: object) -> object:
        return None if value is None else learning_rate(value)

    @field_validator("weight_decay")
    @classmethod
    def _decay(cls, value: object) -> object:
        return weight_decay(value)

    @field_validator("class_weights")
    @classmethod
    def _weights(cls, value: object) -> object:
        return class_weights(value)

    @field_validator("keep", mode="before")
    @classmethod
    def _keep(cls, value: object) -> object:
        return "last" if value is None else value

    @field_validator("clip")
    @classmethod
    def _clip(cls, value: object) -> object:
        return clipping(value)

    @model_validator(mode="after")
    def _freeze_needs_init(self) -> Self:
        if "features" in (self.freeze or "") and self.init is None:
            raise ValueError(
                f'freeze="{self.freeze}" needs pretrained features: set init as well, for example init="rfc"'
            )
        return self

    def but(self, **changes: Any) -> "RunSpec":
        """Return a copy with some options changed.

        Raises:
            EnvariantError: If an option is unknown or a value is not allowed.
        """
        return RunSpec(**{**self.options(), **changes})

    def options(self) -> dict[str, Any]:
        """Return all options by name; objects are not converted to strings."""
        return {name: getattr(self, name) for name in RunSpec.model_fields}

    def non_defaults(self) -> dict[str, Any]:
        """Return the options that differ from their defaults, as JSON-compatible values by name."""
        fields = RunSpec.model_fields
        return {key: value for key, value in self.to_dict().items() if value != plain(fields[key].default)}

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        # Also the text of the specification: 25 options would fill a screen.
        return list(self.non_defaults().items())

    def _display(self) -> Summary:
        plain = {key: specs.format_value(value) for key, value in self.non_defaults().items()}
        return Summary("RunSpec", plain, notes=("All other options have their defaults.",))

    def flags(self) -> list[str]:
        """Return the command-line flags of the options that differ from their defaults."""
        words: list[str] = []
        for name, value in self.to_dict().items():
            flag = f"--{name.replace('_', '-')}"
            if name == "hyperparameters":
                words += [word for key, each in value.items() for word in ("--set", f"{key}={each}")]
            elif value is True:
                words.append(flag)
            elif value != plain(RunSpec.model_fields[name].default):
                each = value if isinstance(value, list) else [value]
                words += [word for one in each for word in (flag, str(one))]
        return words

    def to_dict(self) -> dict[str, Any]:
        """Return the options as a JSON-compatible dictionary; objects are converted to strings."""
        return {key: plain(value) for key, value in self.options().items()}

    def described(self) -> "RunSpec":
        """Return a copy in which every object is replaced by its string representation, as in records."""
        return RunSpec(**self.to_dict())

    def identity(self, identities: Mapping[str, str]) -> str:
        """Return a content hash of the run, which does not depend on file locations.

        Args:
            identities: Content hashes by option name, for options that their strings do not fully describe.
        """
        meaning = {
            key: identities.get(key, plain(value))
            for key, value in self.options().items()
            if key not in EXECUTION_ONLY
        }
        return hashlib.blake2b(json.dumps(meaning, sort_keys=True).encode(), digest_size=16).hexdigest()


EXECUTION_ONLY = frozenset({"execution", "memory", "replicas"})
"""Options that change the results of a replica only by rounding."""

_CONDITIONS = (
    "hyperparameters",
    "model",
    "loss",
    "optimizer",
    "steps",
    "batch_size",
    "learning_rate",
    "weight_decay",
    "decay_weights_only",
    "clip",
    "accumulate",
    "class_weights",
    "augmentation",
    "init",
    "freeze",
    "adapt",
    "average",
    "keep",
    "stop_early",
    "shared_init",
    "holdout_fraction",
    "test_environments",
)

SHARED = tuple(
    name
    for name in RunSpec.model_fields
    if name
    not in {
        "data",
        "algorithm",
        "hyperparameters",
        "test_environments",
        "holdout_fraction",
        *EXECUTION_ONLY,
        "seed",
    }
)
"""Options shared by all runs of a study; a study varies or sets the others itself."""


PYTHON_ONLY = ("adapt",)
"""Options that take a function and therefore have no command-line flag."""


def option(name: str) -> FieldInfo:
    """Return the type, default and description of an option.

    Raises:
        EnvariantError: If the option is unknown.
    """
    if name not in RunSpec.model_fields:
        raise unknown_name("option", name, RunSpec.model_fields)
    return RunSpec.model_fields[name]


def difference(spec: RunSpec, reference: RunSpec) -> tuple[str, ...]:
    """Return the names of the protocol options that differ between two runs, in a fixed order.

    Protocol options are hyperparameters, network, optimization, pretraining, augmentation, validation split
    and test environments. Seeds, replicas, precision and device are not compared.

    Args:
        spec: Options of a run, with defaults filled in.
        reference: Options of the run to compare with, with defaults filled in.
    """
    return tuple(key for key in _CONDITIONS if plain(getattr(spec, key)) != plain(getattr(reference, key)))
