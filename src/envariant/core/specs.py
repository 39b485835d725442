"""Specs: named objects with settings as text, such as `poly(k=1, p=3, after=40%)`.

Schedules, models, algorithms and data sets are written this way on the command line, in stored results and
in Python. Python's own parser reads the arguments, so numbers, strings, tuples and nested calls have
the same syntax as in Python; no code is evaluated.
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

# A string in quotes, or a percent sign that ends a value outside of quotes.
_STRING = r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\""""
_STRING_OR_PERCENT = re.compile(rf"\b[rR](?:{_STRING})|{_STRING}|%(?=\s*(?:[,)\]]|$))", re.DOTALL)

# Backslashes that are escapes in strings written by `format_value`; in a path, a backslash separates folders.
_ESCAPES = re.compile(r"""(?:[^\\]|\\[\\'"]|\\u[0-9a-f]{4}|\\U[0-9a-f]{8})*""", re.DOTALL)


@final
@dataclass(frozen=True)
class Percent:
    """Percentage from 0 to 100, written `40%`."""

    value: float

    def __post_init__(self) -> None:
        if not 0 <= self.value <= 100:
            raise EnvariantError(f"a percentage must be in [0, 100], got {self.value:g}%")

    def __str__(self) -> str:
        return f"{format_value(self.value)}%"


@final
@dataclass(frozen=True)
class Spec:
    """Name with positional and keyword arguments, written `name(1, key=value)`; arguments may be specs."""

    name: str
    positional: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __str__(self) -> str:
        arguments = [format_value(value) for value in self.positional]
        arguments += [f"{key}={format_value(value)}" for key, value in self.keywords.items()]
        return f"{self.name}({', '.join(arguments)})" if arguments else self.name


def parse(text: str) -> Spec:
    """Parse `name` or `name(1, key=value, …)`.

    Raises:
        EnvariantError: If the text is not a name with optional arguments in parentheses.
    """
    match = _CALL.fullmatch(text)
    if match is None:
        raise EnvariantError(f"cannot read '{text}': expected name or name(key=value, …)")
    try:
        # The name may not be a Python name, so only the arguments go through the parser.
        call = _syntax_tree(f"_({match['arguments'] or ''})")
    except SyntaxError:
        hint = "; put a path in quotes, without a backslash at its end" if "\\" in text else ""
        raise EnvariantError(f"cannot read '{text}': expected name(key=value, …){hint}") from None
    if not isinstance(call, ast.Call):
        raise EnvariantError(f"cannot read '{text}': expected one name(key=value, …)")
    spec = cast("Spec", _value(call, text))
    return Spec(match["name"], spec.positional, spec.keywords)


def parse_value(text: str) -> Any:
    """Parse one value: a number, a percentage such as `40%`, `true`, `none`, a word, a tuple or a spec.

    Raises:
        EnvariantError: If the text is not a valid value.
    """
    match = _CALL.fullmatch(text)
    try:
        if match is None or match["name"].isidentifier():
            return _value(_syntax_tree(text.strip()), text)
    except SyntaxError:
        pass
    # Not a Python name: "mm-rex" would be a difference.
    spec = parse(text)
    return spec if spec.positional or spec.keywords else spec.name


def format_value(value: Any) -> str:
    """Convert a number, Boolean, None, string, spec or tuple to text that `parse_value` reads back."""
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
        # Only a word is written without quotes; anything that would be read as another type is quoted.
        bare = value.isidentifier() and not keyword.iskeyword(value) and parse_value(value) == value
        return value if bare else _quoted(value)
    return str(value)


def _quoted(text: str) -> str:
    """Return a string in quotes; other escapes than these would also be parts of Windows paths."""
    literal = repr(text)
    if _ESCAPES.fullmatch(literal):
        return literal

    def escaped(character: str) -> str:
        code = ord(character)
        plain = character.isprintable() or code > 0xFFFF
        return character if plain else f"\\u{code:04x}"

    return "'" + "".join(map(escaped, text.replace("\\", "\\\\").replace("'", "\\'"))) + "'"


def describe(name: str, instance: object, default: object = None, positional: tuple[str, ...] = ()) -> str:
    """Return a dataclass instance as text: a name, and the settings that differ from the defaults.

    Args:
        name: Name of the object.
        instance: Dataclass instance; fields with `compare=False` are not written.
        default: Instance with the default settings. None: the defaults of the fields.
        positional: Names of the fields that are always written, first and without a key.
    """
    changed = {
        f.name: getattr(instance, f.name)
        for f in dataclasses.fields(cast("Any", instance))
        if f.compare and f.init and f.name not in positional
        if getattr(instance, f.name) != (f.default if default is None else getattr(default, f.name))
    }
    return str(Spec(name, tuple(getattr(instance, key) for key in positional), changed))


def fill(
    cls: type[Any], spec: Spec, positional: tuple[str, ...] | None = None, hidden: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Convert the arguments of a spec to keyword arguments of a dataclass.

    Args:
        cls: Dataclass to be constructed.
        spec: Spec with the arguments.
        positional: Names of the fields that may be set without a key, in order. None: all fields.
        hidden: Names of the fields that a spec cannot set.

    Returns:
        Keyword arguments for `cls`.

    Raises:
        EnvariantError: If a key is unknown, missing or repeated, there are too many arguments, or a value
            has the wrong type.
    """
    fields = [f for f in dataclasses.fields(cls) if f.init]
    names = tuple(f.name for f in fields if f.name not in hidden)
    order = names if positional is None else positional
    if len(spec.positional) > len(order):
        if not names:
            raise EnvariantError(f"{spec.name}: takes no settings")
        if not order:
            raise EnvariantError(f"{spec.name}: settings need a key, as in {spec.name}({names[0]}=…)")
        limit = f"at most {len(order)} values without a key"
        raise EnvariantError(f"{spec.name}: takes {limit}; got {len(spec.positional)}")
    arguments = dict(zip(order, spec.positional, strict=False))
    for key, value in spec.keywords.items():
        if key not in names:
            raise unknown_name("setting", key, names, where=spec.name)
        if key in arguments:
            raise EnvariantError(f"{spec.name}: '{key}' is given twice")
        arguments[key] = value
    unset = dataclasses.MISSING
    required = {f.name for f in fields if f.default is unset and f.default_factory is unset}
    if missing := sorted(required - arguments.keys()):
        raise EnvariantError(f"{spec.name}: needs {', '.join(missing)}, as in {spec.name}({missing[0]}=…)")
    return checked(cls, arguments, spec.name)


def build(kind: str, text: str, known: Mapping[str, type[T]]) -> T:
    """Build an object of one of the `known` dataclasses from a string such as `mlp(hidden=390)`.

    Raises:
        EnvariantError: If the name or one of its settings is unknown, or a value has the wrong type.
    """
    spec = parse(text)
    if spec.name not in known:
        raise unknown_name(kind, spec.name, known)
    return known[spec.name](**fill(known[spec.name], spec))


def checked(cls: type[Any], settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Convert settings to the declared types of the fields of a dataclass; integers are valid floats.

    Settings whose declared type is a class of this package are not checked here; the class checks them.

    Raises:
        EnvariantError: If a value has the wrong type; the message begins with `where`.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for key, value in settings.items():
        hint = hints[key]
        if isinstance(hint, type) and hint.__module__.startswith("envariant."):
            values[key] = value
            continue
        adapter = TypeAdapter(hint, config=ConfigDict(strict=True, arbitrary_types_allowed=True))
        try:
            values[key] = adapter.validate_python(value)
        except ValidationError:
            expected = _type_in_words(hint)
            raise EnvariantError(f"{where}: {key} must be {expected}; got {format_value(value)}") from None
    return values


_TYPES_IN_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a word",
    "int | None": "a whole number",
    "int | tuple[int, ...]": "a whole number, or several in parentheses",
    "tuple[float, ...]": "numbers in parentheses",
    "tuple[int, ...]": "whole numbers in parentheses",
    f"int | {__name__}.Percent": "a step number, or a share of the run such as 40%",
    f"tuple[int | {__name__}.Percent, ...]": "step numbers, or shares of the run such as 40%",
}


def _type_in_words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    name = getattr(hint, "__name__", "") if str(hint) not in _TYPES_IN_WORDS else str(hint)
    return _TYPES_IN_WORDS.get(name, str(hint).replace("typing.", ""))


def _syntax_tree(source: str) -> ast.expr:
    def complete(match: re.Match[str]) -> str:
        if match[0] == "%":
            # A percent sign is Python's modulo: with a right side, `40%` can be parsed.
            return "%_"
        is_path = match[0][0] in "\"'" and not _ESCAPES.fullmatch(match[0])
        return match[0].replace("\\", "\\\\") if is_path else match[0]

    return ast.parse(_STRING_OR_PERCENT.sub(complete, source), mode="eval").body


def _value(node: ast.expr, text: str) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Name(id="inf")):
            return -float("inf")
        case ast.Name(id=name):
            # Words as typed in a shell: true, none, mean. Python's spellings are constants already.
            return {"true": True, "false": False, "none": None, "inf": float("inf")}.get(name, name)
        case ast.BinOp(ast.Constant(value=int() | float() as value), ast.Mod(), ast.Name(id="_")):
            return Percent(value)
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return tuple(_value(item, text) for item in items)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            named = {k.arg: _value(k.value, text) for k in keywords if k.arg is not None}
            if len(named) == len(keywords):
                return Spec(name, tuple(_value(a, text) for a in args), named)
        case _:
            pass
    raise EnvariantError(f"cannot read '{text}': expected numbers, words, tuples or name(key=value, …)")
