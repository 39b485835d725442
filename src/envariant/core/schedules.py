"""How a coefficient changes over training: pure functions of the step, writable as short strings.

A penalty that bites from the first step finds the constant predictor, whose penalty is zero; one that
never bites is ERM. Everything the field tries in between is a schedule: `step(1, 1e4, at=190)`,
`stages(1, 1e4, 1e6, at=(190, 400))`, `poly(k=1, p=3, after=190)`. Every schedule stays finite: growth is
cut off at `CAP`, since an exponential would overflow within a few hundred steps.
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, cast, final

from envariant.core import specs
from envariant.core.errors import EnvariantError, unknown_name
from envariant.core.specs import Spec

CAP = 1e12
"""No schedule exceeds this. It lies far above any coefficient in use, and its square fits in a float32."""


class Schedule(ABC):
    """A finite number for every step; step t is the number of updates already made (the first has 0)."""

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, step: int) -> float:
        """The value at `step`, between -CAP and CAP."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(cast("Any", self)):
            key, value = field.name, getattr(self, field.name)
            several = "tuple" in str(field.type)
            if several != isinstance(value, tuple):
                wanted = "several numbers" if several else "a number"
                raise EnvariantError(
                    f"{self.name}: {key} must be {wanted}; got {specs.format_value(value)!r}"
                )
            numbers: tuple[Any, ...] = value if several else (value,)
            for number in numbers:
                if isinstance(number, bool) or not isinstance(number, int | float):
                    raise EnvariantError(
                        f"{self.name}: {key} must be a number; got {specs.format_value(number)!r}"
                    )
                if not math.isfinite(number) or abs(number) > CAP:
                    raise EnvariantError(f"{self.name}: {key} must lie within ±{CAP:g}; got {number}")

    def __str__(self) -> str:
        return str(
            Spec(
                self.name,
                (),
                {f.name: getattr(self, f.name) for f in dataclasses.fields(cast("Any", self))},
            )
        )


@final
@dataclass(frozen=True)
class Constant(Schedule):
    """The same value at every step."""

    name: ClassVar[str] = "constant"
    value: float

    def __call__(self, step: int) -> float:
        return self.value

    def __str__(self) -> str:
        return specs.format_value(self.value)


@final
@dataclass(frozen=True)
class Step(Schedule):
    """`before` until step `at`, `after` from then on: the "anneal" of the IRM and REx code."""

    name: ClassVar[str] = "step"
    before: float
    after: float
    at: int

    def __call__(self, step: int) -> float:
        return self.after if step >= self.at else self.before

    def __str__(self) -> str:
        return str(Spec(self.name, (self.before, self.after), {"at": self.at}))


@final
@dataclass(frozen=True)
class Stages(Schedule):
    """`values[i]` from step `at[i-1]` on: any number of stages, one switch fewer than values."""

    name: ClassVar[str] = "stages"
    values: tuple[float, ...]
    at: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.at) != len(self.values) - 1 or list(self.at) != sorted(set(self.at)):
            raise EnvariantError(
                f"stages: needs one rising switch step fewer than values; "
                f"got {len(self.values)} values and at={specs.format_value(self.at)}"
            )

    def __call__(self, step: int) -> float:
        return self.values[sum(step >= switch for switch in self.at)]

    def __str__(self) -> str:
        return str(Spec(self.name, self.values, {"at": self.at}))


@final
@dataclass(frozen=True)
class Linear(Schedule):
    """From `start` to `end` in a straight line over the steps `after` … `until`, flat outside them."""

    name: ClassVar[str] = "linear"
    start: float
    end: float
    until: int
    after: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.until <= self.after:
            raise EnvariantError(f"linear: until must exceed after; got {self.until} and {self.after}")

    def __call__(self, step: int) -> float:
        share = min(1.0, max(0.0, (step - self.after) / (self.until - self.after)))
        value = (1 - share) * self.start + share * self.end
        return min(CAP, max(-CAP, value))  # Rounding may step over the cap.


@final
@dataclass(frozen=True)
class Polynomial(Schedule):
    """`before` until step `after`, then k·t^p with t the step itself, cut off at `CAP`.

    The form of the course report: λ = 1 before the annealing step, k·t^p from it on.
    """

    name: ClassVar[str] = "poly"
    k: float
    p: float
    after: int = 0
    before: float = 1.0

    def __call__(self, step: int) -> float:
        if step < self.after:
            return self.before
        # In logarithms nothing overflows before the cut; t = 0 with p < 0 counts as the largest value.
        if step == 0:
            return _capped(self.k) if self.p == 0 else (_capped(self.k, math.inf) if self.p < 0 else 0.0)
        return _capped(self.k, self.p * math.log(step))


@final
@dataclass(frozen=True)
class Exponential(Schedule):
    """`before` until step `after`, then start·factor^(t − after), cut off at `CAP`.

    Uncut, a factor of 1.1 overflows float32 after about 930 steps; the cut keeps training finite.
    """

    name: ClassVar[str] = "exp"
    start: float
    factor: float
    after: int = 0
    before: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor <= 0:
            raise EnvariantError(f"exp: factor must be positive; got {self.factor:g}")

    def __call__(self, step: int) -> float:
        if step < self.after:
            return self.before
        return _capped(self.start, (step - self.after) * math.log(self.factor))


SCHEDULES: dict[str, type[Schedule]] = {
    cls.name: cls for cls in (Constant, Step, Stages, Linear, Polynomial, Exponential)
}


def reaching(course: Schedule, value: float) -> Schedule | None:
    """The same course with another last value; None for one that grows without end."""
    if isinstance(course, Constant):
        return Constant(value)
    if isinstance(course, Step):
        return dataclasses.replace(course, after=value)
    if isinstance(course, Stages):
        return dataclasses.replace(course, values=(*course.values[:-1], value))
    return dataclasses.replace(course, end=value) if isinstance(course, Linear) else None


def schedule(value: "Schedule | Spec | str | float") -> Schedule:
    """A schedule from a schedule, a number or a string such as `poly(k=1, p=3, after=190)`.

    Raises:
        EnvariantError: the string names no schedule, or its settings do not fit.

    Example:
        >>> schedule("step(1, 1e4, at=190)")(190)
        10000.0
    """
    if isinstance(value, Schedule):
        return value
    if isinstance(value, str):
        value = cast("Spec | str | float", specs.parse_value(value))
    if isinstance(value, str):
        value = specs.parse(value)
    if not isinstance(value, Spec):
        return Constant(value)
    cls = SCHEDULES.get(value.name)
    if cls is None:
        raise unknown_name("schedule", value.name, SCHEDULES)
    if cls is Stages:
        # Its values are written side by side; a single tuple is read as well.
        if value.positional and not isinstance(value.positional[0], tuple):
            value = Spec(value.name, (value.positional,), value.keywords)
        at = value.keywords.get("at")
        if isinstance(at, int):
            value = Spec(value.name, value.positional, {**value.keywords, "at": (at,)})
    return cls(**specs.fill(cls, value))


def _capped(scale: float, log_growth: float = 0.0) -> float:
    if scale == 0:
        return 0.0
    size = math.log(abs(scale)) + log_growth
    return math.copysign(CAP if size >= math.log(CAP) else math.exp(size), scale)
