"""Types of the command-line options that are used by several commands."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter, Token

from envariant.core.errors import EnvariantError, shortened


def _whole(_type: object, tokens: Sequence[Token]) -> int:
    """Convert an argument to an integer; reject numbers such as 2.9."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise EnvariantError(f"expected a whole number; got '{shortened(tokens[0].value)}'") from None


def _number(_type: object, tokens: Sequence[Token]) -> float:
    """Convert an argument to a number; reject words such as nan."""
    try:
        number = float(tokens[0].value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise EnvariantError(f"expected a number; got '{shortened(tokens[0].value)}'")
    return number


def _whole_or_full(_type: object, tokens: Sequence[Token]) -> int | str:
    """Convert an argument to an integer, or return "full"."""
    return tokens[0].value if tokens[0].value == "full" else _whole(_type, tokens)


def _folder(_type: object, tokens: Sequence[Token]) -> Path:
    """Convert an argument to the path of an existing folder."""
    path = Path(tokens[0].value)
    if not path.expanduser().is_dir():
        raise EnvariantError(f"MNIST folder {path}: there is no such folder")
    return path


Whole = Annotated[int, Parameter(converter=_whole)]
WholeOrNone = Annotated[int | None, Parameter(converter=_whole)]
Number = Annotated[float, Parameter(converter=_number)]
NumberOrNone = Annotated[float | None, Parameter(converter=_number)]
Batch = Annotated[int | Literal["full"] | None, Parameter(converter=_whole_or_full)]
Names = Annotated[tuple[str, ...], Parameter(negative="", consume_multiple=True, show_default=False)]
Switch = Annotated[bool, Parameter(negative="")]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object instead of text.")]
Mnist = Annotated[
    Path | None,
    Parameter(
        name="--mnist", converter=_folder, help="Folder with the MNIST files. They are downloaded by default."
    ),
]
