"""Errors and warnings for the user.

Every error that a user can fix is an `EnvariantError`. Its message states the problem, the location and the
remedy. The command line prints the message and exits with status 2; any other exception is a bug and keeps
its traceback.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import final

from envariant.core.printable import one_line, printable

# Names in files may have any length.
_LONGEST = 2_000


@final
class EnvariantError(ValueError):
    """Error that a user can fix. The message states the problem, the location and the remedy.

    It is a `ValueError`, as scikit-learn expects for invalid arguments.

    Args:
        message: Error message, one sentence.
        retryable: Whether the error is caused by the system and not by the input (a full disk, for example),
            so that the same call can succeed later.
    """

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable

    def __str__(self) -> str:
        return _message(super().__str__())


@final
class EnvariantWarning(UserWarning):
    """Warning about a call that works, but probably not as the user intended."""

    def __str__(self) -> str:
        return _message(super().__str__())


def unknown_name(kind: str, name: str, known: Iterable[str], where: str = "") -> EnvariantError:
    """Return the error for an unknown name, with the closest known name as a suggestion.

    Case, spaces, underscores and hyphens are ignored: `IRM` and `and_mask` suggest `irm` and `and-mask`.

    Args:
        kind: Kind of the named object, such as "algorithm".
        name: Unknown name, as entered by the user.
        known: All valid names.
        where: Prefix of the message, such as "irm(…)"; empty for none.
    """
    names = sorted(known)
    suggestion = closest_name(name, names)
    hint = "" if suggestion is None else f"did you mean '{suggestion}'? "
    prefix = f"{where}: " if where else ""
    return EnvariantError(
        f"{prefix}unknown {kind} '{shortened(str(name))}'; {hint}known: {', '.join(names) or 'none'}"
    )


def closest_name(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most similar to `name`, or None if no known name is similar."""
    candidates = {_simplified(str(candidate)): candidate for candidate in known}
    similar = difflib.get_close_matches(_simplified(str(name)), candidates, n=1, cutoff=0.6)
    return candidates[similar[0]] if similar else None


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the error's type if there is no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shortened(text: str, most: int = 80) -> str:
    """Return text as one printable line; text longer than `most` characters is truncated."""
    line = " ".join(printable(text).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def shown(value: object) -> str:
    """Return a value as text for an error message, on one line of at most 80 characters."""
    try:
        text = repr(value)
        # Objects such as data frames and optimizers describe themselves in many lines.
        return f"{type(value).__name__} object" if "\n" in text else shortened(text)
    except ValueError:
        # Python does not convert integers of more than 4,300 digits.
        return f"a value of type {type(value).__name__}"


def listed(names: Sequence[object], most: int = 5, separator: str = ", ") -> str:
    """Join the first `most` names with a separator, followed by an ellipsis if there are more names."""
    return separator.join(map(str, names[:most])) + (f"{separator}…" if len(names) > most else "")


def _message(text: str) -> str:
    """Return a message as one printable line; quoted names from data and files may contain any character."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
    return one_line(text)


def _simplified(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).casefold()
