"""Decide which strings are missing values. Words such as `none` may also be ordinary values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

_NEVER_VALUES = frozenset({"?", "#n/a", "<na>", "nat", "0000-00-00"})
CLASS_WORDS = frozenset({"none", "missing", "unknown"})
"""Words for a missing value that are also used as names of classes."""
_WORDS = CLASS_WORDS | {"na", "n/a", "null"}
MISSING_TEXTS = _NEVER_VALUES | _WORDS | {"-", "--", ".", "nan"}
"""Lower-case strings that can represent a missing value; empty strings always do."""

# Words of at least this share of the rows, and in at least this number of rows, are values.
_FREQUENT, _FEWEST = 0.05, 5


@final
@dataclass(frozen=True)
class MissingRule:
    """Rule that decides which strings of a column are missing values.

    Empty strings are always missing values. If the user declared strings as missing values, these replace all
    of the following rules.

    In a column of numbers or dates, all `MISSING_TEXTS` are missing values. In the target and environment
    columns, words such as "none" are ordinary values. In other columns, such a word is an ordinary value if
    it is frequent and not in `markers`, or if it is in `quoted`. A word in `unquoted` is a missing value even
    in the target and environment columns: R, for example, writes strings in quotes, but NA without quotes.

    Attributes:
        declared: Strings that the user declared as missing values in all columns. None: no declaration.
        keeps_words: Whether the column is the target or the environment.
        markers: Words that represent missing values in the numeric columns of the table.
        quoted: Words for missing values that occur in quotes in this column. Empty if all strings of the file
            are in quotes, because quotes then do not distinguish values from missing values.
        unquoted: Words for missing values that are never in quotes, in a column where every string except
            words for missing values is in quotes. Empty for any other column.
        categorical: Whether the column was declared as categorical, so that every string is a value.
    """

    declared: frozenset[str] | None = None
    keeps_words: bool = False
    markers: frozenset[str] = frozenset()
    quoted: frozenset[str] = frozenset()
    unquoted: frozenset[str] = frozenset()
    categorical: bool = False

    def mask(self, texts: Sequence[str], counts: NDArray[np.int64] | None) -> NDArray[np.bool_]:
        """Return the mask of strings that are missing values.

        Args:
            texts: Distinct strings.
            counts: Number of rows with each string. None for columns of numbers, in which all
                `MISSING_TEXTS` are missing values.
        """
        if counts is None:
            return np.array([self._is_missing(text, None, 0) for text in texts], dtype=bool)
        rows, each = int(counts.sum()), zip(texts, counts.tolist(), strict=True)
        return np.array([self._is_missing(text, count, rows) for text, count in each], dtype=bool)

    def _is_missing(self, text: str, count: int | None, rows: int) -> bool:
        word = text.lower()
        if not word or self.declared is not None:
            return not word or text in (self.declared or ())
        if word not in MISSING_TEXTS or self.categorical:
            return False
        if count is None or word in _NEVER_VALUES or word in self.unquoted:
            return True
        if self.keeps_words or word in self.quoted:
            return False
        return word not in _WORDS or word in self.markers or count < max(_FEWEST, _FREQUENT * rows)
