"""Command-line flags for training options, generated from the fields of `RunSpec`."""

import functools
import inspect
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from cyclopts import Parameter

from envariant.cli.options import Batch, Number, NumberOrNone, NumberOrText, Whole, WholeOrNone
from envariant.core import specs
from envariant.core.errors import EnvariantError
from envariant.training.run_spec import PYTHON_ONLY, RunSpec

_ALIASES = {"data": "-d", "algorithm": "-a", "learning_rate": "--lr"}

Assignments = Annotated[
    tuple[str, ...],
    Parameter(
        name="--set",
        negative="",
        help="One hyperparameter of the algorithm, KEY=VALUE; repeat it for more: "
        '--set "coefficient=step(1, 1e4, at=40%)".',
    ),
]
"""Type of the option `--set`; `assignments` converts its values to hyperparameters."""


def with_run_options(
    names: tuple[str, ...], defaults: Mapping[str, Any] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds a flag for each training option to a command with `**options`.

    Args:
        names: Names of the training options, in the order of their flags. In the command's help, these flags
            precede the command's parameters. If the command has a required or positional parameter, the flags
            come last instead.
        defaults: Default values for this command, by option name; other options keep the default of
            `RunSpec`.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]
        flags = [
            _flag(name, (defaults or {}).get(name, _DEFAULT)) for name in names if name not in PYTHON_ONLY
        ]

        positional = [p for p in own if p.kind is not p.KEYWORD_ONLY]
        keyword = [p for p in own if p.kind is p.KEYWORD_ONLY]
        # Required parameters of the command come first in its help.
        is_required = any(p.default is p.empty for p in keyword) or bool(positional)
        parameters = [*positional, *(keyword + flags if is_required else flags + keyword)]
        signature = inspect.Signature(parameters)

        @functools.wraps(command)
        def called(*arguments: Any, **options: Any) -> None:
            bound = signature.bind(*arguments, **options)
            # Cyclopts passes only options from the command line.
            bound.apply_defaults()
            command(*bound.args, **bound.kwargs)

        setattr(called, "__signature__", signature)  # noqa: B010
        called.__annotations__ = {p.name: p.annotation for p in parameters}
        return called

    return decorate


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options whose value is not None."""
    return {key: value for key, value in options.items() if value is not None}


def assignments(texts: tuple[str, ...]) -> dict[str, Any]:
    """Convert the values of `--set KEY=VALUE` options to hyperparameter values by name.

    Args:
        texts: Values of the `--set` options, each of the form `KEY=VALUE`.

    Raises:
        EnvariantError: If a value is not of the form `KEY=VALUE`, or a key is given twice.
    """
    values: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise EnvariantError(f"--set: expected KEY=VALUE; got '{text}'")
        name = key.strip().replace("-", "_")
        if name in values:
            raise EnvariantError(f"--set: {name} is given twice; give it once")
        values[name] = specs.parse_value(value)
    return values


_DEFAULT = object()


def _flag(name: str, default: Any) -> inspect.Parameter:
    field = RunSpec.model_fields[name]
    default = field.default if default is _DEFAULT else default
    kind = _typed(field.annotation, default)
    settings: dict[str, Any] = {
        "help": (field.description or "").partition("; in Python")[0].rstrip(".") + "."
    }
    if name in _ALIASES:
        settings["alias"] = _ALIASES[name]
    if field.annotation is bool:
        settings["negative"] = ""
    if "tuple" in str(kind):
        settings |= {"negative": "", "allow_leading_hyphen": True}
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, Parameter(**settings)],
    )


def _typed(annotation: Any, default: Any) -> Any:
    """Return the type of an option on the command line; `str` if its values are Python objects."""
    if annotation is Any:
        if isinstance(default, float):
            return NumberOrText
        return str if isinstance(default, str) else str | None
    kinds = [_bare(each) for each in (get_args(annotation) if _is_union(annotation) else (annotation,))]
    if int in kinds:
        is_batch = any(get_origin(kind) is Literal for kind in kinds)
        return Batch if is_batch else WholeOrNone if default is None else Whole
    if str in kinds:
        return str | None
    if float in kinds:
        return NumberOrNone if default is None else Number
    return annotation | None if default is None else annotation


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, UnionType)


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


OPTIONS = tuple(name for name in RunSpec.model_fields if name not in ("hyperparameters", *PYTHON_ONLY))
"""Names of the training options that have a command-line flag."""
