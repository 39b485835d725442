"""Escape control characters in text from data and files, so that it is safe in terminals and on HTML pages.

Column names, class names, file names and stored messages may come from untrusted sources. Control characters
in such text could clear a terminal, change its title or hide a part of a line.
"""

import math
import re
from typing import Any, Final, cast

# C0 controls except tab and newline, C1 controls, line separators, overrides and isolates of the writing
# direction, and lone surrogates, which stand for undecodable bytes of file names.
_UNSAFE: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_LONGEST_LINE: Final = 4_000


def printable(text: str) -> str:
    r"""Replace control characters with escapes such as `\x1b`; tabs and newlines are kept.

    Example:
        >>> print(printable("a\x1b[31m\u202e"))
        a\x1b[31m\u202e
    """
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def number_of(count: int, noun: str) -> str:
    """Return a count with its noun, in the plural unless the count is 1.

    Example:
        >>> number_of(1, "column"), number_of(1200, "row")
        ('1 column', '1,200 rows')
    """
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def one_line(text: str) -> str:
    """Return text as one printable line: newlines are escaped, and long text is shortened in the middle."""
    line = printable(text).replace("\n", "\\n")
    half = _LONGEST_LINE // 2
    return line if len(line) <= _LONGEST_LINE else f"{line[:half]} … {line[-half:]}"


def finite(value: Any) -> Any:
    """Replace infinities and NaN, which JSON does not support, with None."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in cast("dict[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in cast("list[Any]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value
