"""Convert named values to a string such as `weights(no=1, ("2 or more", 5))`."""

import keyword
from collections.abc import Iterable
from typing import Any

from envariant.core.specs import Spec


def written(name: str, pairs: Iterable[tuple[str, Any]], first: tuple[Any, ...] = ()) -> str:
    """Return the string `name(first, …, key=value, …)`.

    A pair whose key is not a Python identifier, or is a keyword, is written as `(key, value)`.

    Args:
        name: Name before the parentheses.
        pairs: Pairs of key and value.
        first: Values without a key.
    """
    pairs = tuple(pairs)
    words = {key: value for key, value in pairs if key.isidentifier() and not keyword.iskeyword(key)}
    return str(Spec(name, (*first, *(pair for pair in pairs if pair[0] not in words)), words))
