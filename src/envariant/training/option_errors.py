"""Convert validation errors of pydantic to one-sentence errors about training options."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from envariant.core.errors import EnvariantError, shown, unknown_name


def one_line(error: ValidationError, options: Mapping[str, Any], known: Iterable[str]) -> EnvariantError:
    """Describe the first validation error in one sentence: option, allowed values and given value.

    Args:
        error: Validation error raised by pydantic.
        options: Given options by name.
        known: Names of all options.
    """
    fault = error.errors()[0]
    name = str(fault["loc"][0]) if fault["loc"] else ""
    kind, limits = fault["type"], fault.get("ctx", {})
    if kind == "extra_forbidden":
        return unknown_name("option", name, known)
    if kind == "missing":
        return EnvariantError(f"{name}: is required; give a name or an object")
    if not name:
        return EnvariantError(str(limits.get("error", fault["msg"])))
    value = options.get(name, options.get("n_seeds"))
    if isinstance(value, type) and name not in ("model", "optimizer"):
        return EnvariantError(
            f"{name}: {value.__name__} is a class; pass an instance, as in {value.__name__}(…)"
        )
    match kind:
        case "greater_than_equal":
            allowed = f"must be at least {limits['ge']:g}"
        case "less_than_equal":
            allowed = f"must be at most {limits['le']:,}"
        case "less_than":
            allowed = f"must lie below {'2³²' if limits['lt'] == 2**32 else format(limits['lt'], 'g')}"
        case "literal_error":
            allowed = f"must be {limits['expected'].replace(chr(39), '')}"
        case "value_error":
            allowed = str(limits["error"])
        case "bool_type" | "bool_parsing":
            allowed = "must be true or false"
        case "mapping_type" | "dict_type":
            allowed = "must be a mapping from names to values"
        case "tuple_type" | "string_type" if name == "test_environments":
            allowed = "must be a list of names"
        case "string_type" if name == "hyperparameters":
            allowed = "must be a mapping from names to values"
        case "string_type" if name == "memory":
            allowed = "must be a size such as 8GB, or a number of bytes"
        case _:
            allowed = fault["msg"][:1].lower() + fault["msg"][1:]
    # Pydantic reports only "full", the first alternative of the union; the message must name both.
    if name == "batch_size" and kind == "literal_error":
        allowed = 'must be a whole number or "full"' if type(value) is not int else "must be at least 1"
    return EnvariantError(f"{name} {allowed}; got {shown(value)}")
