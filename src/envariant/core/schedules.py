"""Schedules: coefficients and learning rates as functions of the step, written as short strings.

If the penalty is strong from the first step, training ends at a constant predictor, whose penalty is zero.
Without a penalty, training is ERM. Published methods therefore change the coefficient during training:
`step(1, 1e4, at=190)`, `stages(1, 1e4, 1e6, at=(190, 400))`, `poly(k=1, p=3, after=190)`. Switch points are
step numbers, or percentages of the run's length such as `at=40%`. Values are clipped to ±`CAP`, because an
exponential schedule would overflow within a few hundred steps.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, final

from envariant.core import specs
from envariant.core.errors import EnvariantError, unknown_name
from envariant.core.rate_schedules import Cosine, CosineRestarts, OneCycle, in_order
from envariant.core.schedule_base import CAP, WHOLE_RUN, Schedule, absolute
from envariant.core.specs import Percent, Spec

__all__ = [
    "CAP",
    "SCHEDULES",
    "Constant",
    "Cosine",
    "CosineRestarts",
    "Exponential",
    "Linear",
    "OneCycle",
    "Polynomial",
    "Schedule",
    "Stages",
    "Step",
    "schedule",
]


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

    In a short run, relative switch points may coincide; a stage that then has no steps is skipped.
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
                f"stages: 'at' must contain increasing step numbers, one fewer than there are values; got "
                f"{len(self.values)} values and at={specs.format_value(self.at)}"
            )

    def __call__(self, step: int) -> float:
        return self.values[sum(step >= self._step_number(point) for point in self.at)]

    def _resolved(self, steps: int) -> "Stages":
        at = [absolute(point, steps) for point in self.at]
        used = [k for k in range(len(at)) if at[k : k + 2] != [at[k], at[k]]]
        return Stages((self.values[0], *(self.values[k + 1] for k in used)), tuple(at[k] for k in used))

    def with_final_value(self, value: float) -> "Stages":
        return dataclasses.replace(self, values=(*self.values[:-1], value))

    def __str__(self) -> str:
        return str(Spec(self.name, self.values, {"at": self.at}))


@final
@dataclass(frozen=True)
class Linear(Schedule):
    """Linear ramp from `start` at step `after` to `end` at step `until`; constant outside this range.

    With a warm-up of W steps, the value is start·(t + 1)/W at step t < W, and the ramp does not begin before
    step W. If `until` is a percentage of all steps, and `after` is a percentage or 0, the ramp takes at least
    one step.
    """

    name: ClassVar[str] = "linear"
    value_fields: ClassVar[tuple[str, ...]] = ("start", "end")
    switch_fields: ClassVar[tuple[str, ...]] = ("until", "after", "warmup")
    final_field: ClassVar[str] = "end"
    start: float
    end: float
    until: int | Percent = WHOLE_RUN
    after: int | Percent = 0
    warmup: int | Percent = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("after", "warmup"):
            if not in_order(getattr(self, key), self.until):
                raise EnvariantError(
                    f"linear: 'until' must exceed '{key}'; got {self.until} and {getattr(self, key)}"
                )

    def __call__(self, step: int) -> float:
        after, until = self._ramp_start(), self._step_number(self.until)
        if step < (warmup := self._step_number(self.warmup)):
            return self.start * ((step + 1) / warmup)
        share = min(1.0, max(0.0, (step - after) / (until - after)))
        value = (1 - share) * self.start + share * self.end
        return min(CAP, max(-CAP, value))  # Rounding may exceed the cap.

    @property
    def switch_points(self) -> tuple[int, ...]:
        """First step at which the ramp's value differs from `start`."""
        return (self._ramp_start() + 1,)

    def _ramp_start(self) -> int:
        return max(self._step_number(self.after), self._step_number(self.warmup))

    def _resolved(self, steps: int) -> "Linear":
        after, until, warmup = (absolute(point, steps) for point in (self.after, self.until, self.warmup))
        if isinstance(self.until, Percent) and (isinstance(self.after, Percent) or self.after == 0):
            until = max(until, after + 1)
        if isinstance(self.until, Percent) and isinstance(self.warmup, Percent):
            warmup = min(warmup, until - 1)
        return dataclasses.replace(self, after=after, until=until, warmup=warmup)

    def __str__(self) -> str:
        keys = ("start", "end", "until", "after", *(("warmup",) if self.warmup != 0 else ()))
        return str(Spec(self.name, (), {key: getattr(self, key) for key in keys}))


@final
@dataclass(frozen=True)
class Polynomial(Schedule):
    """Polynomial schedule: `before` at steps t < `after`, then k·t^p, clipped to ±`CAP` (10¹²).

    The course report of the reproduction `sjtu-2023` uses this schedule for the penalty coefficient, with
    `before` = 1.
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
    cls.name: cls
    for cls in (Constant, Step, Stages, Linear, Polynomial, Exponential, Cosine, CosineRestarts, OneCycle)
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


def _capped(scale: float, log_growth: float) -> float:
    if scale == 0:
        return 0.0
    size = math.log(abs(scale)) + log_growth
    return math.copysign(CAP if size >= math.log(CAP) else math.exp(size), scale)
