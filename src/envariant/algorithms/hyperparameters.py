"""Read and replace an algorithm's numeric hyperparameters, which may differ between stacked replicas.

Two algorithms have the same *structure* if they differ only in numbers, such as coefficients, thresholds and
the l2 weight. They can run as one program, in which each number is a tensor with one entry per replica.
"""

import copy
import dataclasses
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cache
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin

from torch import Tensor

from envariant.algorithms.base import Part
from envariant.core.schedules import Constant, Schedule

A = TypeVar("A")

Number = Schedule | float
"""Numeric hyperparameter, which may differ between stacked replicas."""


def numbers(algorithm: object) -> tuple[Number, ...]:
    """Return an algorithm's numeric hyperparameters and schedules, in the order of its parts and fields."""
    return tuple(_numbers(algorithm))


def structure(algorithm: object) -> Hashable:
    """Return a key for comparing algorithms: algorithms with equal keys differ at most in numbers.

    Algorithms with equal keys can run as one program.
    """
    if isinstance(algorithm, Schedule):
        return "number"
    if isinstance(algorithm, tuple):
        return tuple(structure(part) for part in cast("tuple[object, ...]", algorithm))
    if not _has_parts(algorithm):
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
        *((name, "number" if name in floats else structure(value)) for name, value in values),
    )


def with_numbers(algorithm: A, values: Sequence[Tensor]) -> A:
    """Return a copy of an algorithm with its numbers replaced by tensors.

    There must be one tensor for each number that `numbers` returns, in the same order. Tensors are not
    validated, because a tensor may hold a different value for each replica.

    Raises:
        ValueError: If there are more values than numbers.
    """
    remaining = iter(values)
    copied = _replaced(
        algorithm, lambda n: _constant(next(remaining)) if isinstance(n, Schedule) else next(remaining)
    )
    if next(remaining, None) is not None:
        raise ValueError("more values than the algorithm has numbers")
    return copied


def resolve_schedules(algorithm: A, steps: int) -> A:
    """Convert relative switch points of an algorithm's schedules, such as `at=40%`, to step numbers.

    Args:
        algorithm: Algorithm to copy. An algorithm that is not a dataclass is returned unchanged.
        steps: Length of the run in steps.

    Raises:
        EnvariantError: If a schedule cannot be resolved for a run of this length.
    """

    def resolved(number: Number) -> Any:
        resolve = getattr(number, "resolve", None)
        return number if resolve is None else resolve(steps)

    return _replaced(algorithm, resolved)


def rescale(algorithm: A, old: int, new: int) -> A:
    """Scale all step numbers of an algorithm, such as switch points of schedules, to a new run length.

    Args:
        algorithm: Algorithm to copy. An algorithm that is not a dataclass is returned unchanged.
        old: Number of steps for which the algorithm's hyperparameters were chosen.
        new: Number of steps of the run.
    """
    return algorithm if old == new else _rescaled(algorithm, old, new)


def _rescaled(part: Any, old: int, new: int) -> Any:
    if isinstance(part, Schedule):
        return part.rescale(old, new)
    if isinstance(part, tuple):
        return tuple(_rescaled(inner, old, new) for inner in cast("tuple[object, ...]", part))
    if isinstance(part, type) or not (dataclasses.is_dataclass(part) and _has_parts(part)):
        return part
    steps = part.switch_steps() if isinstance(part, Part) else {}
    scaled = {key: rescaled_step(getattr(part, key), old, new) for key in steps}
    values = ((f.name, getattr(part, f.name)) for f in dataclasses.fields(part) if f.init)
    changes = {key: scaled[key] if key in scaled else _rescaled(value, old, new) for key, value in values}
    changes = {key: value for key, value in changes.items() if value is not getattr(part, key)}
    return dataclasses.replace(part, **changes) if changes else part


def rescaled_step(step: int, old: int, new: int) -> int:
    """Scale a step number from a run of `old` steps to a run of `new` steps.

    Step numbers above 0 and below `old` are scaled, to a value from 1 to `new` − 1. Others are returned
    unchanged.
    """
    return max(1, min(new - 1, round(step * new / old))) if 0 < step < old else step


def _numbers(part: object) -> Iterator[Number]:
    if isinstance(part, Schedule):
        yield part
    elif isinstance(part, tuple):
        for inner in cast("tuple[object, ...]", part):
            yield from _numbers(inner)
    elif _has_parts(part):
        floats = _float_fields(type(part))
        for field in dataclasses.fields(cast("Any", part)):
            value = getattr(part, field.name)
            if field.name in floats and not isinstance(value, Schedule):
                yield float(value)
            else:
                yield from _numbers(value)


def _replaced(part: Any, change: Callable[[Number], Any]) -> Any:
    """Copy nested dataclasses and tuples, with every number `n` replaced by `change(n)`."""
    if isinstance(part, Schedule):
        return change(part)
    if isinstance(part, tuple):
        return tuple(_replaced(inner, change) for inner in cast("tuple[object, ...]", part))
    if not _has_parts(part):
        return part
    copied, floats = copy.copy(part), _float_fields(type(part))
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        new = change(value) if field.name in floats else _replaced(value, change)
        object.__setattr__(copied, field.name, new)
    return copied


def _has_parts(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _constant(value: Tensor) -> Constant:
    constant = object.__new__(Constant)
    object.__setattr__(constant, "value", value)
    return constant


@cache
def _float_fields(cls: type) -> frozenset[str]:
    return frozenset(f.name for f in dataclasses.fields(cast("Any", cls)) if _is_float(f.type))


def _is_float(hint: object) -> bool:
    # In other packages annotations may be text, and may refer to names that do not exist at run time.
    if isinstance(hint, str):
        return hint.replace(" ", "").startswith(("float", "Annotated[float,")) and "|" not in hint
    return hint is float or (get_origin(hint) is Annotated and get_args(hint)[0] is float)
