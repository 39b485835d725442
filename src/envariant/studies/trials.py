"""Trials: hyperparameters and learning rates sampled from the search ranges of an algorithm.

A trial depends only on the seed, the algorithm and the trial number, so adding trials does not change earlier
trials.
"""

import hashlib
import json
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast, final

import numpy as np

from envariant.algorithms import Composition, Recipe, as_algorithm, composing
from envariant.core.environments import EnvironmentSource
from envariant.core.errors import EnvariantError, unknown_name
from envariant.core.schedules import Schedule, schedule
from envariant.core.search_space import LogUniform, Range, search_range
from envariant.predictors import predictor
from envariant.training.averaging import NO_AVERAGE
from envariant.training.option_values import learning_rate as rate_of
from envariant.training.parameter_groups import ByGroup
from envariant.training.resolution import ResolvedAlgorithm, check_objects, resolve_algorithm, terms_of
from envariant.training.run_spec import PYTHON_ONLY, SHARED, RunSpec
from envariant.training.store import Trial

Draw = Callable[[str, Range], Any]
"""Function that samples the value of a hyperparameter, given its name and its search range."""

RATE = "learning_rate"
"""Name of the learning rate among an algorithm's search ranges."""

SEARCHABLE = tuple(
    name
    for name in SHARED
    if name
    not in (RATE, "steps", "evaluate_every", "precision", "device", "compile", "shared_init", *PYTHON_ONLY)
)
"""Training options, besides the learning rate, that can have a search range."""


@final
@dataclass(frozen=True)
class SearchSpace:
    """Search ranges of one algorithm in a study.

    Attributes:
        label: Label of the algorithm in the study.
        algorithm: Algorithm, or its name.
        declared: Search ranges that the study declares, by hyperparameter; they replace the algorithm's
            ranges of these hyperparameters.
    """

    label: str
    algorithm: Any
    declared: Mapping[str, Any]

    def ranges(self) -> dict[str, Range]:
        """Return the search ranges set by the study, by name of the hyperparameter or training option.

        Raises:
            EnvariantError: If a range is invalid, or its hyperparameter is unknown or fixed.
        """
        if not self.declared:
            return {}
        if predictor(self.algorithm) is not None:
            raise EnvariantError(f"study: ranges: {self.label} has no hyperparameters to search")
        hyperparameters = recipe_of(self.algorithm).hyperparameters
        ranges: dict[str, Range] = {}
        for name, value in self.declared.items():
            settable = [h for h in hyperparameters if h.name == name]
            if name not in (RATE, *SEARCHABLE) and not settable:
                known = [RATE, *SEARCHABLE, *(h.name for h in hyperparameters)]
                raise unknown_name("hyperparameter", name, known, where=f"study: ranges of {self.label}")
            if any((h.part, h.field) in _fixed(self.algorithm) for h in settable):
                raise EnvariantError(
                    f"study: ranges of {self.label}: {name} already has a fixed value in the algorithm's "
                    f"name; remove the value or the range"
                )
            with _located(True, f"{self.label}: {name}"):
                ranges[name] = search_range(value)
                if name in SEARCHABLE and not settable:
                    for each in getattr(ranges[name], "values", ()):
                        RunSpec(data="", **{name: _option(each)})
                        check_objects({name: _option(each)})
        return ranges

    def trials(
        self,
        source: EnvironmentSource,
        seed: int,
        n_trials: int,
        lr_range: float,
        steps: int | None = None,
        learning_rate: object = None,
    ) -> tuple[Trial, ...]:
        """Sample the trials of the algorithm, without duplicates.

        Args:
            source: Data source that suggests default settings.
            seed: Base random seed of the trials.
            n_trials: Number of trials; the first has the default settings of the data set.
            lr_range: Factor of at least 1 by which a sampled learning rate may differ from the learning rate
                of the first trial. In a schedule or in parameter groups, all values are multiplied by one
                factor.
            steps: Number of steps of every run, to which suggested schedules are scaled. Default: the default
                number of the data set.
            learning_rate: Learning rate of the first trial. Default: the default of the data set.
        """
        if predictor(self.algorithm) is not None:
            return (Trial(0, {}, 0.0),)
        suggested = resolve_algorithm(self.algorithm, {}, source, steps)
        trials = [Trial(0, {}, _text_of(_usual_rate(suggested, learning_rate)))]
        for number in range(1, n_trials):

            def draw(name: str, within: Range, number: int = number) -> Any:
                key = "rate" if name == RATE else name
                return within.sample(_generator(seed, self.label, number, key))

            trials.append(self._trial(number, draw, suggested, source, lr_range, steps, learning_rate))
        distinct = {(json.dumps(t.hyperparameters), t.learning_rate): t for t in reversed(trials)}
        return tuple(distinct.values())[::-1]

    def sample(
        self,
        source: EnvironmentSource,
        draw: Draw,
        lr_range: float,
        steps: int | None = None,
        learning_rate: object = None,
        number: int = 0,
    ) -> Trial:
        """Sample one trial with a function that samples from a range, such as that of an external optimizer.

        Args:
            source: Data source that suggests default settings.
            draw: Function from the name of a hyperparameter and its range to a value.
            lr_range: Factor of at least 1 by which the learning rate may differ from its default.
            steps: Number of steps of every run. Default: the default number of the data set.
            learning_rate: Learning rate that the factor multiplies. Default: the default of the data set.
            number: Index of the trial.
        """
        if predictor(self.algorithm) is not None:
            return Trial(number, {}, 0.0)
        suggested = resolve_algorithm(self.algorithm, {}, source, steps)
        return self._trial(number, draw, suggested, source, lr_range, steps, learning_rate)

    def _trial(
        self,
        number: int,
        draw: Draw,
        suggested: ResolvedAlgorithm,
        source: EnvironmentSource,
        lr_range: float,
        steps: int | None,
        learning_rate: object,
    ) -> Trial:
        own = self.ranges()
        usual = _usual_rate(suggested, learning_rate)
        rate = _text_of(usual)
        rates, unit = own.pop(RATE, None), 1.0 if isinstance(usual, Schedule | ByGroup) else usual
        factors = LogUniform(unit / lr_range, unit * lr_range) if lr_range > 1 else None
        if rates is not None or factors is None:
            sampled_rate = rate if rates is None else draw(RATE, rates)
        else:
            factor = draw(RATE, factors)
            sampled_rate = str(usual.scaled(factor)) if isinstance(usual, Schedule | ByGroup) else factor
        with _located(bool(self.declared), self.label):
            sampled = self._sample(suggested, draw, own, steps)
            if self.declared:
                options = {name: sampled[name] for name in SEARCHABLE if name in sampled}
                own_values = {name: value for name, value in sampled.items() if name not in options}
                resolve_algorithm(self.algorithm, own_values, source)
                RunSpec(data="", learning_rate=sampled_rate, **options)
                check_objects(options)
        return Trial(number, sampled, sampled_rate)

    def _sample(
        self,
        suggested: ResolvedAlgorithm,
        draw: Draw,
        ranges: Mapping[str, Range],
        steps: int | None,
    ) -> dict[str, Any]:
        """Sample a value for every hyperparameter that has a search range.

        For a schedule, only the final value is sampled, unless the range lists whole schedules. Values given
        in parentheses, as in `vrex(coefficient=10)`, are fixed. Hyperparameters of the whole loss are fixed
        unless the study declares a range for them.
        """
        sampled: dict[str, Any] = {
            name: _option(draw(name, ranges[name])) for name in SEARCHABLE if name in ranges
        }
        if not isinstance(suggested.trained, Composition):
            return sampled
        if suggested.trained.default_average is not None and sampled.get("average", "") is None:
            # None would stand for this default.
            sampled["average"] = NO_AVERAGE
        fixed = _fixed(self.algorithm)
        recipe, length = recipe_of(self.algorithm), suggested.defaults.steps
        if isinstance(self.algorithm, Recipe):
            recipe, _ = recipe.rescale({}, length, steps or length)
        for h in recipe.hyperparameters:
            declared = None if h.part == "loss" or (h.part, h.field) in fixed else h.range
            within = ranges.get(h.name, declared)
            if within is None:
                continue
            value = draw(h.name, within)
            if not isinstance(h.default, Schedule):
                sampled[h.name] = value
                continue
            if isinstance(value, str):
                sampled[h.name] = str(schedule(value))
                continue
            usual = schedule(suggested.hyperparameters.get(h.name, h.default))
            if (course := usual.with_final_value(value)) is not None:
                sampled[h.name] = str(course)
        return sampled


def _usual_rate(suggested: ResolvedAlgorithm, learning_rate: object) -> float | Schedule | ByGroup:
    """Return the learning rate of the first trial."""
    return suggested.defaults.learning_rate if learning_rate is None else rate_of(learning_rate)


def _text_of(rate: float | Schedule | ByGroup) -> float | str:
    """Return a learning rate as it is stored: schedules and parameter groups as text."""
    return str(rate) if isinstance(rate, Schedule | ByGroup) else rate


def _option(value: object) -> object:
    """Return the value of a training option, with the string "none" replaced by None."""
    return None if value == "none" else value


def recipe_of(algorithm: object) -> Recipe:
    """Return the recipe of an algorithm, which lists the algorithm's hyperparameters.

    Raises:
        EnvariantError: If the algorithm is unknown.
    """
    if isinstance(algorithm, str):
        terms_of(algorithm)
        return composing.recipe(algorithm)
    if isinstance(algorithm, Recipe):
        return algorithm
    built = as_algorithm(cast("Any", algorithm))
    return Recipe(built.name, "", built if isinstance(built, Composition) else Composition())


@contextmanager
def _located(own: bool, what: str) -> Generator[None]:
    """In a `with` block, add the location in the study to errors if `own` search ranges caused them."""
    try:
        yield
    except EnvariantError as error:
        raise EnvariantError(f"study: ranges of {what}: {error}") if own else error from None


def _fixed(algorithm: object) -> set[tuple[str, str]]:
    """Return part and field name of each hyperparameter that an algorithm's text sets in parentheses."""
    if not isinstance(algorithm, str):
        return set()
    return {
        (h.part, h.field)
        for known, given in composing.terms(algorithm)
        for h in known.hyperparameters
        if h.name in given
    }


def _generator(*names: object) -> np.random.Generator:
    """Return a random number generator whose seed is a hash of names and numbers."""
    digest = hashlib.blake2b(json.dumps(names).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))
