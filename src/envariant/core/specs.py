"""The little language in which things are named with their settings: `poly(k=1, p=3, after=190)`.

Schedules, models, algorithms and data sets are written this way on the command line, in stored results
and in Python. Python's own parser reads the arguments, so numbers, strings, tuples and nested calls mean
what a reader expects; nothing is ever evaluated.
"""

import ast
import dataclasses
import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast, final, get_args, get_origin, get_type_hints

from envariant.core.errors import EnvariantError, unknown_name

T = TypeVar("T")

# A name may hold hyphens, plus signs and a protocol after a colon: "and-mask", "erm++", "colored-mnist:irm".
_CALL = re.compile(r"\s*(?P<name>[A-Za-z][\w+:-]*)\s*(?:\((?P<arguments>.*)\))?\s*", re.DOTALL)


@final
@dataclass(frozen=True)
class Spec:
    """A name with positional and keyword arguments; arguments may be specs themselves."""

    name: str
    positional: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __str__(self) -> str:
        arguments = [format_value(value) for value in self.positional]
        arguments += [f"{key}={format_value(value)}" for key, value in self.keywords.items()]
        return f"{self.name}({', '.join(arguments)})" if arguments else self.name


def parse(text: str) -> Spec:
    """Reads `name` or `name(1, key=value, …)`.

    Raises:
        EnvariantError: the text is not of that form.
    """
    match = _CALL.fullmatch(text)
    if match is None:
        raise EnvariantError(f"cannot read '{text}': expected name or name(key=value, …)")
    try:
        # The name may not be a Python name, so only the arguments go through the parser.
        call = ast.parse(f"_({match['arguments'] or ''})", mode="eval").body
    except SyntaxError:
        raise EnvariantError(f"cannot read '{text}': expected name(key=value, …)") from None
    if not isinstance(call, ast.Call):
        raise EnvariantError(f"cannot read '{text}': expected one name(key=value, …)")
    spec = cast("Spec", _value(call, text))
    return Spec(match["name"], spec.positional, spec.keywords)


def parse_value(text: str) -> Any:
    """Reads one value as typed after `--set key=`: a number, true, false, none, a word or a spec."""
    match = _CALL.fullmatch(text)
    try:
        if match is None or match["name"].isidentifier():
            return _value(ast.parse(text.strip(), mode="eval").body, text)
    except SyntaxError:
        pass
    # Not Python's idea of a name: "mm-rex" would be a difference.
    spec = parse(text)
    return spec if spec.positional or spec.keywords else spec.name


def format_value(value: Any) -> str:
    """The text that `parse_value` reads back as `value`."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float):
        # %.12g writes 10000 for 1e4 and keeps every digit a person would type.
        short = f"{value:.12g}"
        return short if float(short) == value else repr(value)
    if isinstance(value, tuple):
        items = cast("tuple[Any, ...]", value)
        return f"({', '.join(map(format_value, items))}{',' if len(items) == 1 else ''})"
    if isinstance(value, str):
        # Only a word stands bare: what would be read as something else is quoted.
        bare = value.isidentifier() and not keyword.iskeyword(value) and parse_value(value) == value
        return value if bare else repr(value)
    return str(value)


def describe(name: str, instance: object, usual: object) -> str:
    """The text that names a dataclass: `name`, and in brackets the fields in which it is not the usual one.

    Args:
        name: under which it is found.
        instance: the dataclass to describe.
        usual: one of the same class, built from the name alone.
    """
    fields = dataclasses.fields(cast("Any", instance))
    changed = {
        f.name: getattr(instance, f.name)
        for f in fields
        if f.compare and getattr(instance, f.name) != getattr(usual, f.name)
    }
    return str(Spec(name, (), changed))


def fill(
    cls: type[Any],
    spec: Spec,
    positional: tuple[str, ...] | None = None,
    hidden: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Matches a spec's arguments with the fields of a dataclass; the caller builds it.

    Args:
        cls: the dataclass.
        spec: the arguments.
        positional: the fields that may be given without a key, in order; None means all.
        hidden: fields that cannot be set this way.

    Raises:
        EnvariantError: an unknown or repeated key, too many arguments, or a value of the wrong type.
    """
    names = tuple(f.name for f in dataclasses.fields(cls) if f.init and f.name not in hidden)
    order = names if positional is None else positional
    if len(spec.positional) > len(order):
        if not names:
            raise EnvariantError(f"{spec.name}: takes no settings")
        if not order:
            raise EnvariantError(f"{spec.name}: settings need a key, as in {spec.name}({names[0]}=…)")
        raise EnvariantError(
            f"{spec.name}: takes at most {len(order)} values without a key; got {len(spec.positional)}"
        )
    arguments = dict(zip(order, spec.positional, strict=False))
    for key, value in spec.keywords.items():
        if key not in names:
            raise unknown_name("setting", key, names, where=spec.name)
        if key in arguments:
            raise EnvariantError(f"{spec.name}: '{key}' is given twice")
        arguments[key] = value
    required = {
        f.name
        for f in dataclasses.fields(cls)
        if f.init and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - arguments.keys()):
        raise EnvariantError(f"{spec.name}: needs {', '.join(missing)}, as in {spec.name}({missing[0]}=…)")
    return checked(cls, arguments, spec.name)


def build(kind: str, text: str, known: Mapping[str, type[T]]) -> T:
    """What a string such as `mlp(hidden=390)` names, out of the classes that are known by a name.

    Raises:
        EnvariantError: there is no such `kind` of thing, or it has no such setting.
    """
    spec = parse(text)
    if spec.name not in known:
        raise unknown_name(kind, spec.name, known)
    cls = known[spec.name]
    return cls(**fill(cls, spec))


def checked(cls: type[Any], settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings in the types that the fields of a class declare; a whole number may stand for a real one.

    A field whose type is a class of ours is left to that class, which says more of what it wants.

    Raises:
        EnvariantError: a value has the wrong type; the message begins with `where`.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    hints = get_type_hints(cls)
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(hints[key], type) and hints[key].__module__.startswith("envariant."):
            found[key] = value
            continue
        adapter = TypeAdapter(hints[key], config=ConfigDict(strict=True, arbitrary_types_allowed=True))
        try:
            found[key] = adapter.validate_python(value)
        except ValidationError:
            if get_origin(hints[key]) is Literal:
                choices = " or ".join(map(str, get_args(hints[key])))
                raise EnvariantError(f"{where}: {key} must be {choices}; got {format_value(value)}") from None
            wanted = _WANTED.get(str(hints[key]), _WANTED.get(getattr(hints[key], "__name__", ""), ""))
            wanted = wanted or str(hints[key]).replace("typing.", "")
            raise EnvariantError(f"{where}: {key} must be {wanted}; got {format_value(value)}") from None
    return found


_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a word",
    "int | None": "a whole number",
    "int | tuple[int, ...]": "a whole number or several in brackets",
    "tuple[float, ...]": "numbers in brackets",
    "tuple[int, ...]": "whole numbers in brackets",
}


def _value(node: ast.expr, text: str) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Name(id="inf")):
            return -float("inf")
        case ast.Name(id=name):
            # Words a shell user types: true, none, mean. Python's spellings are constants already.
            return {"true": True, "false": False, "none": None, "inf": float("inf")}.get(name, name)
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return tuple(_value(item, text) for item in items)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            named = {k.arg: _value(k.value, text) for k in keywords if k.arg is not None}
            if len(named) == len(keywords):
                return Spec(name, tuple(_value(a, text) for a in args), named)
        case _:
            pass
    raise EnvariantError(f"cannot read '{text}': expected numbers, words, tuples or name(key=value, …)")
