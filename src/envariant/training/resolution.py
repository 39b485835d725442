"""Resolve the options of a run: look up names, and fill in the default settings of the data set."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast, final

import torch

from envariant import data as sources
from envariant.algorithms import (
    RECIPES,
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
from envariant.core.errors import EnvariantError, closest_name, unknown_name
from envariant.core.schedules import Schedule
from envariant.data.class_weighting import ClassWeighting
from envariant.data.validation_split import ValidationSplit
from envariant.data.with_loss import WithLoss, check_loss
from envariant.predictors import PREDICTORS, Predictor, predictor
from envariant.training.augmentation import Augmentation, augmentation
from envariant.training.averaging import NO_AVERAGE, averaging
from envariant.training.content_hash import content_hash
from envariant.training.early_stopping import stop_rule
from envariant.training.execution import Execution, execution_request
from envariant.training.keep_rules import keep_rule
from envariant.training.memory_budget import parse as memory_in_bytes
from envariant.training.model_builder import model_builder, wrong_type
from envariant.training.optimizers import OptimizerConfig, optimizer_config
from envariant.training.option_conflicts import check_full_batch, check_own_updates
from envariant.training.parameter_groups import ParameterGroups, grouped
from envariant.training.pretraining import Initializer, initializer_named
from envariant.training.replicas import Replica, Seeds
from envariant.training.run_config import RunConfig
from envariant.training.run_spec import RunSpec
from envariant.training.schedule_notes import SCALED, idle_schedules, scaling_notes


@final
@dataclass(frozen=True)
class ResolvedAlgorithm:
    """Algorithm with all its hyperparameters, and the default settings of its data set.

    Attributes:
        name: Name of the algorithm for tables.
        trained: Algorithm that trains a network, or predictor that is fitted instead of a network.
        hyperparameters: All hyperparameters by name. For a recipe or an algorithm object, a single entry
            "as built" identifies the algorithm; for a predictor, there is no entry.
        defaults: Default settings of the data set for the algorithm, such as model, optimizer and steps.
        suggested: Value that `hyperparameters` would have if the user had set none; empty for predictors and
            algorithm objects.
        scaled: Remarks, one for each suggested schedule that was scaled to the number of steps.
    """

    name: str
    trained: Algorithm | Predictor
    hyperparameters: Mapping[str, Any]
    defaults: DefaultSettings
    suggested: Mapping[str, Any]
    scaled: tuple[str, ...] = ()


@final
@dataclass(frozen=True)
class ResolvedRun:
    """Run whose options have been filled in and converted to objects.

    Attributes:
        spec: Options with defaults filled in; objects are represented by strings.
        reference: Default options of the data set for this algorithm.
        source: Data source, including the validation split.
        algorithm: Algorithm with its hyperparameters.
        config: Settings shared by all replicas.
        pretraining: Pretraining method for the initial weights, or None.
        learning_rate: Learning rate of parameters in no group: a number or a schedule.
        groups: Learning rates and weight decays by parameter group.
        identity: Content hash of the run, independent of file locations (`RunSpec.identity`).
    """

    spec: RunSpec
    reference: RunSpec
    source: EnvironmentSource
    algorithm: ResolvedAlgorithm
    config: RunConfig
    pretraining: Initializer | None
    learning_rate: float | Schedule
    groups: ParameterGroups
    identity: str

    def replica(self, index: int, seeds: Seeds) -> Replica:
        """Create the replica with a given index and seeds."""
        trained = cast("Algorithm", self.algorithm.trained)
        decay = 0.0 if self.groups.decays is not None else self.spec.weight_decay
        return Replica(index, seeds, trained, self.learning_rate, decay, groups=self.groups)

    def remarks(self) -> tuple[str, ...]:
        """Return a remark for each schedule that was rescaled for the run, or has no effect in the run."""
        rate = self.groups.rates or self.learning_rate
        return remarks(self.algorithm, rate, self.config.steps, self.config.optimizer)


def source_of(data: object) -> EnvironmentSource:
    """Convert a name such as `colored-mnist` to a data source; return data sources unchanged.

    Raises:
        EnvariantError: If `data` is neither a source nor the name of one.
    """
    if isinstance(data, str):
        return sources.source(data)
    if isinstance(data, EnvironmentSource):
        return data
    raise wrong_type("data", "a name, an EnvironmentSource or an EnvironmentSet", data)


def resolve_algorithm(
    requested: object, hyperparameters: Mapping[str, Any], source: EnvironmentSource, steps: int | None = None
) -> ResolvedAlgorithm:
    """Convert a name or an object to an algorithm with values for all hyperparameters.

    Args:
        requested: String such as `vrex + and-mask`, or an algorithm, recipe, part or predictor.
        hyperparameters: Hyperparameters that override the defaults; allowed only if `requested` is a name,
            recipe or composition.
        source: Data source whose default settings apply.
        steps: Number of steps of the run. Suggested schedules are scaled to this number, and switch points in
            percent are converted to steps. Default: schedules stay unchanged.

    Raises:
        EnvariantError: If an algorithm or hyperparameter is unknown.
    """
    known = predictor(requested)
    if known is not None:
        if hyperparameters:
            raise EnvariantError(
                f"{known.name}: takes no hyperparameters; pass a predictor object with the settings you want"
            )
        return ResolvedAlgorithm(known.name, known, {}, source.default_settings(known.name), {})
    if isinstance(requested, Recipe):
        suggestion = source.default_settings(requested.name)
        usual, length = requested.own(suggestion.hyperparameters), suggestion.steps
        recipe, scaled = requested.rescale(usual, length, steps or length)
        plain, built = recipe.build(scaled), recipe.build({**scaled, **hyperparameters})
        settings, suggested = ({"as built": identity(each)} for each in (built, plain))
        notes = scaling_notes(requested.build({**usual, **hyperparameters}), built, length, steps)
        return ResolvedAlgorithm(requested.name, _timed(built, steps), settings, suggestion, suggested, notes)
    if not isinstance(requested, str):
        built = as_algorithm(cast("Any", requested))
        if hyperparameters and isinstance(built, Composition):
            built = Recipe(built.name, "", built).build(hyperparameters)
        elif hyperparameters:
            raise EnvariantError(
                "hyperparameters: can be passed only with the name of an algorithm or with a composition; "
                "for another algorithm object, set them when you construct it"
            )
        suggestion = source.default_settings(built.name)
        return ResolvedAlgorithm(
            built.name, _timed(built, steps), {"as built": identity(built)}, suggestion, {}
        )
    terms = terms_of(requested)
    suggestion = source.default_settings(terms[0][0].name)
    length = suggestion.steps
    # Default settings that concern the whole loss are those of the first term.
    usual = [suggestion.hyperparameters]
    usual += [known.own(source.default_settings(known.name).hyperparameters) for known, _ in terms[1:]]

    def composed(run_length: int, *, with_given: bool) -> Recipe:
        scaled = [k.rescale(s, length, run_length) for (k, _), s in zip(terms, usual, strict=True)]
        built = [
            known.build({**suggested, **(given if with_given else {})})
            for (known, suggested), (_, given) in zip(scaled, terms, strict=True)
        ]
        return composing.compose(requested, built)

    plain, given = (composed(steps or length, with_given=each) for each in (False, True))
    built = given.build(hyperparameters)
    settings, suggested = (settings_of(given.name, each) for each in (built, plain.default))
    notes = scaling_notes(composed(length, with_given=True).build(hyperparameters), built, length, steps)
    return ResolvedAlgorithm(given.name, _timed(built, steps), settings, suggestion, suggested, notes)


def terms_of(text: str) -> list[tuple[Recipe, dict[str, Any]]]:
    """Parse a string such as `vrex + coral(1.0)` into the recipe and settings of each term.

    Raises:
        EnvariantError: If a name or a setting is unknown, or the string is the name of a predictor.
    """
    try:
        return composing.terms(text)
    except EnvariantError:
        name = text.partition("(")[0].strip()
        if name in PREDICTORS:
            raise EnvariantError(
                f"{name}: takes no settings in a string; pass an object, as in {PREDICTORS[name]}(…)"
            ) from None
        # A name that is registered is not misspelled, though its plug-in may be broken.
        known = name in RECIPES or name in composing.PLUGINS.names()
        if not known and closest_name(name, PREDICTORS) is not None:
            raise unknown_name("algorithm", text, (*RECIPES, *PREDICTORS)) from None
        raise


def check_objects(options: Mapping[str, Any]) -> None:
    """Check that options such as model, optimizer and device can be converted to objects.

    Args:
        options: Training options by name.

    Raises:
        EnvariantError: If a name is unknown or a setting is not allowed.
    """
    converters: Mapping[str, Callable[[Any], object]] = {
        "model": model_builder,
        "optimizer": optimizer_config,
        "loss": check_loss,
        "init": _initializer,
        "augmentation": _augmentation,
        "device": device_named,
        "memory": memory_in_bytes,
        "average": averaging,
        "keep": keep_rule,
        "stop_early": stop_rule,
    }
    for key, convert in converters.items():
        if options.get(key) is not None:
            convert(options[key])
    how = options.get("execution")
    if how is not None and not isinstance(how, Execution):
        execution_request(how)


def resolve(requested: RunSpec, source: EnvironmentSource | None = None) -> ResolvedRun:
    """Resolve the options of a run: fill in defaults, and look up names.

    Args:
        requested: Options of the run.
        source: Data source. Default: the source specified by `requested.data`.

    Raises:
        EnvariantError: If a name is unknown, or options contradict one another.
    """
    source = (source or source_of(requested.data)).with_test_environments(requested.test_environments)
    first = resolve_algorithm(requested.algorithm, requested.hyperparameters, source)
    defaults = first.defaults
    fitted = isinstance(first.trained, Predictor)
    steps = 1 if fitted else requested.steps or defaults.steps
    algorithm = resolve_algorithm(requested.algorithm, requested.hyperparameters, source, steps)
    returns_updates = isinstance(algorithm.trained, Algorithm) and algorithm.trained.returns_updates
    if returns_updates:
        check_own_updates(algorithm.name, requested)
    suggested: dict[str, Any] = {
        "model": defaults.model,
        "steps": steps if fitted else defaults.steps,
        "batch_size": defaults.batch_size or "full",
        "learning_rate": defaults.learning_rate,
        "optimizer": defaults.optimizer,
    }
    algorithm, suggested["average"] = _with_average(algorithm, requested.average, steps)
    if requested.average == NO_AVERAGE and suggested["average"] is None:
        requested = requested.but(average=None)
    if not fitted and (every := requested.evaluate_every or 1) > steps:
        raise EnvariantError(f"evaluate_every must be at most the number of steps, {steps}; got {every}")
    if not fitted and (requested.batch_size or suggested["batch_size"]) == "full":
        check_full_batch(requested)
    left_open = {key: value for key, value in suggested.items() if getattr(requested, key) is None}
    complete = requested.but(**{**left_open, "steps": steps})
    named = {"data": source.name, "algorithm": algorithm.name}
    spec = complete.but(
        **named,
        hyperparameters=algorithm.hyperparameters,
        evaluate_every=complete.evaluate_every or max(1, round(steps / 25)),
    ).described()
    share, test, weights = requested.holdout_fraction, requested.test_environments, requested.class_weights
    split = ValidationSplit(source, share, test) if share else source
    weighted = split if weights is None else ClassWeighting(split, weights, test)
    rate, groups = grouped(
        complete.learning_rate, complete.weight_decay, defaults.learning_rate, steps,
        weights_only=complete.decay_weights_only,
    )  # fmt: skip
    return ResolvedRun(
        spec,
        RunSpec(**named, hyperparameters=algorithm.suggested, **suggested),
        # In studies and comparisons, the loss applies to the networks only.
        weighted if requested.loss is None or fitted else WithLoss(weighted, requested.loss),
        algorithm,
        _config(complete, spec),
        _initializer(requested.init),
        rate,
        groups,
        spec.identity(_identities(requested, source, algorithm)),
    )


def _with_average(
    algorithm: ResolvedAlgorithm, requested: object, steps: int
) -> tuple[ResolvedAlgorithm, str | None]:
    """Return the algorithm and its default average, scaled to the run; None if it has no default average.

    If scaling changes the average, or another average is requested, a remark is added to the algorithm.

    Args:
        algorithm: Algorithm with its hyperparameters.
        requested: Option `average` of the run.
        steps: Number of steps of the run.
    """
    trained, length = algorithm.trained, algorithm.defaults.steps
    usual = averaging(trained.default_average) if isinstance(trained, Algorithm) else None
    if usual is None:
        return algorithm, None
    scaled, note = usual.rescale(length, steps), ""
    used = scaled if requested is None else averaging(requested)
    if used != scaled:
        note = f"predicts with {used or 'the last weights'} instead of its default average {scaled}"
    elif requested is None and scaled != usual:
        note = f"average {usual} {SCALED} {length} steps; scaled to {scaled} for {steps} steps"
    notes = (f"{algorithm.name}: {note}",) if note else ()
    return replace(algorithm, scaled=(*algorithm.scaled, *notes)), str(scaled)


def _config(complete: RunSpec, spec: RunSpec) -> RunConfig:
    """Return the settings shared by all replicas.

    Args:
        complete: Options with defaults filled in, which may be objects.
        spec: The same options with objects replaced by text.
    """
    average, steps = averaging(complete.average), cast("int", spec.steps)
    return RunConfig(
        model=model_builder(complete.model),
        optimizer=optimizer_config(complete.optimizer),
        steps=steps,
        batch_size=None if complete.batch_size == "full" else complete.batch_size,
        evaluate_every=cast("int", spec.evaluate_every),
        precision=complete.precision,
        augmentation=_augmentation(complete.augmentation),
        test=complete.test_environments,
        device=device_named(complete.device),
        compiled=complete.compile,
        freeze=complete.freeze,
        adapt=complete.adapt,
        clip=complete.clip,
        accumulate=complete.accumulate,
        average=None if average is None else average.resolve(steps),
        keep=keep_rule(complete.keep),
        stop_early=stop_rule(complete.stop_early),
    )


def remarks(
    algorithm: ResolvedAlgorithm, learning_rate: object, steps: int, optimizer: OptimizerConfig | None = None
) -> tuple[str, ...]:
    """Return a remark for each schedule that was rescaled for a run, or has no effect in the run.

    Args:
        algorithm: Algorithm with its hyperparameters.
        learning_rate: Learning rate: a number, a schedule, values by parameter group, or a string.
        steps: Number of steps of the run.
        optimizer: Optimizer of the run.
    """
    return (*algorithm.scaled, *idle_schedules(algorithm.trained, learning_rate, steps, optimizer))


def check_environments(
    algorithm: ResolvedAlgorithm, environments: EnvironmentSet, roles: Mapping[str, str]
) -> None:
    """Check that the data set has enough training environments for the algorithm.

    Raises:
        EnvariantError: If there are too few training environments.
    """
    training = [name for name, role in roles.items() if role == "train"]
    needed = algorithm.trained.minimum_environments
    if len(training) < needed:
        raise EnvariantError(
            f"{algorithm.name}: needs at least {needed} training environments, but '{environments.name}' "
            f"leaves {len(training)} ({', '.join(training)}); use fewer test environments, or erm"
        )


def device_named(name: str) -> torch.device:
    """Return the device for "cpu", "cuda" or "auto" (CUDA if available).

    Raises:
        EnvariantError: If the device is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise EnvariantError("device: this PyTorch sees no CUDA device; use cpu")
    return torch.device(name)


def _timed(algorithm: Algorithm, steps: int | None) -> Algorithm:
    """Return the algorithm with switch points of schedules converted from percent to steps."""
    return algorithm if steps is None else resolve_schedules(algorithm, steps)


def _augmentation(requested: object) -> Augmentation | None:
    if requested is None or isinstance(requested, Augmentation):
        return requested
    if isinstance(requested, str):
        return augmentation(requested)
    raise wrong_type("augmentation", "a name such as affine(rotation=15)", requested)


def _initializer(requested: object) -> Initializer | None:
    if requested is None or isinstance(requested, Initializer):
        return requested
    if isinstance(requested, str):
        return initializer_named(requested)
    raise wrong_type("init", "a name such as erm(steps=100) or rfc", requested)


def algorithm_identity(requested: object) -> str:
    """Return a string to be hashed; algorithms that perform the same computations have the same string.

    Raises:
        EnvariantError: If the algorithm is unknown, or has a setting that cannot be compared by content.
    """
    return identity(cast("Any", predictor(requested) or as_algorithm(cast("Any", requested))))


def _identities(
    requested: RunSpec, source: EnvironmentSource, algorithm: ResolvedAlgorithm
) -> dict[str, str]:
    """Return content hashes of options that are not fully described by their text."""
    # The hash of the algorithm includes its hyperparameters.
    identities = {
        "data": source.identity(),
        "algorithm": algorithm_identity(algorithm.trained),
        "hyperparameters": "",
    }
    objects = "model", "optimizer", "loss", "init", "augmentation", "adapt", "average", "keep", "stop_early"
    for key in objects:
        value = getattr(requested, key)
        if value is not None and not isinstance(value, str):
            identities[key] = content_hash(value)
    # A stored run may be trained again or moved, so the name of its folder does not identify it.
    start = _initializer(requested.init)
    if start is not None and (start_identity := start.identity()) is not None:
        identities["init"] = start_identity
    return identities
