"""Inspect the declared types of settings: bounds, optional types, and descriptions in plain words."""

import functools
import operator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin


def bounds(hint: Any) -> dict[str, float]:
    """Return the bounds in the annotations of a type: ge, gt, le and lt."""
    extras = [extra for kind in _alternatives(hint) for extra in getattr(kind, "__metadata__", ())]
    limits = [limit for extra in extras for limit in getattr(extra, "metadata", [extra])]
    return {
        key: getattr(limit, key)
        for limit in limits
        for key in ("ge", "gt", "le", "lt")
        if hasattr(limit, key)
    }


def optional(hint: Any) -> Any:
    """Return T for the type T | None, and other types unchanged."""
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 and type(None) in get_args(hint) else hint


def bare(hint: Any) -> Any:
    """Return a type without its annotations and without None."""
    kind = optional(hint)
    if len(kinds := _alternatives(kind)) > 1 and any(get_origin(each) is Annotated for each in kinds):
        return functools.reduce(operator.or_, map(bare, kinds))
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself."""
    kind = optional(hint)
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


_TYPES_IN_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a word",
    "int | None": "a whole number",
    "int | tuple[int, ...]": "a whole number, or several in parentheses",
    "tuple[float, ...]": "numbers in parentheses",
    "tuple[int, ...]": "whole numbers in parentheses",
    "int | envariant.core.specs.Percent": "a step number, or a share of the run such as 40%",
    "tuple[int | envariant.core.specs.Percent, ...]": "step numbers, or shares of the run such as 40%",
}


def type_in_words(hint: Any) -> str:
    """Describe a type in plain words, for error messages."""
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    name = getattr(hint, "__name__", "") if str(hint) not in _TYPES_IN_WORDS else str(hint)
    return _TYPES_IN_WORDS.get(name, str(hint).replace("typing.", ""))
