"""Build algorithms from recipes, parts, and strings such as `vrex + and-mask(threshold=0.8)`."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any

from envariant.algorithms.base import (
    Algorithm,
    EnvironmentInference,
    GradientAggregator,
    GradientPenalty,
    Part,
    Penalty,
    RiskAggregator,
    TrainingStep,
)
from envariant.algorithms.catalogue import describe
from envariant.algorithms.composition import Composition
from envariant.algorithms.recipe_base import LOSS, Recipe
from envariant.algorithms.recipes import RECIPES
from envariant.core import specs
from envariant.core.errors import EnvariantError, shown
from envariant.core.plugins import ALGORITHMS, Plugins
from envariant.core.schedules import Schedule
from envariant.core.terms import split_terms

PLUGINS = Plugins[Recipe](
    ALGORITHMS,
    "algorithm",
    requirement="a Recipe of that name",
    fits=lambda plugin, name: _is_usable(plugin, name),
)


def as_algorithm(
    algorithm: Algorithm | Recipe | Part | str, settings: Mapping[str, Any] | None = None
) -> Algorithm:
    """Convert a string, recipe, part or algorithm object to an algorithm.

    Args:
        algorithm: String ("vrex", "vrex + and-mask"), `Recipe`, part (`VREx(30)`, `AndMask()`, a training
            step) or `Algorithm`. A part is composed with the mean risk and the mean gradient.
        settings: New values by hyperparameter name, for a string or a recipe only. Other hyperparameters keep
            their defaults.

    Raises:
        EnvariantError: If a name or setting is unknown, `algorithm` has another type, or settings are given
            for a part or an `Algorithm`.

    Example:
        >>> from envariant.algorithms import AndMask
        >>> as_algorithm(AndMask(threshold=0.8)) == as_algorithm("and-mask", {"threshold": 0.8})
        True
    """
    if isinstance(algorithm, str):
        algorithm = recipe(algorithm)
    if isinstance(algorithm, Recipe):
        return algorithm.build(settings or {})
    if isinstance(algorithm, type):
        name = algorithm.__name__
        raise EnvariantError(f"algorithm: {name} is a class; pass an instance: {name}()")
    if settings:
        raise EnvariantError(
            "hyperparameters can be passed only with the name of an algorithm or a recipe; for an algorithm "
            "object, set them when you construct the object"
        )
    match algorithm:
        case Algorithm():
            return algorithm
        case RiskAggregator():
            return Composition(risk_aggregator=algorithm)
        case Penalty() | GradientPenalty():
            return Composition(penalties=(algorithm,))
        case GradientAggregator():
            return Composition(gradient_aggregator=algorithm)
        case TrainingStep():
            return Composition(training_step=algorithm)
        case EnvironmentInference():
            return Composition(environment_inference=algorithm)
        case _:
            raise EnvariantError(
                f"algorithm must be a name such as 'vrex', a Recipe, a part such as VREx(), or an Algorithm, "
                f"got {algorithm!r}"
            )


def recipe(text: str) -> Recipe:
    """Return the recipe for a string such as `irm` or `vrex + and-mask(threshold=0.8)`.

    Raises:
        EnvariantError: If a name is unknown, or the algorithms cannot be composed.
    """
    parsed = terms(text)
    if len(parsed) == 1 and not parsed[0][1]:
        return parsed[0][0]
    return compose(text, [term.build(settings) for term, settings in parsed])


def terms(text: str) -> list[tuple[Recipe, dict[str, Any]]]:
    """Parse a string such as `vrex + coral(1.0)` into terms, each with a recipe and its settings.

    Raises:
        EnvariantError: If a name or a setting is unknown.
    """
    if not isinstance(text, str):
        raise EnvariantError(f"algorithm must be a string such as 'vrex + and-mask'; got {shown(text)}")
    parsed: list[tuple[Recipe, dict[str, Any]]] = []
    for term in split_terms(text):
        spec = specs.parse_as("algorithm", term)
        known = RECIPES.get(spec.name) or PLUGINS.load(spec.name, RECIPES)
        parsed.append((known, known.settings(spec)))
    return parsed


def compose(text: str, built: Sequence[Composition]) -> Recipe:
    """Compose several algorithms into one recipe.

    Args:
        text: Terms joined by `+`, such as `vrex + coral(1.0)`.
        built: Algorithms built from the terms of `text`, in the same order.

    Raises:
        EnvariantError: If the algorithms cannot be composed.
    """
    known = [term for term, _ in terms(text)]
    summary, names = " ".join(term.summary for term in known), [term.name for term in known]
    composed = Recipe(" + ".join(names), summary, reduce(add, built))
    if repeated := [name for name in names if names.count(name) > 1]:
        raise EnvariantError(f"{composed.name}: {repeated[0]} occurs twice; name it once")
    return composed


def all_recipes(on_broken: Callable[[str], object] | None = None) -> dict[str, Recipe]:
    """Return all recipes by name, including recipes of installed plug-ins.

    Args:
        on_broken: Function called for each plug-in that is skipped because it cannot be loaded. Its argument
            is a one-line message. Default: issue a warning.
    """
    installed, failures = PLUGINS.load_all(RECIPES)
    for failure in failures:
        (on_broken or warnings.warn)(failure)
    return {**RECIPES, **installed}


def settings_of(name: str, algorithm: Composition) -> dict[str, Any]:
    """Return the values of all hyperparameters by name, as JSON-serializable values.

    Args:
        name: Name of the recipe.
        algorithm: Algorithm built from the recipe.
    """
    owners: dict[str, object] = {LOSS: algorithm, **{part.name: part for part in algorithm.parts}}
    return {h.name: _stored(getattr(owners[h.part], h.field)) for h in recipe(name).hyperparameters}


def _is_usable(plugin: object, name: str) -> bool:
    # Described here, so that a recipe without a description is reported instead of breaking the list.
    return isinstance(plugin, Recipe) and plugin.name == name and describe(plugin).name == name


def _stored(value: Any) -> Any:
    if isinstance(value, RiskAggregator):
        return value.name
    return str(value) if isinstance(value, Schedule) else value
