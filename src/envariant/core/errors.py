"""What goes wrong because of an input, said in one line.

Every error that a user can mend is an `EnvariantError`: its text names what was wrong, where, and what
to do. The command line prints that text and exits with 2; anything else is a bug and keeps its traceback.
"""

import difflib
from collections.abc import Iterable
from typing import final


@final
class EnvariantError(Exception):
    """An input cannot be used. The message says what, where, and the mend."""


def unknown_name(kind: str, name: str, known: Iterable[str], where: str = "") -> EnvariantError:
    """The error for a name nobody knows, with the nearest known one.

    Args:
        kind: what the name should be, such as "algorithm".
        name: what the user wrote.
        known: every name that would have been right.
        where: an optional place, such as "irm(…)", put before the message.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f"did you mean '{near[0]}'? " if near else ""
    place = f"{where}: " if where else ""
    return EnvariantError(f"{place}unknown {kind} '{name}'; {hint}known: {', '.join(names) or 'none'}")
