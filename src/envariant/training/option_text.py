"""Convert option values to strings, for records, tables and command lines."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

from envariant.core import specs


def plain(value: Any) -> Any:
    """Convert an option value to a JSON-compatible value; objects are converted to strings."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, tuple | list):
        return [plain(inner) for inner in cast("Sequence[Any]", value)]
    return text_of(value)


def text_of(value: Any) -> str:
    """Return a string that represents an object in records and tables; it is the same in every process.

    For classes and functions, this is the qualified name; for dataclasses, the name and all settings that
    differ from their defaults, as in "sgd(momentum=0.9)"; for other objects, the attribute `name` or the
    class name.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, functools.partial):
        partial = cast("functools.partial[Any]", value)
        arguments = tuple(_setting(each) for each in partial.args)
        keywords = {key: _setting(each) for key, each in partial.keywords.items()}
        return str(specs.Spec(text_of(partial.func), arguments, keywords))
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return value.__qualname__
    name = getattr(value, "name", None)
    name = name if isinstance(name, str) and name else type(value).__name__
    if not dataclasses.is_dataclass(value):
        return name
    if type(value).__str__ is not object.__str__:
        return str(value)
    # A name computed from the fields, as in sources and compositions, already contains the settings.
    computed = isinstance(getattr(type(value), "name", None), property)
    return name if computed else str(specs.Spec(name, (), _settings(value)))


def _settings(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that differ from their defaults, as values for a `Spec`."""
    settings: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        if not field.compare or field.name == "name":
            continue
        factory: Any = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        if (current := _setting(getattr(value, field.name))) != _setting(default):
            settings[field.name] = current
    return settings


def _setting(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return tuple(_setting(each) for each in cast("Sequence[Any]", value))
    return specs.Spec(text_of(value))
