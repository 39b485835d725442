"""Specs: strings such as `poly(k=1, p=3, after=40%)` that name an object and its settings.

Schedules, models, algorithms and data sets are written this way on the command line, in stored results and
in Python. Python's parser reads the arguments, so numbers, strings, tuples and nested calls are written as in
Python; no code is evaluated.
"""

import ast
import dataclasses
import keyword
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, TypeVar, cast, final, get_type_hints

from envariant.core.errors import EnvariantError, shortened, shown, unknown_name
from envariant.core.type_hints import bare, bounds, type_in_words

T = TypeVar("T")

# A name may hold hyphens, plus signs and a protocol after a colon: "and-mask", "erm++", "colored-mnist:irm".
_CALL = re.compile(r"\s*(?P<name>[A-Za-z][\w+:-]*)\s*(?:\((?P<arguments>.*)\))?\s*", re.DOTALL)

# A string in quotes; or outside of quotes, a percent sign or a word reserved by Python at the end of a value.
_STRING = r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\""""
_RESERVED = "|".join(word for word in keyword.kwlist if word.islower())
_END = r"(?=\s*(?:[,)\]]|$))"
_PARTS = re.compile(rf"\b[rR](?:{_STRING})|{_STRING}|%{_END}|(?<![\w-])(?:{_RESERVED}){_END}", re.DOTALL)

# Backslashes that are escapes in strings written by `format_value`; in a path, a backslash separates folders.
_ESCAPES = re.compile(r"""(?:[^\\]|\\[\\'"]|\\u[0-9a-f]{4}|\\U[0-9a-f]{8})*""", re.DOTALL)

# Longer or more deeply nested strings exhaust the stack of the parser.
_MAX_LENGTH, _MAX_DEPTH = 10_000, 30


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
    """Name with positional and keyword arguments, written `name(1, key=value)`; arguments can be specs."""

    name: str
    positional: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __str__(self) -> str:
        arguments = [format_value(value) for value in self.positional]
        arguments += [f"{key}={format_value(value)}" for key, value in self.keywords.items()]
        return f"{self.name}({', '.join(arguments)})" if arguments else self.name


def parse(text: str) -> Spec:
    """Parse a string of the form `name` or `name(1, key=value, …)` to a `Spec`.

    Raises:
        EnvariantError: If the string is not a name with optional arguments in parentheses.
    """
    match = _CALL.fullmatch(_bounded(text))
    if match is None:
        raise _unreadable(text, "name or name(key=value, …)")
    try:
        # The name may not be a Python name, so only the arguments go through the parser.
        call = _syntax_tree(f"_({match['arguments'] or ''})")
    except SyntaxError:
        hint = "; put a path in quotes, without a backslash at its end" if "\\" in text else ""
        raise _unreadable(text, f"name(key=value, …){hint}") from None
    if not isinstance(call, ast.Call):
        raise _unreadable(text, "one name(key=value, …)")
    spec = cast("Spec", _value(call, text))
    return Spec(match["name"], spec.positional, spec.keywords)


def parse_as(kind: str, text: str) -> Spec:
    """Parse a string as `parse` does; error messages name the kind of the object, such as "model"."""
    try:
        return parse(text)
    except EnvariantError as error:
        raise EnvariantError(f"{error} for the {kind}") from None


def parse_value(text: str) -> Any:
    """Parse one value: a number, a percentage such as `40%`, `true`, `none`, a name, a tuple or a spec.

    Raises:
        EnvariantError: If the string is not a valid value.
    """
    match = _CALL.fullmatch(_bounded(text))
    with suppress(SyntaxError):
        if match is None or match["name"].isidentifier():
            return _value(_syntax_tree(text.strip()), text)
    # Not a Python name: "mm-rex" would be a difference.
    spec = parse(text)
    return spec if spec.positional or spec.keywords else spec.name


def format_value(value: Any) -> str:
    """Convert a number, Boolean, None, string, spec or tuple to a string that `parse_value` can read back."""
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
    """Quote a string, using only escapes that cannot be part of a Windows path."""
    if _ESCAPES.fullmatch(literal := repr(text)):
        return literal

    def escaped(character: str) -> str:
        return character if character.isprintable() or ord(character) > 0xFFFF else f"\\u{ord(character):04x}"

    return "'" + "".join(map(escaped, text.replace("\\", "\\\\").replace("'", "\\'"))) + "'"


def describe(name: str, instance: object, default: object = None, positional: tuple[str, ...] = ()) -> str:
    """Convert a dataclass instance to a string: its name, and the settings that differ from the defaults.

    Args:
        name: Name of the object.
        instance: Dataclass instance; fields with `compare=False` are not written.
        default: Instance whose settings count as defaults. Default: the default values of the fields.
        positional: Names of the fields whose values are always written; they come first and have no key.
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
        positional: Names of the fields that may be set without a key, in order. Default: all fields
            that are not keyword-only.
        hidden: Names of the fields that a spec cannot set.

    Returns:
        Keyword arguments for `cls`.

    Raises:
        EnvariantError: If a key is unknown, missing or repeated, there are too many arguments, or a value
            has the wrong type.
    """
    fields = [f for f in dataclasses.fields(cls) if f.init]
    names = tuple(f.name for f in fields if f.name not in hidden)
    unnamed = tuple(f.name for f in fields if f.name in names and not f.kw_only)
    order = unnamed if positional is None else positional
    if len(spec.positional) > len(order):
        if not names:
            raise EnvariantError(f"{spec.name}: takes no settings")
        if not order:
            raise EnvariantError(f"{spec.name}: settings must be named, as in {spec.name}({names[0]}=…)")
        limit = f"at most {len(order)} unnamed values"
        raise EnvariantError(f"{spec.name}: takes {limit}; got {len(spec.positional)}")
    arguments = dict(zip(order, spec.positional, strict=False))
    for key, value in spec.keywords.items():
        if key not in names:
            raise unknown_name("setting", key, names, where=spec.name)
        if key in arguments:
            raise EnvariantError(f"{spec.name}: '{key}' is given twice")
        arguments[key] = value
    required = {f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING}
    if missing := sorted(required - arguments.keys()):
        raise EnvariantError(f"{spec.name}: needs {', '.join(missing)}, as in {spec.name}({missing[0]}=…)")
    return checked(cls, arguments, spec.name)


def build(kind: str, text: str, known: Mapping[str, type[T]]) -> T:
    """Build an instance of one of the `known` dataclasses from a string such as `mlp(hidden=390)`.

    Raises:
        EnvariantError: If the name or one of its settings is unknown, or a value has the wrong type.
    """
    spec = parse_as(kind, text)
    if spec.name not in known:
        raise unknown_name(kind, spec.name, known)
    return known[spec.name](**fill(known[spec.name], spec))


def checked(cls: type[Any], settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Convert settings to the declared types of the fields of a dataclass; integers are valid floats.

    Bounds are not checked here, nor are settings whose type is a class of this package; the dataclass checks
    both when it is constructed.

    Raises:
        EnvariantError: If a value has the wrong type; the message begins with `where`.
    """
    declared = _declared(cls)
    return {
        key: declared[key].converted(value, f"{where}: {key}", bounded=False) if key in declared else value
        for key, value in settings.items()
    }


def validate(instance: object, where: str = "", only: Collection[str] | None = None) -> None:
    """Check types and bounds of the fields of a dataclass instance, and convert integers to floats.

    Bounds are declared with the type by pydantic's `Field`, as in `Annotated[float, Field(ge=0, le=1)]`. NaN
    and infinity are never allowed. Fields that have their default values are not checked.

    Args:
        instance: Instance of a frozen dataclass.
        where: Prefix of error messages. Default: the name of the class.
        only: Names of the fields to check. Default: all.

    Raises:
        EnvariantError: If a value has the wrong type or is out of bounds.
    """
    where = where or type(instance).__name__
    for key, declared in _declared(type(instance)).items():
        value = getattr(instance, key)
        if value is not declared.default and (only is None or key in only):
            object.__setattr__(instance, key, declared.converted(value, f"{where}: {key}", bounded=True))


def check_value(value: object, hint: Any, what: str) -> Any:
    """Check the type and the bounds of one value, as `validate` does for fields.

    Args:
        value: Value to check.
        hint: Type with bounds, such as `Annotated[int, Field(ge=1)]`.
        what: Name of the value, for the error message.

    Returns:
        The value; an integer given for a float is converted.

    Raises:
        EnvariantError: If the value has the wrong type or is out of bounds.
    """
    return _Declared(hint, bounds(hint), None).converted(value, what, bounded=True)


@final
@dataclass(frozen=True, eq=False)
class _Declared:
    """Declared type, bounds and default value of a field."""

    hint: Any
    bounds: Mapping[str, float]
    default: object

    @cached_property
    def adapter(self) -> Any:
        from pydantic import ConfigDict, TypeAdapter
        from pydantic.errors import PydanticUserError

        config = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
        try:
            return TypeAdapter(self.hint, config=config)
        except (PydanticUserError, TypeError):
            # A type of another package that pydantic cannot check.
            return TypeAdapter(Any)

    def converted(self, value: object, what: str, *, bounded: bool) -> Any:
        from pydantic import ValidationError

        is_scalar = type(value).__module__ == "numpy" and getattr(value, "shape", None) == ()
        plain: object = cast("Any", value).item() if is_scalar else value
        try:
            converted: object = self.adapter.validate_python(plain)
        except ValidationError as error:
            violated = error.errors()[0]["type"]
        else:
            if bounded and isinstance(converted, int) and abs(converted) > _LARGEST:
                raise EnvariantError(f"{what} must lie within ±2⁵³, got {_shown(converted)}")
            return converted
        is_bound = violated in _BOUND_ERRORS
        if is_bound and not bounded:
            return plain
        if is_bound or (plain != plain and self.bounds):
            raise EnvariantError(f"{what} must be {self._range_in_words(violated)}, got {_shown(plain)}")
        expected = "a finite number" if violated == "finite_number" else type_in_words(bare(self.hint))
        raise EnvariantError(f"{what} must be {expected}; got {_shown(plain)}")

    def _range_in_words(self, violated: str) -> str:
        """Return the allowed range as text; for whole numbers, only the violated bound."""
        low, high = self.bounds.get("ge", self.bounds.get("gt")), self.bounds.get("le", self.bounds.get("lt"))
        whole = bare(self.hint) is int
        if high is not None and (low is None or (whole and violated in ("less_than", "less_than_equal"))):
            return f"{'at most' if 'le' in self.bounds else 'below'} {high:,}"
        if whole and low is not None:
            return f"at least {low + ('gt' in self.bounds):,}"
        if high is None:
            return "positive" if "gt" in self.bounds and not low else f"at least {low:,}"
        return (
            f"in {'[' if 'ge' in self.bounds else '('}{low:g}, {high:g}{']' if 'le' in self.bounds else ')'}"
        )


# Larger integers have no exact float, and overflow in PyTorch.
_LARGEST = 2**53
_BOUND_ERRORS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}


@cache
def _declared(cls: type[Any]) -> dict[str, _Declared]:
    """Return declared type, bounds and default of each field of a dataclass that can be checked."""
    try:
        hints = get_type_hints(cls, include_extras=True)
    except (NameError, TypeError):
        # In other packages, annotations may be strings with names that do not exist at run time.
        return {}
    declared: dict[str, _Declared] = {}
    for each in dataclasses.fields(cls):
        kind = bare(hints[each.name])
        if each.init and not (isinstance(kind, type) and kind.__module__.startswith("envariant.")):
            declared[each.name] = _Declared(hints[each.name], bounds(hints[each.name]), each.default)
    return declared


def _shown(value: object) -> str:
    try:
        return shortened(format_value(value))
    except ValueError:
        return shown(value)


def _bounded(text: str) -> str:
    if not isinstance(text, str):
        raise EnvariantError(f"expected text such as name or name(key=value, …); got {shown(text)}")
    if len(text) > _MAX_LENGTH:
        raise _unreadable(text, f"at most {_MAX_LENGTH:,} characters, but it has {len(text):,}")
    return text


def _unreadable(text: str, expected: str) -> EnvariantError:
    return EnvariantError(f"cannot read '{shortened(text)}': expected {expected}")


def _syntax_tree(source: str) -> ast.expr:
    def complete(match: re.Match[str]) -> str:
        if match[0] == "%":
            # A percent sign is Python's modulo: with a right side, `40%` can be parsed.
            return "%_"
        if keyword.iskeyword(match[0]):
            # A value such as `class`, the name of many a column.
            return repr(match[0])
        is_path = match[0][0] in "\"'" and not _ESCAPES.fullmatch(match[0])
        return match[0].replace("\\", "\\\\") if is_path else match[0]

    try:
        return ast.parse(_PARTS.sub(complete, source), mode="eval").body
    except (ValueError, MemoryError, RecursionError):
        # Null characters, lone surrogates, and expressions too deep for the parser.
        raise SyntaxError from None


def _value(node: ast.expr, text: str, depth: int = 0) -> Any:
    if depth > _MAX_DEPTH:
        raise _unreadable(text, f"at most {_MAX_DEPTH} nested values")
    depth += 1
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
        case ast.BinOp(op=ast.Sub(), right=ast.Name() | ast.Call(func=ast.Name())) if prefix := _prefix(
            node.left
        ):
            # A name with hyphens, such as image-folders('photos'), is parsed as a difference.
            value = _value(node.right, text, depth)
            if isinstance(value, Spec):
                return Spec(f"{prefix}-{value.name}", value.positional, value.keywords)
            return f"{prefix}-{ast.unparse(node.right)}"
        case ast.BinOp(ast.Constant(value=int() | float() as value), ast.Mod(), ast.Name(id="_")):
            return Percent(value)
        case ast.BinOp(ast.Name(id=first), ast.Sub(), ast.Call(func=ast.Name()) as call):
            spec = cast("Spec", _value(call, text, depth))
            return dataclasses.replace(spec, name=f"{first}-{spec.name}")
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return tuple(_value(item, text, depth) for item in items)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            named = {k.arg: _value(k.value, text, depth) for k in keywords if k.arg is not None}
            keys = [k.arg for k in keywords]
            if repeated := [key for key in keys if keys.count(key) > 1]:
                raise _unreadable(text, f"every key once, but '{repeated[0]}' is given twice")
            if len(named) == len(keywords):
                return Spec(name, tuple(_value(a, text, depth) for a in args), named)
        case _:
            pass
    raise _unreadable(text, "numbers, words, tuples or name(key=value, …)")


def _prefix(node: ast.expr) -> str:
    """Return the text of a name with hyphens; "" if the expression is not a name."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.BinOp(left=left, op=ast.Sub(), right=ast.Name(id=name)) if before := _prefix(left):
            return f"{before}-{name}"
        case _:
            return ""
