"""Option types shared by several commands."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, Token

from envariant.core.errors import EnvariantError


def _whole(_type: object, tokens: Sequence[Token]) -> int:
    """Convert an argument to an integer; numbers such as 2.9 are rejected."""
    text = tokens[0].value
    try:
        return int(text)
    except ValueError:
        name = tokens[0].keyword or "value"
        raise EnvariantError(f"{name}: expected a whole number; got '{text}'") from None


Whole = Annotated[int, Parameter(converter=_whole)]
Names = Annotated[tuple[str, ...], Parameter(negative="", consume_multiple=True, show_default=False)]
Switch = Annotated[bool, Parameter(negative="")]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object instead of text.")]
Mnist = Annotated[
    Path | None,
    Parameter(name="--mnist", help="Folder with the MNIST files. They are downloaded by default."),
]
