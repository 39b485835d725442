"""Schedules: coefficients and learning rates as functions of the step, writable as short strings.

If the penalty is strong from the first step, training ends at a constant predictor, whose penalty is zero.
Without a penalty, training is ERM. Published methods therefore change the coefficient during training:
`step(1, 1e4, at=190)`, `stages(1, 1e4, 1e6, at=(190, 400))`, `poly(k=1, p=3, after=190)`. Switch points are
step numbers, or percentages of the run's length such as `at=40%`. Values are clipped to ±`CAP`, because an
exponential schedule would overflow within a few hundred steps.
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast, final

from envariant.core import specs
from envariant.core.errors import EnvariantError, shown, unknown_name
from envariant.core.specs import Percent, Spec

CAP = 1e12
"""Largest absolute value of a schedule. It exceeds usual coefficients, and its square fits in float32."""


class Schedule(ABC):
    """Base class of schedules: functions of the step number t, which is 0 for the first update.

    A subclass is a frozen dataclass with a `name`. Its fields are numbers, tuples of numbers, or switch
    points: step numbers or `Percent` values, listed in `switch_fields`.
    """

    name: ClassVar[str]
    switch_fields: ClassVar[tuple[str, ...]] = ()
    """Names of the fields for switch points."""
    value_fields: ClassVar[tuple[str, ...]] = ()
    """Names of the fields that determine the sign of the schedule's values."""
    final_field: ClassVar[str] = ""
    """Name of the field for the last value; "" if the schedule grows without a last value."""

    @abstractmethod
    def __call__(self, step: int) -> float:
        """Return the value at a step, between -CAP and CAP.

        Raises:
            EnvariantError: If a switch point is relative to the run's length; `resolve` the schedule first.
        """

    @property
    def switch_points(self) -> tuple[int, ...]:
        """First step of every stage except the first, in order.

        Raises:
            EnvariantError: If a switch point is relative to the run's length; `resolve` the schedule first.
        """
        return tuple(self._step_number(point) for key in self.switch_fields for point in self._numbers(key))

    @property
    def is_relative(self) -> bool:
        """Whether any switch point is a share of the run's length."""
        return any(isinstance(point, Percent) for key in self.switch_fields for point in self._numbers(key))

    def resolve(self, steps: int) -> Self:
        """Convert relative switch points to step numbers.

        Args:
            steps: Length of the run in optimizer updates; relative switch points are rounded to
                the nearest step, with halves rounded up.

        Raises:
            EnvariantError: If the resulting step numbers are out of order.

        Example:
            >>> str(schedule("step(1, 1e4, at=40%)").resolve(500))
            'step(1, 10000, at=200)'
        """
        if not self.is_relative:
            return self
        try:
            return self._resolved(steps)
        except EnvariantError as error:
            raise EnvariantError(f"{self} in a run of {steps} steps: {error}") from None

    def _resolved(self, steps: int) -> Self:
        changes = {name: _absolute(getattr(self, name), steps) for name in self.switch_fields}
        return dataclasses.replace(cast("Any", self), **changes)

    def rescale(self, old: int, new: int) -> Self:
        """Scale the absolute switch points from a run of `old` steps to a run of `new` steps.

        Relative switch points, and those that a run of `old` steps does not reach, stay unchanged.

        Args:
            old: Length of the run for which the schedule is meant, in steps.
            new: Length of the run in which the schedule is used, in steps.

        Example:
            >>> str(schedule("step(1, 1e4, at=190)").rescale(501, 150))
            'step(1, 10000, at=57)'
        """
        if old == new or not any(_scales(p, old) for key in self.switch_fields for p in self._numbers(key)):
            return self
        changes = {key: _each(getattr(self, key), old, new) for key in self.switch_fields}
        return dataclasses.replace(cast("Any", self), **changes).resolve(new)

    def check_not_negative(self, what: str, *, zero: bool = True) -> None:
        """Check that no value of the schedule is negative.

        Args:
            what: Name of the hyperparameter, for the error message.
            zero: Whether the value may be 0 at every step.

        Raises:
            EnvariantError: If a value is negative, or all values are 0 and `zero` is false.
        """
        numbers = [number for key in self.value_fields for number in self._numbers(key)]
        if any(number < 0 for number in numbers) or (numbers and not zero and not any(numbers)):
            raise EnvariantError(f"{what} must be at least 0, got {self}")

    def takes_effect_within(self, steps: int) -> bool:
        """Return whether a run of `steps` updates reaches every stage of the schedule.

        Example:
            >>> schedule("step(1, 1e4, at=100)").takes_effect_within(100)
            False
        """
        return all(point < steps for point in self.resolve(steps).switch_points)

    def with_final_value(self, value: float) -> "Schedule | None":
        """Return a copy with another final value; None for growing schedules, which have none."""
        changes = {self.final_field: value}
        return dataclasses.replace(cast("Any", self), **changes) if self.final_field else None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(cast("Any", self)):
            key, value = field.name, getattr(self, field.name)
            several = "tuple" in str(field.type)
            if several != isinstance(value, tuple):
                expected = "several numbers" if several else "a number"
                raise self._wrong_type(key, expected, value)
            for number in self._numbers(key):
                if isinstance(number, Percent) and key in self.switch_fields:
                    continue
                if isinstance(number, bool) or not isinstance(number, int | float):
                    raise self._wrong_type(key, "a number", number)
                # The comparison is false for NaN.
                if not abs(number) <= CAP:
                    raise EnvariantError(f"{self.name}: {key} must lie within ±{CAP:g}; got {shown(number)}")
                if key in self.switch_fields and (number < 0 or not isinstance(number, int)):
                    expected = "a step number from 0, or a share of the run such as 40%"
                    raise EnvariantError(f"{self.name}: {key} must be {expected}; got {number}")

    def __str__(self) -> str:
        fields = dataclasses.fields(cast("Any", self))
        return str(Spec(self.name, (), {f.name: getattr(self, f.name) for f in fields}))

    def _wrong_type(self, key: str, expected: str, value: object) -> EnvariantError:
        return EnvariantError(f"{self.name}: {key} must be {expected}; got {specs.format_value(value)!r}")

    def _numbers(self, key: str) -> tuple[Any, ...]:
        value: Any = getattr(self, key)
        return cast("tuple[Any, ...]", value) if isinstance(value, tuple) else (value,)

    def _step_number(self, point: int | Percent) -> int:
        if isinstance(point, Percent):
            raise EnvariantError(
                f"{self}: the switch point {point} depends on the run's length; call resolve(steps) first"
            )
        return point


@final
@dataclass(frozen=True)
class Constant(Schedule):
    """Constant schedule: the same value at every step."""

    name: ClassVar[str] = "constant"
    value_fields: ClassVar[tuple[str, ...]] = ("value",)
    final_field: ClassVar[str] = "value"
    value: float

    def __call__(self, step: int) -> float:
        return self.value

    def __str__(self) -> str:
        return specs.format_value(self.value)


@final
@dataclass(frozen=True)
class Step(Schedule):
    """Step schedule: `before` at steps t < `at`, then `after`, as in the IRM and REx code."""

    name: ClassVar[str] = "step"
    value_fields: ClassVar[tuple[str, ...]] = ("before", "after")
    switch_fields: ClassVar[tuple[str, ...]] = ("at",)
    final_field: ClassVar[str] = "after"
    before: float
    after: float
    at: int | Percent

    def __call__(self, step: int) -> float:
        return self.after if step >= self._step_number(self.at) else self.before

    def __str__(self) -> str:
        return str(Spec(self.name, (self.before, self.after), {"at": self.at}))


@final
@dataclass(frozen=True)
class Stages(Schedule):
    """Piecewise constant schedule: `values[0]`, then `values[i]` from step `at[i-1]` on.

    A stage without steps, because its relative switch points coincide in a short run, is skipped.
    """

    name: ClassVar[str] = "stages"
    value_fields: ClassVar[tuple[str, ...]] = ("values",)
    switch_fields: ClassVar[tuple[str, ...]] = ("at",)
    values: tuple[float, ...]
    at: tuple[int | Percent, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        absolute = [point for point in self.at if not isinstance(point, Percent)]
        relative = [point.value for point in self.at if isinstance(point, Percent)]
        rising = all(numbers == sorted(set(numbers)) for numbers in (absolute, relative))
        if len(self.at) != len(self.values) - 1 or not rising:
            raise EnvariantError(
                f"stages: needs one rising switch step fewer than values; "
                f"got {len(self.values)} values and at={specs.format_value(self.at)}"
            )

    def __call__(self, step: int) -> float:
        return self.values[sum(step >= self._step_number(point) for point in self.at)]

    def _resolved(self, steps: int) -> "Stages":
        at = [_absolute(point, steps) for point in self.at]
        used = [k for k in range(len(at)) if at[k : k + 2] != [at[k], at[k]]]
        return Stages((self.values[0], *(self.values[k + 1] for k in used)), tuple(at[k] for k in used))

    def with_final_value(self, value: float) -> "Stages":
        return dataclasses.replace(self, values=(*self.values[:-1], value))

    def __str__(self) -> str:
        return str(Spec(self.name, self.values, {"at": self.at}))


@final
@dataclass(frozen=True)
class Linear(Schedule):
    """Linear schedule: ramp from `start` at step `after` to `end` at step `until`, constant before and after.

    If `until` is relative, and `after` is relative or 0, the ramp takes at least one step.
    """

    name: ClassVar[str] = "linear"
    value_fields: ClassVar[tuple[str, ...]] = ("start", "end")
    switch_fields: ClassVar[tuple[str, ...]] = ("until", "after")
    final_field: ClassVar[str] = "end"
    start: float
    end: float
    until: int | Percent
    after: int | Percent = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        first, last = self.after, self.until
        if isinstance(first, Percent) and isinstance(last, Percent):
            first, last = first.value, last.value
        if not isinstance(first, Percent) and not isinstance(last, Percent) and last <= first:
            raise EnvariantError(f"linear: until must exceed after; got {self.until} and {self.after}")

    def __call__(self, step: int) -> float:
        after, until = self._step_number(self.after), self._step_number(self.until)
        share = min(1.0, max(0.0, (step - after) / (until - after)))
        value = (1 - share) * self.start + share * self.end
        return min(CAP, max(-CAP, value))  # Rounding may exceed the cap.

    @property
    def switch_points(self) -> tuple[int, ...]:
        """First step whose value differs from `start`."""
        return (self._step_number(self.after) + 1,)

    def _resolved(self, steps: int) -> "Linear":
        after, until = _absolute(self.after, steps), _absolute(self.until, steps)
        if isinstance(self.until, Percent) and (isinstance(self.after, Percent) or self.after == 0):
            until = max(until, after + 1)
        return dataclasses.replace(self, after=after, until=until)


@final
@dataclass(frozen=True)
class Polynomial(Schedule):
    """Polynomial schedule: `before` at steps t < `after`, then k·t^p, clipped to ±`CAP` (10¹²).

    The course report (`sjtu-2023`) uses this schedule, with `before` = 1, for the penalty coefficient.
    """

    name: ClassVar[str] = "poly"
    value_fields: ClassVar[tuple[str, ...]] = ("k", "before")
    switch_fields: ClassVar[tuple[str, ...]] = ("after",)
    k: float
    p: float
    after: int | Percent = 0
    before: float = 1.0

    def __call__(self, step: int) -> float:
        if step < self._step_number(self.after):
            return self.before
        # Logarithms avoid an overflow before clipping; t = 0 with p < 0 counts as the largest value.
        if step == 0 and self.p != 0:
            return _capped(self.k, math.inf) if self.p < 0 else 0.0
        return _capped(self.k, self.p * math.log(max(step, 1)))


@final
@dataclass(frozen=True)
class Exponential(Schedule):
    """Exponential schedule: `before` at steps t < `after`, then start·factor^(t − after).

    Values are clipped to ±`CAP` (10¹²). Without clipping, a factor of 1.1 overflows float32 after about 930
    steps.
    """

    name: ClassVar[str] = "exp"
    value_fields: ClassVar[tuple[str, ...]] = ("start", "before")
    switch_fields: ClassVar[tuple[str, ...]] = ("after",)
    start: float
    factor: float
    after: int | Percent = 0
    before: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor <= 0:
            raise EnvariantError(f"exp: factor must be positive; got {self.factor:g}")

    def __call__(self, step: int) -> float:
        age = step - self._step_number(self.after)
        return self.before if age < 0 else _capped(self.start, age * math.log(self.factor))


SCHEDULES: dict[str, type[Schedule]] = {
    cls.name: cls for cls in (Constant, Step, Stages, Linear, Polynomial, Exponential)
}


def schedule(value: "Schedule | Spec | str | float") -> Schedule:
    """Convert a number or a string such as `poly(k=1, p=3, after=40%)` to a schedule.

    Args:
        value: Schedule (returned unchanged), number (a constant schedule), or string.

    Raises:
        EnvariantError: If the schedule or one of its settings is unknown, or a setting is invalid.

    Example:
        >>> schedule("step(1, 1e4, at=190)")(190)
        10000.0
    """
    if isinstance(value, Schedule):
        return value
    if isinstance(value, str):
        parsed: Spec | str | float = specs.parse_value(value)
        value = specs.parse(parsed) if isinstance(parsed, str) else parsed
    if not isinstance(value, Spec):
        return Constant(value)
    if value.name not in SCHEDULES:
        raise unknown_name("schedule", value.name, SCHEDULES)
    cls = SCHEDULES[value.name]
    if cls is Stages:
        # Values are written as separate arguments; a single tuple is accepted as well.
        if value.positional and not isinstance(value.positional[0], tuple):
            value = Spec(value.name, (value.positional,), value.keywords)
        at = value.keywords.get("at")
        if isinstance(at, int | Percent):
            value = Spec(value.name, value.positional, {**value.keywords, "at": (at,)})
    return cls(**specs.fill(cls, value))


def _scales(point: int | Percent, old: int) -> bool:
    return not isinstance(point, Percent) and 0 < point <= old


def _each(points: Any, old: int, new: int) -> Any:
    """Convert step numbers in a run of `old` steps to shares of the run, for a new run of `new` steps."""
    if isinstance(points, tuple):
        return tuple(_each(point, old, new) for point in cast("tuple[Any, ...]", points))
    if not _scales(points, old):
        return points
    # Rounding must not move a switch point within the run to its end.
    return Percent(100 * (points / old if points == old else min(points / old, (new - 1) / new)))


def _absolute(point: int | Percent, steps: int) -> int:
    return math.floor(point.value * steps / 100 + 0.5) if isinstance(point, Percent) else point


def _capped(scale: float, log_growth: float) -> float:
    if scale == 0:
        return 0.0
    size = math.log(abs(scale)) + log_growth
    return math.copysign(CAP if size >= math.log(CAP) else math.exp(size), scale)
