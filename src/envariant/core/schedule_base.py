"""`Schedule`: base class of coefficients and learning rates that are functions of the step."""

import dataclasses
import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self, cast

from envariant.core import specs
from envariant.core.errors import EnvariantError, shown
from envariant.core.specs import Percent, Spec

CAP = 1e12
"""Largest absolute value of a schedule. It exceeds usual coefficients, and its square fits in float32."""

WHOLE_RUN = Percent(100)
"""Switch point at the end of the run."""


class Schedule(ABC):
    """Base class of schedules: functions of the step t, which is 0 for the first update.

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
        """Steps at which the second and all later stages begin, in order.

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
            steps: Length of the run in optimizer updates. Percentages of it are converted to the nearest
                step, with halves rounded up.

        Raises:
            EnvariantError: If the resulting step numbers are out of order.

        Example:
            >>> from envariant.core.schedules import schedule
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
        changes = {name: absolute(getattr(self, name), steps) for name in self.switch_fields}
        return dataclasses.replace(cast("Any", self), **changes)

    def rescale(self, old: int, new: int) -> Self:
        """Scale the absolute switch points from a run of `old` steps to a run of `new` steps.

        Relative switch points, and those that a run of `old` steps does not reach, stay unchanged.

        Args:
            old: Length of the run for which the schedule is meant, in steps.
            new: Length of the run in which the schedule is used, in steps.

        Example:
            >>> from envariant.core.schedules import schedule
            >>> str(schedule("step(1, 1e4, at=190)").rescale(501, 150))
            'step(1, 10000, at=57)'
        """
        if old == new or not any(_scales(p, old) for key in self.switch_fields for p in self._numbers(key)):
            return self
        changes = {key: _each(getattr(self, key), old, new) for key in self.switch_fields}
        return dataclasses.replace(cast("Any", self), **changes).resolve(new)

    def scaled(self, factor: float) -> Self:
        """Return the schedule with all its values multiplied by a factor."""

        def product(value: Any) -> Any:
            return tuple(map(product, value)) if isinstance(value, tuple) else value * factor

        changes = {key: product(getattr(self, key)) for key in self.value_fields}
        return dataclasses.replace(cast("Any", self), **changes)

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
            >>> from envariant.core.schedules import schedule
            >>> schedule("step(1, 1e4, at=100)").takes_effect_within(100)
            False
        """
        return all(point < steps for point in self.resolve(steps).switch_points)

    def with_final_value(self, value: float) -> "Schedule | None":
        """Return a copy with another final value; None if the schedule grows without a final value."""
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


def _scales(point: int | Percent, old: int) -> bool:
    return not isinstance(point, Percent) and 0 < point <= old


def _each(points: Any, old: int, new: int) -> Any:
    """Convert step numbers in a run of `old` steps to percentages, for use in a run of `new` steps."""
    if isinstance(points, tuple):
        return tuple(_each(point, old, new) for point in cast("tuple[Any, ...]", points))
    if not _scales(points, old):
        return points
    # Rounding must not move a switch point within the run to its end.
    return Percent(100 * (points / old if points == old else min(points / old, (new - 1) / new)))


def absolute(point: int | Percent, steps: int) -> int:
    """Return a switch point as a step number; a percentage of the run is converted to the nearest step.

    Halves are rounded up.
    """
    return math.floor(point.value * steps / 100 + 0.5) if isinstance(point, Percent) else point
