"""Where a hyperparameter may be searched, declared in its own type.

`coefficient: Annotated[float, LogUniform(1e2, 1e6)] = 1e4` says in one place what the value is, what it
is by default and where a random search may look. The house keeps no other list of ranges; a study may
name its own, in the words that `search_range` reads.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, cast, final, get_args, get_origin, get_type_hints

import numpy as np

from envariant.core import specs
from envariant.core.errors import EnvariantError


class Range(ABC):
    """A distribution from which a random search draws one value."""

    @abstractmethod
    def sample(self, generator: np.random.Generator) -> Any:
        """One value; all randomness comes from `generator`."""


@final
@dataclass(frozen=True)
class Uniform(Range):
    """Uniform on [low, high)."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _ordered(self, self.low, self.high)

    def sample(self, generator: np.random.Generator) -> float:
        return float(generator.uniform(self.low, self.high))

    def __str__(self) -> str:
        return f"{self.low:g} … {self.high:g}"


@final
@dataclass(frozen=True)
class LogUniform(Range):
    """Uniform in the logarithm on [low, high); both positive."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _ordered(self, self.low, self.high)
        if self.low <= 0:
            raise EnvariantError(f"LogUniform: low must be positive; got {self.low:g}")

    def sample(self, generator: np.random.Generator) -> float:
        value = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        return min(self.high, max(self.low, value))  # exp(log(x)) may miss x by a rounding.

    def __str__(self) -> str:
        return f"{self.low:g} … {self.high:g}, log"


@final
@dataclass(frozen=True)
class UniformInteger(Range):
    """A whole number from low to high, both included."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise EnvariantError(
                f"UniformInteger: low must not lie above high; got {self.low:g}, {self.high:g}"
            )
        if not -(2**62) <= self.low <= self.high <= 2**62:
            raise EnvariantError(
                f"UniformInteger: low and high must lie within 2⁶²; got {self.low:g}, {self.high:g}"
            )

    def sample(self, generator: np.random.Generator) -> int:
        return int(generator.integers(self.low, self.high + 1))

    def __str__(self) -> str:
        return f"{self.low} … {self.high}, whole"


@final
@dataclass(frozen=True)
class Choice(Range):
    """One of the listed values, each as likely."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise EnvariantError("Choice: needs at least one value")

    def sample(self, generator: np.random.Generator) -> Any:
        return self.values[int(generator.integers(len(self.values)))]

    def __str__(self) -> str:
        return " | ".join(str(value) for value in self.values)


def ranges(cls: type[Any]) -> dict[str, Range]:
    """The declared range of every field of a class that declares one, by field name."""
    found: dict[str, Range] = {}
    for name, hint in get_type_hints(cls, include_extras=True).items():
        if get_origin(hint) is Annotated:
            declared = [extra for extra in get_args(hint)[1:] if isinstance(extra, Range)]
            if declared:
                found[name] = declared[0]
    return found


RANGES: dict[str, type[Range]] = {"uniform": Uniform, "loguniform": LogUniform, "integer": UniformInteger}
"""By the name under which a study may write one."""


def search_range(declared: object) -> Range:
    """The range that a study writes: a list of values, or text such as `loguniform(1e2, 1e6)`.

    Raises:
        EnvariantError: it is neither, or its numbers make no range.
    """
    if isinstance(declared, list | tuple):
        values = tuple(cast("list[Any]", declared))
        for value in values:
            if not isinstance(value, bool | int | float | str):
                raise EnvariantError(f"values of a range are numbers, words, true or false; got {value!r}")
        return Choice(values)
    if isinstance(declared, str):
        return specs.build("range", declared, RANGES)
    raise EnvariantError(
        f"a range is a list of values or one of {', '.join(f'{name}(low, high)' for name in RANGES)}; "
        f"got {declared!r}"
    )


def _ordered(where: Range, low: float, high: float) -> None:
    if not math.isfinite(high - low) and low < high:
        raise EnvariantError(f"{type(where).__name__}: low and high must be finite; got {low:g}, {high:g}")
    if not low < high:
        raise EnvariantError(f"{type(where).__name__}: low must lie below high; got {low:g}, {high:g}")
