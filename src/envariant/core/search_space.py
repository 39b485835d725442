"""Search ranges of hyperparameters, declared in their type annotations.

`coefficient: Annotated[float, LogUniform(1e2, 1e6)] = 1e4` declares type, default and search range together.
Ranges are declared nowhere else. A study can override a range with a string such as `loguniform(1e2, 1e6)`.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, cast, final, get_type_hints

import numpy as np

from envariant.core import specs
from envariant.core.errors import EnvariantError


class Range(ABC):
    """Base class of search ranges, the distributions of hyperparameters in a random search."""

    @abstractmethod
    def sample(self, generator: np.random.Generator) -> Any:
        """Sample one value of the hyperparameter."""

    def _reject(self, requirement: str, low: float, high: float) -> NoReturn:
        raise EnvariantError(f"{type(self).__name__}: {requirement}; got {low:g}, {high:g}")

    def _check_order(self, low: float, high: float) -> None:
        if not math.isfinite(high - low) and low < high:
            self._reject("low and high must be finite", low, high)
        if not low < high:
            self._reject("low must lie below high", low, high)


@final
@dataclass(frozen=True)
class Uniform(Range):
    """Uniform distribution on [low, high)."""

    low: float
    high: float

    def __post_init__(self) -> None:
        self._check_order(self.low, self.high)

    def sample(self, generator: np.random.Generator) -> float:
        return float(generator.uniform(self.low, self.high))

    def __str__(self) -> str:
        return f"{self.low:g} … {self.high:g}"


@final
@dataclass(frozen=True)
class LogUniform(Range):
    """Log-uniform distribution on [low, high), with positive bounds."""

    low: float
    high: float

    def __post_init__(self) -> None:
        self._check_order(self.low, self.high)
        if self.low <= 0:
            raise EnvariantError(f"LogUniform: low must be positive; got {self.low:g}")

    def sample(self, generator: np.random.Generator) -> float:
        value = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        return min(self.high, max(self.low, value))  # exp(log(x)) may differ from x by rounding.

    def __str__(self) -> str:
        return f"{self.low:g} … {self.high:g}, log"


@final
@dataclass(frozen=True)
class UniformInteger(Range):
    """Uniform distribution on the integers from low to high, both included."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            self._reject("low must not lie above high", self.low, self.high)
        if not -(2**62) <= self.low <= self.high <= 2**62:
            self._reject("low and high must lie within 2⁶²", self.low, self.high)

    def sample(self, generator: np.random.Generator) -> int:
        return int(generator.integers(self.low, self.high + 1))

    def __str__(self) -> str:
        return f"{self.low} … {self.high}, whole"


@final
@dataclass(frozen=True)
class Choice(Range):
    """Uniform distribution on a list of values."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise EnvariantError("Choice: needs at least one value")

    def sample(self, generator: np.random.Generator) -> Any:
        return self.values[int(generator.integers(len(self.values)))]

    def __str__(self) -> str:
        return " | ".join(str(value) for value in self.values)


@final
@dataclass(frozen=True)
class Nested(Range):
    """String that contains ranges, such as `cosine(loguniform(1e-4, 1e-2), warmup=5%)`.

    A sample is the string with every range replaced by a sampled value.
    """

    template: specs.Spec

    def __post_init__(self) -> None:
        # Bounds and names are checked now, not at the first sample.
        self.sample(np.random.default_rng(0))

    def sample(self, generator: np.random.Generator) -> str:
        return self.filled(lambda within, _: within.sample(generator))

    def filled(self, draw: Callable[[Range, int], Any]) -> str:
        """Return the string with every range replaced by a value.

        Args:
            draw: Function from a range and its position among the ranges, from 0, to a value.
        """
        position = itertools.count()
        return str(_filled(self.template, lambda within: draw(within, next(position))))

    def __str__(self) -> str:
        return str(self.template)


def ranges(cls: type[Any]) -> dict[str, Range]:
    """Return the search ranges that a class declares, by field name."""
    return {
        name: declared
        for name, hint in get_type_hints(cls, include_extras=True).items()
        for declared in getattr(hint, "__metadata__", ())
        if isinstance(declared, Range)
    }


RANGES: dict[str, type[Range]] = {"uniform": Uniform, "loguniform": LogUniform, "integer": UniformInteger}
"""Range classes, by the names that strings use for them."""


def _has_range(value: object) -> bool:
    if isinstance(value, tuple):
        return any(map(_has_range, cast("tuple[object, ...]", value)))
    if not isinstance(value, specs.Spec):
        return False
    return value.name in RANGES or any(map(_has_range, (*value.positional, *value.keywords.values())))


def _filled(value: Any, draw: Callable[[Range], Any]) -> Any:
    """Return a value with every range in it replaced by a sample."""
    if isinstance(value, tuple):
        return tuple(_filled(each, draw) for each in cast("tuple[Any, ...]", value))
    if not isinstance(value, specs.Spec):
        return value
    if value.name in RANGES:
        return draw(RANGES[value.name](**specs.fill(RANGES[value.name], value)))
    keywords = {key: _filled(each, draw) for key, each in value.keywords.items()}
    return specs.Spec(value.name, _filled(value.positional, draw), keywords)


def search_range(declared: object) -> Range:
    """Convert a list of values, or a string such as `loguniform(1e2, 1e6)`, to a search range.

    Raises:
        EnvariantError: If `declared` is neither a list nor a string that describes a range, or the bounds are
            invalid.
    """
    if isinstance(declared, list | tuple):
        values = tuple(cast("list[Any]", declared))
        for value in values:
            if not isinstance(value, bool | int | float | str):
                raise EnvariantError(
                    f"the values of a range must be numbers, strings, true or false; got {value!r}"
                )
        return Choice(values)
    if isinstance(declared, str):
        template = specs.parse_as("range", declared)
        if template.name not in RANGES and _has_range(template):
            return Nested(template)
        return specs.build("range", declared, RANGES)
    forms = ", ".join(f"{name}(low, high)" for name in RANGES)
    raise EnvariantError(f"a range must be a list of values or one of {forms}; got {declared!r}")
