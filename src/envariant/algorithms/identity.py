"""Identify algorithms by strings, for hashing and comparison between processes."""

import dataclasses
import hashlib
import inspect
import sys
from collections.abc import Mapping
from functools import cache
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any, cast

import numpy as np
from torch import Tensor, nn

from envariant.algorithms.base import Algorithm
from envariant.core import specs
from envariant.core.errors import EnvariantError
from envariant.core.schedules import Schedule


def identity(algorithm: Algorithm) -> str:
    """Return a string that identifies an algorithm by its classes and field values.

    For classes that are not defined in Envariant, the string also contains the module and a hash of the
    source code, so editing such a class changes the identity. Two objects with the same classes and values
    have the same identity in every process.

    Raises:
        EnvariantError: If a field has a value without a reproducible description, such as an open file.

    Example:
        >>> from envariant.algorithms import Composition, WorstCaseRisk
        >>> identity(Composition(risk_aggregator=WorstCaseRisk())).startswith("Composition(risk_aggregator=")
        True
    """
    try:
        return _describe(algorithm)
    except (TypeError, RecursionError) as error:
        raise EnvariantError(
            f"{algorithm.name}: contains a value that cannot be compared by content ({error}); "
            f"make it a frozen dataclass of numbers and strings"
        ) from None


def _describe(value: Any) -> str:
    match value:
        case None | bool() | int() | float() | str():
            return specs.format_value(value)
        case tuple() | list():
            return f"({', '.join(map(_describe, cast('list[Any]', value)))})"
        case set() | frozenset():
            return f"{{{', '.join(sorted(map(_describe, cast('set[Any]', value))))}}}"
        case Mapping():
            items = cast("Mapping[Any, Any]", value).items()
            return f"{{{', '.join(sorted(f'{_describe(k)}: {_describe(v)}' for k, v in items))}}}"
        case bytes():
            return _digest(value)
        case Tensor():
            return f"tensor({value.dtype}, {_describe(value.detach().cpu().numpy())})"
        case nn.Module():
            return f"{_class(type(value))}({value}, {_describe(value.state_dict())})"
        case np.ndarray():
            return f"array({value.dtype}, {value.shape}, {_digest(value.tobytes())})"
        case type():
            return _class(cast("type[Any]", value))
        case FunctionType():
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            return f"{value.__module__}.{value.__qualname__}#{source_digest(value)}{_describe(cells)}"
        case CodeType():
            return f"code({value.co_code.hex()}, {value.co_names}, {_describe(value.co_consts)})"
        case BuiltinFunctionType():
            return f"{value.__module__}.{value.__qualname__}"
        case Schedule() if _origin(type(value)) == "envariant":
            return str(value)
        case _ if dataclasses.is_dataclass(value):
            fields = [f"{f.name}={_describe(getattr(value, f.name))}" for f in dataclasses.fields(value)]
            return f"{_class(type(value))}({', '.join(fields)})"
        case _:
            # Content of a pickle: a class or function, its arguments, and the attributes.
            content = value.__reduce_ex__(4)
            return content if isinstance(content, str) else f"{_class(type(value))}{_describe(content[:3])}"


# Python reads and parses the whole file to find the source code of a class.
@cache
def _class(cls: type[Any]) -> str:
    if _origin(cls) == "envariant":
        return cls.__qualname__
    # Include inherited code, except code of the library, PyTorch and Python.
    known = {"envariant", "torch", *sys.stdlib_module_names}
    sources = [source_digest(base) for base in cls.__mro__ if _origin(base) not in known]
    return f"{cls.__module__}.{cls.__qualname__}" + (f"#{_digest(sources)}" if sources else "")


def _origin(cls: type[Any]) -> str:
    """Return the name of the top-level package of a class."""
    return cls.__module__.split(".")[0]


def source_digest(code: Any) -> str:
    """Return a hash of a function's or class's source code.

    For lambdas, and if the source code is not available, the compiled code is hashed instead.

    Args:
        code: Function or class.
    """
    try:
        if code.__name__ != "<lambda>":
            return _digest(inspect.getsource(code))
    except (OSError, TypeError):
        pass
    members = vars(code).values() if isinstance(code, type) else [code]
    return _digest([_describe(f.__code__) for f in members if isinstance(f, FunctionType)])


def _digest(value: Any) -> str:
    return hashlib.blake2b(repr(value).encode(), digest_size=8).hexdigest()
