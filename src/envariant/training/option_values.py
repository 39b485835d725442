"""Convert training options that can be given in several forms: numbers, schedules and values by group."""

import math
from typing import Any, cast

from envariant.core.errors import EnvariantError
from envariant.core.schedules import Constant, Schedule, schedule
from envariant.core.specs import Spec
from envariant.training.parameter_groups import ByGroup, by_group


def learning_rate(value: object) -> float | Schedule | ByGroup:
    """Convert the option `learning_rate` to a number, a schedule or a `ByGroup`.

    Numbers must be above 0. The rates of some groups may be 0, but not those of all groups.

    Raises:
        ValueError: If the value is not allowed. The caller puts the name of the option before the message.
    """
    groups = by_group(value, _rate_of_group)
    if groups is None:
        return _rate(value)
    if not any(isinstance(rate, Schedule) or rate for rate in (*dict(groups.values).values(), groups.others)):
        raise ValueError("must be above 0 in at least one group")
    return groups


def weight_decay(value: object) -> float | ByGroup:
    """Convert the option `weight_decay` to a number or a `ByGroup`; numbers must be at least 0.

    Raises:
        ValueError: If the value is not allowed. The caller puts the name of the option before the message.
    """
    groups = by_group(value, _decay)
    return _decay(value) if groups is None else groups


def _number(value: object) -> float:
    try:
        return float("nan" if isinstance(value, bool | bytes) else cast("Any", value))
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def _rate(value: object) -> float | Schedule:
    if isinstance(value, str | Schedule | Spec):
        try:
            course = schedule(value)
        except EnvariantError as error:
            raise ValueError(f"must be a number or a schedule ({error})") from None
        if not isinstance(course, Constant):
            try:
                course.check_not_negative("learning_rate", zero=False)
            except EnvariantError:
                raise ValueError("must be at least 0 at every step, and not always 0") from None
            return course
        value = course.value
    rate = _number(value)
    if rate != rate:
        raise ValueError("must be a number or a schedule")
    if not 0 < rate < float("inf"):
        raise ValueError("must be a finite number above 0")
    return rate


def _rate_of_group(value: object) -> float | Schedule:
    # A rate of 0 freezes the group.
    return 0.0 if _number(value) == 0 else _rate(value)


def _decay(value: object) -> float:
    number = _number(value)
    if not math.isfinite(number):
        raise ValueError("must be a number")
    if number < 0:
        raise ValueError("must be at least 0")
    return number
