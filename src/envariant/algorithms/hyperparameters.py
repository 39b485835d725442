"""The numbers inside an algorithm, taken out and put back in, so that replicas may differ in them.

Two algorithms of one *structure* differ in nothing but numbers: coefficients, thresholds, the l2 weight.
Those run as one program whose numbers are tensors, one entry a replica. A number that follows a schedule
is a number all the same: it is looked up anew at every step.
"""

import copy
import dataclasses
from collections.abc import Hashable, Iterator, Sequence
from functools import cache
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin

from torch import Tensor

from envariant.core.schedules import Constant, Schedule

A = TypeVar("A")

Number = Schedule | float
"""A hyperparameter that replicas may differ in."""


def numbers(algorithm: object) -> tuple[Number, ...]:
    """Every number of an algorithm, part by part in the order of their fields."""
    return tuple(_numbers(algorithm))


def structure(algorithm: object) -> Hashable:
    """Everything about an algorithm but its numbers: equal for those that can run as one program."""
    if isinstance(algorithm, tuple):
        return tuple(structure(part) for part in cast("tuple[object, ...]", algorithm))
    if not _is_made_of_parts(algorithm):
        try:
            hash(algorithm)
        except TypeError:
            return id(algorithm)
        return (type(algorithm), algorithm)
    fields = dataclasses.fields(cast("Any", algorithm))
    values = ((f.name, getattr(algorithm, f.name)) for f in fields)
    floats = _float_fields(type(algorithm))
    return (
        type(algorithm),
        *(
            (name, "number" if _is_number(name, value, floats) else structure(value))
            for name, value in values
        ),
    )


def with_numbers(algorithm: A, values: Sequence[Tensor]) -> A:
    """A copy of an algorithm with tensors in place of its numbers, in the order of `numbers`.

    The copy is not checked again: the numbers were when the algorithm was made, and a tensor that stands
    for many replicas cannot be.
    """
    remaining = iter(values)
    made = _with(algorithm, remaining)
    if next(remaining, None) is not None:
        raise ValueError("more values than the algorithm has numbers")
    return made


def _numbers(part: object) -> Iterator[Number]:
    if isinstance(part, tuple):
        for inner in cast("tuple[object, ...]", part):
            yield from _numbers(inner)
    elif _is_made_of_parts(part):
        floats = _float_fields(type(part))
        for field in dataclasses.fields(cast("Any", part)):
            value = getattr(part, field.name)
            if _is_number(field.name, value, floats):
                yield value if isinstance(value, Schedule) else float(value)
            else:
                yield from _numbers(value)


def _with(part: Any, values: Iterator[Tensor]) -> Any:
    if isinstance(part, tuple):
        return tuple(_with(inner, values) for inner in cast("tuple[object, ...]", part))
    if not _is_made_of_parts(part):
        return part
    changed, floats = copy.copy(part), _float_fields(type(part))
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if not _is_number(field.name, value, floats):
            new = _with(value, values)
        else:
            new = _constant(next(values)) if isinstance(value, Schedule) else next(values)
        object.__setattr__(changed, field.name, new)
    return changed


def _is_made_of_parts(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type | Schedule)


def _is_number(name: str, value: object, floats: frozenset[str]) -> bool:
    return isinstance(value, Schedule) or name in floats


def _constant(value: Tensor) -> Constant:
    constant = object.__new__(Constant)
    object.__setattr__(constant, "value", value)
    return constant


@cache
def _float_fields(cls: type) -> frozenset[str]:
    return frozenset(f.name for f in dataclasses.fields(cast("Any", cls)) if _is_float(f.type))


def _is_float(hint: object) -> bool:
    # Annotations may be text, in a user's module, and name what does not exist at run time.
    if isinstance(hint, str):
        return hint.replace(" ", "").startswith(("float", "Annotated[float,")) and "|" not in hint
    return hint is float or (get_origin(hint) is Annotated and get_args(hint)[0] is float)
