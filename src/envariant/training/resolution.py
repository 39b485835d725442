"""Resolve a `RunSpec`: names become objects, and options left open take what the data suggest."""

import copy
import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from torch import nn

from envariant import data as sources
from envariant.algorithms import (
    Algorithm,
    Composition,
    Recipe,
    as_algorithm,
    composing,
    identity,
    resolve_schedules,
    settings_of,
)
from envariant.core.environments import DefaultSettings, EnvironmentSet, EnvironmentSource
from envariant.core.errors import EnvariantError
from envariant.core.schedules import Constant, Schedule, schedule
from envariant.data.validation_split import ValidationSplit
from envariant.models import ModelConfig, model_config
from envariant.predictors import Predictor, predictor
from envariant.training.augmentation import RandomAffine, augmentation
from envariant.training.network import ModelBuilder
from envariant.training.optimizers import optimizer_config
from envariant.training.pretraining import Initializer, initializer_named
from envariant.training.replicas import Replica, Seeds
from envariant.training.run_config import RunConfig
from envariant.training.run_spec import RunSpec, shown, text_of


@final
@dataclass(frozen=True)
class ResolvedAlgorithm:
    """An algorithm with all its hyperparameters, and what the data suggest for it.

    Attributes:
        name: Name shown in tables.
        trained: Algorithm that trains a network, or predictor that is fitted as a whole.
        hyperparameters: Every hyperparameter by name.
        defaults: Settings that the data suggest.
        suggested: Hyperparameters under the suggested settings.
    """

    name: str
    trained: Algorithm | Predictor
    hyperparameters: Mapping[str, Any]
    defaults: DefaultSettings
    suggested: Mapping[str, Any]


@final
@dataclass(frozen=True)
class ResolvedRun:
    """Everything that a `RunSpec` stands for.

    Attributes:
        spec: The options with everything filled in, as text where they are objects.
        reference: The options that the data suggest for this algorithm.
        source: Data source, validation split included.
        algorithm: The algorithm.
        config: What all replicas of the run share.
        pretraining: Pretraining of the initial weights, if any.
        learning_rate: Learning rate or its schedule.
        identity: Content hash of the run (`RunSpec.identity`), without seeds.
    """

    spec: RunSpec
    reference: RunSpec
    source: EnvironmentSource
    algorithm: ResolvedAlgorithm
    config: RunConfig
    pretraining: Initializer | None
    learning_rate: float | Schedule
    identity: str

    def replica(self, index: int, seeds: Seeds) -> Replica:
        """Return one replica with its own seeds."""
        trained = cast("Algorithm", self.algorithm.trained)
        return Replica(index, seeds, trained, cast("Any", self.learning_rate), self.spec.weight_decay)

    def remarks(self) -> tuple[str, ...]:
        """Return one sentence per schedule that never takes effect within the run."""
        return remarks(self.algorithm, self.learning_rate, self.config.steps)


def source_of(data: object) -> EnvironmentSource:
    """Return the source that a name stands for, or the source itself.

    Raises:
        EnvariantError: If it is neither, or there is no source of that name.
    """
    if isinstance(data, str):
        return sources.source(data)
    if isinstance(data, EnvironmentSource):
        return data
    raise _wrong("data", "a name, an EnvironmentSource or an EnvironmentSet", data)


def resolve_algorithm(
    requested: object, hyperparameters: Mapping[str, Any], source: EnvironmentSource, steps: int | None = None
) -> ResolvedAlgorithm:
    """Return the algorithm that a name or an object stands for.

    Args:
        requested: Text such as `vrex + and-mask`, or an algorithm, recipe, part or predictor.
        hyperparameters: Changes to what is suggested; only for names and recipes.
        source: Data whose suggestions apply.
        steps: Length of the run, to which relative switch points of schedules refer; None keeps them.

    Raises:
        EnvariantError: If there is no such algorithm or hyperparameter.
    """
    known = predictor(requested)
    if known is not None:
        if hyperparameters:
            raise EnvariantError(f"{known.name}: takes no hyperparameters; set them in the object")
        return ResolvedAlgorithm(known.name, known, {}, source.default_settings(known.name), {})
    if isinstance(requested, Recipe):
        suggestion = source.default_settings(requested.name)
        usual = requested.own(suggestion.hyperparameters)
        plain, built = requested.build(usual), requested.build({**usual, **hyperparameters})
        settings, suggested = ({"as built": identity(each)} for each in (built, plain))
        return ResolvedAlgorithm(requested.name, _timed(built, steps), settings, suggestion, suggested)
    if not isinstance(requested, str):
        built = as_algorithm(cast("Any", requested))
        if hyperparameters and isinstance(built, Composition):
            built = Recipe(built.name, "", built).build(hyperparameters)
        elif hyperparameters:
            raise EnvariantError(
                "hyperparameters: apply to named algorithms and compositions; set those of an object in it"
            )
        suggestion = source.default_settings(built.name)
        return ResolvedAlgorithm(
            built.name, _timed(built, steps), {"as built": identity(built)}, suggestion, {}
        )
    terms = composing.terms(requested)
    suggestion = source.default_settings(terms[0][0].name)
    # In a composition, what is suggested for the loss as a whole is what suits the first term.
    usual = [suggestion.hyperparameters]
    usual += [known.own(source.default_settings(known.name).hyperparameters) for known, _ in terms[1:]]
    plain, given = (
        composing.compose(
            requested, [known.build({**s, **g}) for (known, g), s in zip(each, usual, strict=True)]
        )
        for each in ([(known, {}) for known, _ in terms], terms)
    )
    built = given.build(hyperparameters)
    settings, suggested = (settings_of(given.name, each) for each in (built, plain.default))
    return ResolvedAlgorithm(given.name, _timed(built, steps), settings, suggestion, suggested)


def resolve(requested: RunSpec, source: EnvironmentSource | None = None) -> ResolvedRun:
    """Return everything that the options of a run stand for.

    Args:
        requested: The options.
        source: The data, if they were loaded before.

    Raises:
        EnvariantError: If a name is unknown or options do not fit one another.
    """
    source = (source or source_of(requested.data)).with_test_environments(requested.test_environments)
    first = resolve_algorithm(requested.algorithm, requested.hyperparameters, source)
    defaults = first.defaults
    fitted = isinstance(first.trained, Predictor)
    steps = 1 if fitted else requested.steps or defaults.steps
    algorithm = resolve_algorithm(requested.algorithm, requested.hyperparameters, source, steps)
    returns_updates = isinstance(algorithm.trained, Algorithm) and algorithm.trained.returns_updates
    if returns_updates and (requested.weight_decay or requested.optimizer is not None):
        raise EnvariantError(
            f"{algorithm.name}: makes its own updates at the run's learning rate; leave optimizer and "
            f"weight_decay out"
        )
    suggested: dict[str, Any] = {
        "model": defaults.model,
        "steps": steps if fitted else defaults.steps,
        "batch_size": defaults.batch_size or "full",
        "learning_rate": defaults.learning_rate,
        "optimizer": defaults.optimizer,
    }
    left_open = {key: value for key, value in suggested.items() if getattr(requested, key) is None}
    complete = requested.but(**{**left_open, "steps": steps})
    named = {"data": source.name, "algorithm": algorithm.name}
    spec = complete.but(
        **named,
        hyperparameters=algorithm.hyperparameters,
        evaluate_every=complete.evaluate_every or max(1, round(steps / 25)),
    ).described()
    share, test = requested.holdout_fraction, requested.test_environments
    return ResolvedRun(
        spec,
        RunSpec(**named, hyperparameters=algorithm.suggested, **suggested),
        ValidationSplit(source, share, test) if share else source,
        algorithm,
        _config(complete, spec),
        _initializer(requested.init),
        _rate(complete.learning_rate, steps),
        spec.identity(_identities(requested, source, algorithm)),
    )


def _config(complete: RunSpec, spec: RunSpec) -> RunConfig:
    """Return what all replicas share.

    Args:
        complete: The options with nothing left open, objects as they are.
        spec: The same with objects as text.
    """
    return RunConfig(
        model=model_builder(complete.model),
        optimizer=optimizer_config(complete.optimizer),
        steps=cast("int", spec.steps),
        batch_size=None if complete.batch_size == "full" else complete.batch_size,
        evaluate_every=cast("int", spec.evaluate_every),
        precision=complete.precision,
        augmentation=_augmentation(complete.augmentation),
        test=complete.test_environments,
        device=device_named(complete.device),
        compiled=complete.compile,
        freeze=complete.freeze,
    )


def remarks(algorithm: ResolvedAlgorithm, learning_rate: object, steps: int) -> tuple[str, ...]:
    """Return one sentence per schedule that never takes effect within a run.

    Args:
        algorithm: The algorithm.
        learning_rate: Learning rate or its schedule.
        steps: Length of the run.
    """
    rate = _rate(learning_rate, steps)
    schedules = {"learning_rate": rate} if isinstance(rate, Schedule) else {}
    if isinstance(algorithm.trained, Composition):
        schedules |= algorithm.trained.schedules()
    return tuple(
        f"{name}: {course} changes only after this run of {steps} steps has ended; train longer, or give the "
        f"switch point as a share of the run, such as at=40%"
        for name, course in schedules.items()
        if not course.takes_effect_within(steps)
    )


def check_environments(
    algorithm: ResolvedAlgorithm, environments: EnvironmentSet, roles: Mapping[str, str]
) -> None:
    """Reject data with fewer training environments than the algorithm needs.

    Raises:
        EnvariantError: If there are too few.
    """
    training = [name for name, role in roles.items() if role == "train"]
    needed = algorithm.trained.minimum_environments
    if len(training) < needed:
        raise EnvariantError(
            f"{algorithm.name}: needs at least {needed} training environments, but '{environments.name}' "
            f"leaves {len(training)} ({', '.join(training)}); use fewer test environments, or erm"
        )


def model_builder(model: object) -> ModelBuilder:
    """Return the function that builds a model for an input shape and a number of outputs.

    Raises:
        EnvariantError: If it is no name, ModelConfig, module or function.
    """
    if isinstance(model, str):
        model = model_config(model)
    if isinstance(model, ModelConfig):
        return model.build
    if isinstance(model, nn.Module):
        module = model
        return lambda _shape, _outputs: copy.deepcopy(module)
    if isinstance(model, type) and issubclass(model, ModelConfig):
        return model().build
    if callable(model):
        function = cast("Callable[[], nn.Module]", model)
        return lambda _shape, _outputs: function()
    raise _wrong("model", "a name, a ModelConfig, a module or a function that returns a new module", model)


def device_named(name: str) -> torch.device:
    """Return the device that "cpu", "cuda" or "auto" names.

    Raises:
        EnvariantError: If there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise EnvariantError("device: this PyTorch sees no CUDA device; use cpu")
    return torch.device(name)


def _timed(algorithm: Algorithm, steps: int | None) -> Algorithm:
    """Return the algorithm with relative switch points as step numbers."""
    return algorithm if steps is None else resolve_schedules(algorithm, steps)


def _augmentation(requested: object) -> RandomAffine | None:
    if requested is None or isinstance(requested, RandomAffine):
        return requested
    if isinstance(requested, str):
        return augmentation(requested)
    raise _wrong("augmentation", "a name such as affine(rotation=15)", requested)


def _initializer(requested: object) -> Initializer | None:
    if requested is None or isinstance(requested, Initializer):
        return requested
    if isinstance(requested, str):
        return initializer_named(requested)
    raise _wrong("init", "a name such as erm(steps=100) or rfc", requested)


def _wrong(option: str, allowed: str, value: object) -> EnvariantError:
    """Return the error of an option whose value is of none of the allowed types."""
    if isinstance(value, type):
        return EnvariantError(
            f"{option}: {value.__name__} is a class; pass an instance, as in {value.__name__}(…)"
        )
    return EnvariantError(f"{option} must be {allowed}; got {shown(value)}")


def _rate(rate: object, steps: int) -> float | Schedule:
    if isinstance(rate, str | Schedule):
        course = schedule(rate)
        return course.value if isinstance(course, Constant) else course.resolve(steps)
    return cast("float", rate)


def algorithm_identity(requested: object) -> str:
    """Return a description of what an algorithm or predictor computes, for hashing.

    Raises:
        EnvariantError: If it is unknown, or has a value without a content to compare.
    """
    return identity(cast("Any", predictor(requested) or as_algorithm(cast("Any", requested))))


def _identities(
    requested: RunSpec, source: EnvironmentSource, algorithm: ResolvedAlgorithm
) -> dict[str, str]:
    """Return content hashes of the options that hold more than their text says."""
    # The algorithm holds its hyperparameters.
    identities = {
        "data": source.identity(),
        "algorithm": algorithm_identity(algorithm.trained),
        "hyperparameters": "",
    }
    for key in ("model", "optimizer", "init", "augmentation"):
        value = getattr(requested, key)
        if value is not None and not isinstance(value, str):
            identities[key] = content_hash(value)
    return identities


def content_hash(value: object) -> str:
    """Return a hash of what an own model or optimizer is: its structure, weights and source.

    Args:
        value: A module, a function, a class or a frozen dataclass.
    """
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(value, nn.Module):
        digest.update(repr(value).encode())
        for name, tensor in value.state_dict().items():
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()
    parts = getattr(value, "func", None), getattr(value, "args", ()), getattr(value, "keywords", {})
    if parts[0] is not None:
        digest.update(repr((content_hash(parts[0]), parts[1], sorted(parts[2].items()))).encode())
        return digest.hexdigest()
    digest.update(f"{type(value).__qualname__} {text_of(value)}".encode())
    try:
        digest.update(inspect.getsource(cast("Any", value if callable(value) else type(value))).encode())
    except (OSError, TypeError):
        digest.update(repr(value).encode())
    return digest.hexdigest()
