"""What a run is made of: names and objects in, checked parts out; what is not given is what the data suggest.

`train` and studies begin here, so that a run of a study is the run that the same words train.
"""

import copy
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, SupportsIndex, cast, final

import torch
from torch import nn

from envariant import data as sources
from envariant.algorithms import Algorithm, Part, Recipe, as_algorithm, composing, settings_of
from envariant.core.environments import DefaultSettings, EnvironmentSet, EnvironmentSource
from envariant.core.errors import EnvariantError, unknown_name
from envariant.data.validation_split import ValidationSplit
from envariant.models import ModelConfig, model_config
from envariant.training.augmentation import augmentation as augmentation_named
from envariant.training.network import ModelBuilder
from envariant.training.optimizers import optimizer_config
from envariant.training.pretraining import Initializer, initializer_named
from envariant.training.replicas import Replica, Seeds
from envariant.training.run_config import RunConfig

ModelLike = str | ModelConfig | nn.Module | Callable[[], nn.Module]


@final
@dataclass(frozen=True)
class Chosen:
    """An algorithm with its name, all its settings, and what the data suggest for it."""

    name: str
    algorithm: Algorithm
    hyperparameters: Mapping[str, Any]
    suggestion: DefaultSettings
    suggested: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        wanted: Algorithm | Recipe | Part | str,
        changes: Mapping[str, Any],
        source: EnvironmentSource,
    ) -> "Chosen":
        if not isinstance(wanted, str):
            algorithm = as_algorithm(wanted, changes)
            suggestion = source.default_settings(algorithm.name)
            return cls(algorithm.name, algorithm, {"as built": repr(algorithm)}, suggestion, {})
        terms = composing.terms(wanted)
        suggestion = source.default_settings(terms[0][0].name)
        # In a sum, what is suggested for the loss as a whole is what suits the first term.
        usual = [suggestion.hyperparameters]
        usual += [known.own(source.default_settings(known.name).hyperparameters) for known, _ in terms[1:]]
        plain, given = (
            composing.compose(
                wanted,
                [known.build({**s, **g}) for (known, g), s in zip(each, usual, strict=True)],
            )
            for each in ([(known, {}) for known, _ in terms], terms)
        )
        built = given.build(changes)
        settings, suggested = (settings_of(given.name, each) for each in (built, plain.default))
        return cls(given.name, built, settings, suggestion, suggested)


@final
@dataclass(frozen=True)
class Assembly:
    """The parts of a run.

    Attributes:
        data, model, optimizer: what they are called.
        source: where replicas draw their data, rows that are held out among them.
        chosen: the algorithm.
        plan: what all replicas share.
        initializer: of their weights, if any.
        learning_rate, weight_decay: of the optimizer.
        holdout_fraction: share of every training environment's rows that is held out.
    """

    data: str
    model: str
    optimizer: str
    source: EnvironmentSource
    chosen: Chosen
    plan: RunConfig
    initializer: Initializer | None
    learning_rate: float
    weight_decay: float
    holdout_fraction: float

    def replica(self, index: int, seeds: Seeds) -> Replica:
        """One run with seeds of its own."""
        return Replica(index, seeds, self.chosen.algorithm, self.learning_rate, self.weight_decay)


def assembled(
    data: EnvironmentSource | str,
    algorithm: Algorithm | Recipe | Part | str,
    *,
    hyperparameters: Mapping[str, Any] | None = None,
    model: ModelLike | None = None,
    steps: int | None = None,
    batch_size: int | Literal["full"] | None = None,
    learning_rate: float | None = None,
    weight_decay: float = 0.0,
    optimizer: str | None = None,
    precision: str = "auto",
    test_environments: Sequence[str] | None = None,
    holdout_fraction: float = 0.0,
    evaluate_every: int | None = None,
    augmentation: str | None = None,
    init: str | None = None,
    freeze: str | None = None,
    device: str = "auto",
    compile: bool = False,  # noqa: A002
) -> Assembly:
    """The parts that these words name, as `envariant.train` describes them.

    Raises:
        EnvariantError: a word is unknown or a number makes no sense; the message says how to mend it.
    """
    source = sources.source(data) if isinstance(data, str) else data
    if not isinstance(source, EnvironmentSource):
        raise EnvariantError(
            f"data must be a name, a source or an EnvironmentSet; got {type(source).__name__}"
        )
    source = source.with_test_environments(test_environments)
    chosen = Chosen.of(algorithm, hyperparameters or {}, source)
    suggestion = chosen.suggestion
    rate = suggestion.learning_rate if learning_rate is None else float(learning_rate)
    weight_decay, holdout_fraction = float(weight_decay), float(holdout_fraction)
    if not 0 < rate < math.inf or not 0 <= weight_decay < math.inf:
        raise EnvariantError(
            f"learning rate must exceed 0 and weight decay be at least 0; got {rate:g}, {weight_decay:g}"
        )
    if chosen.algorithm.returns_updates and (weight_decay or optimizer is not None):
        raise EnvariantError(
            f"{chosen.name}: makes its own steps at the run's learning rate; leave optimizer and weight "
            f"decay out"
        )
    steps = at_least("steps", 1, suggestion.steps if steps is None else steps)
    every = max(1, round(steps / 25)) if evaluate_every is None else evaluate_every
    test = None if test_environments is None else tuple(test_environments)
    plan = RunConfig(
        model=_builder(model or suggestion.model),
        optimizer=optimizer_config(optimizer or suggestion.optimizer),
        steps=steps,
        batch_size=_rows(suggestion.batch_size if batch_size is None else batch_size),
        evaluate_every=at_least("evaluate-every", 1, every),
        precision=precision,
        augmentation=augmentation_named(augmentation),
        test=test,
        device=device_named(device),
        compiled=compile,
        freeze=_frozen(freeze, init),
    )
    return Assembly(
        source.name,
        _model_name(model or suggestion.model),
        optimizer or suggestion.optimizer,
        ValidationSplit(source, holdout_fraction, test) if holdout_fraction else source,
        chosen,
        plan,
        initializer_named(init),
        rate,
        weight_decay,
        holdout_fraction,
    )


def check_environments(chosen: Chosen, environments: EnvironmentSet, roles: Mapping[str, str]) -> None:
    """Refuses environments too few for the algorithm.

    Raises:
        EnvariantError: it needs more to train on.
    """
    training = [name for name, role in roles.items() if role == "train"]
    needed = chosen.algorithm.minimum_environments
    if len(training) < needed:
        raise EnvariantError(
            f"{chosen.name}: needs at least {needed} training environments, to see what holds in all of "
            f"them; '{environments.name}' leaves {len(training)} ({', '.join(training)}). "
            f"Hold out fewer, or use erm"
        )


def _builder(model: ModelLike) -> ModelBuilder:
    if isinstance(model, str):
        model = model_config(model)
    if isinstance(model, ModelConfig):
        return model.build
    if isinstance(model, nn.Module):
        module = model
        return lambda _shape, _outputs: copy.deepcopy(module)
    function = model
    return lambda _shape, _outputs: function()


def _model_name(model: ModelLike) -> str:
    if isinstance(model, str):
        return model
    if isinstance(model, nn.Module | ModelConfig):
        return type(model).__name__ if isinstance(model, nn.Module) else str(model)
    return getattr(model, "__qualname__", repr(model))


def _rows(size: int | str | None) -> int | None:
    if size is None or size == "full":
        return None
    return at_least("batch size", 1, size)


def at_least(what: str, least: int, value: object) -> int:
    """The value as a whole number.

    Raises:
        EnvariantError: it is none, or too small.
    """
    try:
        whole = operator.index(cast("SupportsIndex", value))
    except TypeError:
        raise EnvariantError(f"{what} must be a whole number; got {value!r}") from None
    if whole < least:
        raise EnvariantError(f"{what} must be at least {least}; got {whole}")
    return whole


def _frozen(what: str | None, init: str | None) -> str | None:
    if what not in (None, "features"):
        raise unknown_name("freeze", what, ("features",))
    if what is not None and init is None:
        raise EnvariantError(
            "freeze: features as they are drawn are of no use; give init as well, such as rfc"
        )
    return what


def device_named(name: str) -> torch.device:
    """The device that "cpu", "cuda" or "auto" names.

    Raises:
        EnvariantError: it is none of these, or there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise EnvariantError(f"device must be auto, cpu or cuda; got '{name}'")
    if name == "cuda" and not torch.cuda.is_available():
        raise EnvariantError("device: this PyTorch sees no CUDA device; use cpu")
    return torch.device(name)
