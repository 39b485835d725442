"""Option types that several commands share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, Token

from envariant.core.errors import EnvariantError


def _whole(_type: object, tokens: Sequence[Token]) -> int:
    """A whole number as typed: 2.9 is not 3."""
    text = tokens[0].value
    try:
        return int(text)
    except ValueError:
        raise EnvariantError(
            f"{tokens[0].keyword or 'value'}: expected a whole number; got '{text}'"
        ) from None


Whole = Annotated[int, Parameter(converter=_whole)]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object instead of text.")]
Mnist = Annotated[
    Path | None,
    Parameter(name="--mnist", help="A folder with the MNIST files, if they are not to be fetched."),
]
