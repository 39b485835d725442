"""Schedules for learning rates: cosine decay with warm-up, cosine decay with restarts, and one-cycle."""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, final

from envariant.core import specs
from envariant.core.errors import EnvariantError
from envariant.core.schedule_base import CAP, WHOLE_RUN, Schedule, absolute
from envariant.core.specs import Percent


def in_order(first: float | Percent, last: float | Percent) -> bool:
    """Return whether `first` is before `last`; True if only one of them is a percentage."""
    if isinstance(first, Percent) and isinstance(last, Percent):
        first, last = first.value, last.value
    return isinstance(first, Percent) or isinstance(last, Percent) or first < last


@final
@dataclass(frozen=True)
class Cosine(Schedule):
    """Cosine decay: η + ½(value − η)(1 + cos(π(t − W)/(T − W))) at step t, after a warm-up of W steps.

    η is `end`, W is `warmup`, and T is `until`; from step T on, the value is η. With the defaults, this is
    PyTorch's `CosineAnnealingLR(T_max=T)`. During the warm-up, the value is value·(t + 1)/W, as in WiSE-FT's
    code. If `start` is above 0, the value during the warm-up is value·(start + (1 − start)·t/W), as in
    PyTorch's `LinearLR`; with start=1, it is constant.

    Attributes:
        value: Value at the end of the warm-up, from which the decay starts.
        end: Value at the end of the decay.
        warmup: Number of warm-up steps.
        until: Step at which the decay ends.
        start: Value at step 0 as a share of `value`, in (0, 1]; or 0, the default, for the warm-up
            value·(t + 1)/W.
        offset: Number of steps, 0 or 1, by which the decay is shifted to earlier steps. With 1, the last
            update has exactly the value `end`, as in EQRM's code.
    """

    name: ClassVar[str] = "cosine"
    value_fields: ClassVar[tuple[str, ...]] = ("value", "end")
    switch_fields: ClassVar[tuple[str, ...]] = ("warmup", "until")
    final_field: ClassVar[str] = "end"
    value: float
    end: float = 0.0
    warmup: int | Percent = 0
    until: int | Percent = WHOLE_RUN
    start: float = 0.0
    offset: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not in_order(self.warmup, self.until):
            raise EnvariantError(f"cosine: 'until' must exceed 'warmup'; got {self.until} and {self.warmup}")
        if not 0 <= self.start <= 1:
            raise EnvariantError(f"cosine: start must be in [0, 1], got {self.start:g}")
        if self.offset not in (0, 1):
            raise EnvariantError(f"cosine: offset must be 0 or 1, got {self.offset}")

    def __call__(self, step: int) -> float:
        warmup, until = self._step_number(self.warmup), self._step_number(self.until)
        if step < warmup:
            share = step / warmup * (1 - self.start) + self.start
            return self.value * (share if self.start else (step + 1) / warmup)
        return _eased(self.value, self.end, (step - warmup + self.offset) / (until - warmup))

    @property
    def switch_points(self) -> tuple[int, ...]:
        """First step at which the value decays."""
        return (self._step_number(self.warmup) + 1 - self.offset,)

    def _resolved(self, steps: int) -> "Cosine":
        warmup, until = absolute(self.warmup, steps), absolute(self.until, steps)
        if isinstance(self.until, Percent) and (isinstance(self.warmup, Percent) or not self.warmup):
            until = max(until, 1)
            warmup = min(warmup, until - 1)
        return dataclasses.replace(self, warmup=warmup, until=until)

    def __str__(self) -> str:
        return specs.describe(self.name, self, positional=("value",))


@final
@dataclass(frozen=True)
class CosineRestarts(Schedule):
    """Cosine decay that restarts after every period, as in PyTorch's `CosineAnnealingWarmRestarts`.

    In a period of T_i steps, the value t steps after the start is η + ½(value − η)(1 + cos(πt/T_i)), where η
    is `end`. Each period is `factor` times as long as the previous one. Loshchilov & Hutter 2017.

    Attributes:
        value: Value at the start of every period.
        period: Length of the first period in steps.
        factor: Ratio of the lengths of successive periods, an integer.
        end: Value that the decay approaches in each period.
        warmup: Number W of steps before the first period, in which the value rises linearly: value·(t + 1)/W.
    """

    name: ClassVar[str] = "cosine-restarts"
    value_fields: ClassVar[tuple[str, ...]] = ("value", "end")
    switch_fields: ClassVar[tuple[str, ...]] = ("period", "warmup")
    value: float
    period: int | Percent
    factor: int = 1
    end: float = 0.0
    warmup: int | Percent = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.period, Percent) and self.period < 1:
            raise EnvariantError(f"cosine-restarts: period must be at least 1 step, got {self.period}")
        if not (isinstance(self.factor, int) and self.factor >= 1):
            raise EnvariantError(
                f"cosine-restarts: factor must be a whole number of at least 1, got {self.factor}"
            )

    def __call__(self, step: int) -> float:
        period, warmup = self._step_number(self.period), self._step_number(self.warmup)
        if step < warmup:
            return self.value * ((step + 1) / warmup)
        step -= warmup
        if self.factor == 1:
            step %= period
        while step >= period:
            step, period = step - period, period * self.factor
        return _eased(self.value, self.end, step / period)

    @property
    def switch_points(self) -> tuple[int, ...]:
        """First step of the decay, and the first restart."""
        warmup = self._step_number(self.warmup)
        return warmup + 1, warmup + self._step_number(self.period)

    def _resolved(self, steps: int) -> "CosineRestarts":
        period = max(1, absolute(self.period, steps))
        return dataclasses.replace(self, period=period, warmup=absolute(self.warmup, steps))

    def __str__(self) -> str:
        return specs.describe(self.name, self, positional=("value",))


@final
@dataclass(frozen=True)
class OneCycle(Schedule):
    """One cycle: cosine increase from value/div to value, then cosine decay to value/(div·final_div).

    The maximum is reached after share·T − 1 of the T steps, as in PyTorch's `OneCycleLR`, and the last update
    has the smallest value. Unlike in PyTorch, the momentum is constant. Smith & Topin 2019.

    Attributes:
        value: Maximum value.
        share: Share of the steps in which the value increases, in [0, 1].
        div: Ratio of the maximum value to the first value.
        final_div: Ratio of the first value to the last value.
        until: Number of steps T.
    """

    name: ClassVar[str] = "one-cycle"
    value_fields: ClassVar[tuple[str, ...]] = ("value",)
    switch_fields: ClassVar[tuple[str, ...]] = ("until",)
    value: float
    share: float = 0.3
    div: float = 25.0
    final_div: float = 1e4
    until: int | Percent = WHOLE_RUN

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.share <= 1:
            raise EnvariantError(f"one-cycle: share must be in [0, 1], got {self.share:g}")
        for key in ("div", "final_div"):
            if getattr(self, key) < 1:
                raise EnvariantError(f"one-cycle: {key} must be at least 1, got {getattr(self, key):g}")
        if self.until == 0:
            raise EnvariantError("one-cycle: until must be at least 1 step, got 0")

    def __call__(self, step: int) -> float:
        steps = self._step_number(self.until)
        first, top = self.value / self.div, self.share * steps - 1
        if step < top:
            return _eased(first, self.value, step / top)
        rest = steps - 1 - top
        return _eased(self.value, first / self.final_div, (step - top) / rest if rest > 0 else 1.0)

    @property
    def switch_points(self) -> tuple[int, ...]:
        """Step 1, the first step whose value differs from the value at step 0."""
        self._step_number(self.until)
        return (1,)

    def _resolved(self, steps: int) -> "OneCycle":
        return dataclasses.replace(self, until=max(1, absolute(self.until, steps)))

    def __str__(self) -> str:
        return specs.describe(self.name, self, positional=("value",))


def _eased(start: float, end: float, share: float) -> float:
    """Interpolate from `start` to `end` along half a cosine period; a share of 1 or more gives `end`."""
    left = (1 + math.cos(math.pi * min(1.0, share))) / 2
    value = left * start + (1 - left) * end
    return min(CAP, max(-CAP, value))  # Rounding may exceed the cap.
