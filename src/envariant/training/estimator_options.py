"""Parameters of the scikit-learn estimators: the options of `RunSpec` for one network trained on a table."""

from collections.abc import Callable, Mapping
from inspect import Parameter, Signature
from typing import Any, Literal

from envariant.core.errors import unknown_name
from envariant.training.run_spec import RunSpec
from envariant.training.validation_watch import uses_validation

# `fit` sets the data, and trains one replica; images and test-time adaptation need other inputs than a table.
_OMITTED = frozenset(
    {
        "data",
        "test_environments",
        "augmentation",
        "adapt",
        "execution",
        "memory",
        "replicas",
        "shared_init",
        "seed",
    }
)

# Defaults that differ from those of `RunSpec`, which depend on the data set or hold for networks of any size.
_DEFAULTS: Mapping[str, Any] = {
    "algorithm": "irm",
    "hyperparameters": None,
    "model": "mlp(hidden=(64, 64))",
    "steps": 500,
    "batch_size": "auto",
    "learning_rate": 1e-3,
    "precision": "float32",
    "holdout_fraction": None,
    "device": "cpu",
}

# batch_size="auto": full batches for at most _FULL_BATCH rows, which are exact and equally fast; otherwise
# minibatches of _BATCH rows per environment.
_FULL_BATCH, _BATCH = 5000, 256

_HOLDOUT = 0.2
"""Share of validation rows if an option needs them and `holdout_fraction` is not set."""


def defaults() -> dict[str, Any]:
    """Return the default of every option of `RunSpec` that the estimators accept, by name."""
    fields = RunSpec.model_fields
    return {name: fields[name].default for name in fields if name not in _OMITTED} | dict(_DEFAULTS)


def complete(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options: the given values, and defaults for the others.

    Raises:
        EnvariantError: If an option is unknown.
    """
    known = defaults()
    for name in options:
        if name not in known:
            raise unknown_name("option", name, [*known, "infer_environments", "random_state", "verbose"])
    return {**known, **options}


def run_options(options: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Return the options of the run that `fit` starts.

    If `batch_size` is "auto", or `holdout_fraction` is None, the option gets a concrete value. The same holds
    for `evaluate_every` if it is None and no option uses validation scores. Other options stay unchanged.

    Args:
        options: Options of the estimator by name.
        rows: Number of rows in the table.

    Raises:
        EnvariantError: If the string for an averaging rule or a keep rule is invalid.
    """
    validated = uses_validation(options)
    chosen = dict(options)
    if options["batch_size"] == "auto":
        minibatches = rows > _FULL_BATCH or options["class_weights"] is not None or options["accumulate"] != 1
        chosen["batch_size"] = _BATCH if minibatches else "full"
    if options["holdout_fraction"] is None:
        chosen["holdout_fraction"] = _HOLDOUT if validated else 0.0
    if options["evaluate_every"] is None and not validated:
        chosen["evaluate_every"] = options["steps"]
    return chosen


def list_options(initializer: Callable[..., None]) -> Callable[..., None]:
    """Replace `**options` in the signature of a constructor with one keyword parameter per option.

    Scikit-learn reads the names and defaults of an estimator's parameters from this signature.

    Args:
        initializer: Constructor with the parameters `self`, `algorithm`, further keywords and `**options`.
    """
    types = RunSpec.model_fields
    annotations: dict[str, Any] = {name: types[name].annotation for name in defaults()}
    annotations["batch_size"] = int | Literal["auto", "full"]
    options = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=value, annotation=annotations[name])
        for name, value in defaults().items()
        if name != "algorithm"
    ]
    signature = Signature.from_callable(initializer)
    own = [each for each in signature.parameters.values() if each.kind != Parameter.VAR_KEYWORD]
    own.sort(key=lambda each: each.kind)
    setattr(initializer, "__signature__", signature.replace(parameters=[*own[:2], *options, *own[2:]]))  # noqa: B010
    return initializer
