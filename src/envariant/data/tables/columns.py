"""Columns of a table, and inference of their kinds."""

import re
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from envariant.core.conversion import clean
from envariant.core.errors import EnvariantError, listed
from envariant.data.tables.kinds import (
    KINDS,
    MOST_CATEGORIES,
    Category,
    ColumnChunk,
    ColumnEncoding,
    ColumnKind,
    Kind,
    MissingRule,
    Notation,
)
from envariant.data.tables.kinds.base import LARGEST, MOST_CLASSES, quoted
from envariant.data.tables.kinds.missing import CLASS_WORDS
from envariant.data.tables.kinds.notation import plain

_NUMERIC = re.compile(r"\W{0,3}\d")
# Smallest share of number-like strings in a text column that is reported.
_NUMERIC_SHARE = 0.5
# Share and number of rows below which observed values are too few to learn from.
_RARE_SHARE, _RARE_ROWS = 0.05, 100
# Smallest share of a word among integers that makes it a class.
_FREQUENT = 0.05


@final
@dataclass(frozen=True, eq=False)
class Column:
    """Column of a table: name, kind and values.

    Attributes:
        name: Name of the column in the header.
        kind: Name of the column's kind, a key of `KINDS` such as "number".
        values: Values, `[rows]`: float64 with NaN for missing values (dates in days since 1970), or int32
            codes of categories with −1 for missing values.
        categories: Categories in the order of their codes; empty for other kinds.
        notation: Notation of numbers that were read from text, such as "1,5" with a decimal comma; None if
            they were written as in programming languages ("1.5").
        remarks: Sentences that explain how ambiguous strings were read.
        missing_as: Strings that were read as missing values.
    """

    name: str
    kind: Kind
    values: NDArray[Any]
    categories: tuple[str, ...] = ()
    notation: Notation | None = None
    remarks: tuple[str, ...] = ()
    missing_as: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    @property
    def type(self) -> ColumnKind:
        """Kind of the column, as a `ColumnKind`."""
        return KINDS[self.kind]

    @property
    def missing(self) -> NDArray[np.bool_]:
        """Mask of missing values, `[rows]`."""
        return self.type.missing(self.values)

    def rows(self, index: NDArray[Any]) -> "Column":
        """Return a copy of the column with only the rows that an index or a mask selects."""
        return replace(self, values=self.values[index])

    def texts(self) -> list[str | None]:
        """Format the values as readable strings, with None for missing values."""
        return self.type.format(self.values, self.categories)

    def fit(self, environments: NDArray[Any] | None = None) -> ColumnEncoding | None:
        """Fit the encoding of the column; return None if it is constant or too few rows have a value.

        `rarely_observed` defines how many rows are too few.

        Args:
            environments: Index of the environment of each row. Default: one environment.
        """
        if rarely_observed(int(np.count_nonzero(~self.missing)), len(self)):
            return None
        encoding = self.type.fit(self.name, self.values, self.categories, environments)
        return encoding and replace(encoding, notation=self.notation)


def rarely_observed(observed: int, rows: int) -> bool:
    """Return whether a column has values in fewer than 100 rows and in less than 5 % of all rows.

    Such values often come from a few unusual rows, and a model cannot learn from them.
    """
    return observed < min(_RARE_SHARE * rows, _RARE_ROWS)


def read_chunk(
    name: str,
    rows: "pd.Series[Any]",
    *,
    first_row: int = 0,
    categorical: bool = False,
    is_target: bool = False,
) -> ColumnChunk:
    """Convert consecutive rows of a column to a `ColumnChunk`.

    Args:
        name: Name of the column.
        rows: Consecutive rows of the column.
        first_row: Number of preceding rows, for error messages.
        categorical: Whether to read numbers as categories. This is always done for the categorical type of
            pandas.
        is_target: Whether the column is the target. If so, original values are stored, and integers too large
            for float64 are read as text.

    Raises:
        EnvariantError: If a number is too large, or a value is not a scalar.
    """
    if categorical or isinstance(rows.dtype, pd.CategoricalDtype):
        return _text_chunk(name, rows, categorical=True, keep_originals=is_target)
    if pd.api.types.is_complex_dtype(rows):
        raise EnvariantError(f"column '{name}': holds complex numbers; split them into two columns")
    if is_target and _has_large_integers(rows):
        return _text_chunk(name, rows, categorical=False, keep_originals=True)
    for kind in KINDS.values():
        values = kind.from_pandas(name, rows, first_row)
        if values is not None:
            return ColumnChunk(kind.name, values)
    return _text_chunk(name, rows, categorical=False, keep_originals=is_target)


def _has_large_integers(rows: "pd.Series[Any]") -> bool:
    return bool(pd.api.types.is_integer_dtype(rows) and len(rows) and (rows.abs() > LARGEST).any())


def infer_column(
    name: str,
    chunks: Sequence[ColumnChunk],
    rule: MissingRule | None = None,
    decimal_comma: bool | None = None,
) -> Column:
    """Join the chunks of a column, and infer the kind of the column from all rows.

    Args:
        name: Name of the column.
        chunks: Chunks that contain all rows of the column.
        rule: Rule that decides which strings are missing values. Default: the rule for input columns.
        decimal_comma: Whether numbers in the table have a decimal comma; None if unknown.

    Raises:
        EnvariantError: If a column of numbers or dates contains a few other strings.
    """
    texts = concatenated(chunks)
    if texts.kind is not None:
        return Column(name, texts.kind, texts.values)
    categorical = texts.categorical
    rule = rule or MissingRule(categorical=categorical)
    missing = rule.mask(texts.texts, texts.counts)
    words, nonwords = texts.without(missing), texts.without(rule.mask(texts.texts, None))
    missing_as = tuple(text for text, absent in zip(texts.texts, missing, strict=True) if absent and text)
    remarks = [
        f"'{a}' and '{b}' are treated as one: they differ only in blanks or invisible characters"
        for a, b in texts.spellings
    ]
    categorical = categorical or (rule.keeps_words and _are_codes(words, nonwords))
    for kind in () if categorical else KINDS.values():
        chunk = nonwords if kind.words_are_missing else words
        if (parsed := kind.infer(name, chunk, decimal_comma)) is None:
            continue
        if parsed.notation is not None:
            numbers = parsed.notation.parse(chunk.texts)
            if len(differing := np.flatnonzero(numbers != plain(chunk.texts))):
                k = differing[0]
                remarks.append(f"'{quoted(chunk.texts[k])}' is read as {numbers[k]:.12g}")
        if kind.words_are_missing:
            values = set(chunk.texts)
            missing_as = tuple(text for text in texts.texts if text and text not in values)
        if kind.name == Category.name and not rule.keeps_words:
            remarks += _numeric_remark(chunk)
        return Column(name, kind.name, *parsed, tuple(remarks), missing_as)
    return Column(name, Category.name, *Category().infer(name, words), tuple(remarks), missing_as)


def _are_codes(words: ColumnChunk, numbers: ColumnChunk) -> bool:
    """Return whether strings are class codes: very long integers, or few integers and a word like "none"."""
    if any(re.fullmatch(r"[-+]?\d{16,}", text) for text in words.texts):
        return True
    frequent = [
        count >= _FREQUENT * len(words.values)
        for text, count in zip(words.texts, words.counts.tolist(), strict=True)
        if text.lower() in CLASS_WORDS
    ]
    are_few = len(numbers.texts) <= MOST_CLASSES and all(text.isdigit() for text in numbers.texts)
    return any(frequent) and are_few


def _numeric_remark(texts: ColumnChunk) -> list[str]:
    """Return a remark if many strings of a text column begin with a digit, such as numbers with a unit."""
    counts = texts.counts
    looks = np.array([bool(_NUMERIC.match(text)) for text in texts.texts], dtype=bool)
    share = counts[looks].sum() / max(1, counts.sum())
    if share < _NUMERIC_SHARE or len(texts.texts) <= MOST_CATEGORIES:
        return []
    odd = [
        text
        for text, number in zip(texts.texts, looks & np.isfinite(plain(texts.texts)), strict=True)
        if not number
    ]
    examples = listed([f"'{quoted(text)}'" for text in odd], 2)
    return [f"{share:.0%} of its values begin with a digit, but are read as text, because of {examples}"]


def has_mixed_types(chunks: Sequence[ColumnChunk]) -> bool:
    """Return whether pandas inferred different types for the chunks of a column.

    In that case, some strings may have been changed, for example "007" to "7".
    """
    return len({chunk.kind for chunk in chunks if not chunk.blank}) > 1


def column_of_kind(
    name: str,
    chunk: ColumnChunk,
    kind: Kind,
    *,
    first_row: int = 0,
    notation: Notation | None = None,
    known: Collection[str] = (),
    declared: frozenset[str] | None = None,
) -> Column:
    """Convert new rows of a column to the kind that the column had in training.

    The new rows may contain categories as numbers, Booleans as 0 and 1 or as words, and numbers and dates as
    text.

    Args:
        name: Name of the column.
        chunk: New rows of the column.
        kind: Kind of the column in training.
        first_row: Number of preceding rows, for error messages.
        notation: Notation of numbers in the training table.
        known: Categories that occur in training. They are never read as missing, even words such as "none".
        declared: Strings that the user declared as missing values in training. Default: words such as NA.

    Raises:
        EnvariantError: If a value is not of the given kind.
    """
    if chunk.kind not in (None, kind) and KINDS[chunk.kind].exclusive and not chunk.blank:
        raise EnvariantError(
            f"column '{name}': holds {chunk.kind}s, but the model was trained on a {kind} column of this name"
        )
    chunk = _as_text(chunk) if KINDS[kind].categorical else chunk
    if chunk.kind is None:
        unknown = np.array([text not in known for text in chunk.texts], dtype=bool)
        chunk = chunk.without(MissingRule(declared).mask(chunk.texts, None) & unknown)
    parsed = KINDS[kind].read(name, chunk, first_row, notation)
    return Column(name, kind, parsed.values, parsed.categories)


def _text_chunk(
    name: str, rows: "pd.Series[Any]", *, categorical: bool, keep_originals: bool = False
) -> ColumnChunk:
    try:
        codes, values = pd.factorize(rows)
    except TypeError:
        value = next((value for value in rows if not isinstance(value, Hashable)), rows.iloc[0])
        raise EnvariantError(
            f"column '{name}': holds a {type(value).__name__} where one value should be; make a column of "
            f"each of its parts, or exclude the column"
        ) from None
    # Distinct values may have the same text.
    written = [text_of(value) for value in values]
    text_codes, texts = pd.factorize(np.array(written, dtype=object))
    spellings: list[tuple[str, str]] = []
    if len(texts) < len(written):
        spellings = _spellings(values, written)
    table = np.append(text_codes, -1)[codes].astype(np.int32)
    originals: tuple[Any, ...] = ()
    if keep_originals:
        # If values have equal text, prefer the value that is this text, else the first.
        by_text = dict(zip(reversed(written), reversed(list(values)), strict=True))
        by_text |= {text: value for text, value in zip(written, values, strict=True) if text == value}
        originals = tuple(by_text[text] for text in texts)
    return ColumnChunk(None, table, tuple(texts), categorical, tuple(spellings), originals)


def _spellings(values: Any, written: Sequence[str]) -> list[tuple[str, str]]:
    """Return up to three pairs of different original strings that were read as the same string."""
    first: dict[str, str] = {}
    pairs: list[tuple[str, str]] = []
    for value, text in zip(values, written, strict=True):
        if isinstance(value, str) and first.setdefault(text, value) != value and text and len(pairs) < 3:
            pairs.append((first[text], value))
    return pairs


def _as_text(chunk: ColumnChunk) -> ColumnChunk:
    return chunk if chunk.kind is None else KINDS[chunk.kind].as_text(chunk.values)


def concatenated(chunks: Sequence[ColumnChunk]) -> ColumnChunk:
    """Join consecutive chunks of a column; chunks of different kinds become text."""
    kinds = {chunk.kind for chunk in chunks if not chunk.blank}
    if None in kinds or len(kinds) > 1 or any(chunk.categorical for chunk in chunks):
        return joined(chunks)
    values = [np.full(len(c.values), np.nan) if c.blank else c.values for c in chunks]
    return ColumnChunk(next(iter(kinds), "number"), np.concatenate(values))


def joined(chunks: Sequence[ColumnChunk]) -> ColumnChunk:
    """Join consecutive chunks of a column into one text chunk."""
    parts = [_as_text(chunk) for chunk in chunks]
    if len(parts) == 1:
        return parts[0]
    numbers: dict[str, int] = {}
    codes: list[NDArray[np.int32]] = []
    originals: dict[str, Any] = {}
    for chunk in parts:
        # The last entry is for code −1.
        table = [numbers.setdefault(text, len(numbers)) for text in chunk.texts]
        codes.append(np.array([*table, -1], dtype=np.int32)[chunk.values])
        originals = dict(zip(chunk.texts, chunk.originals, strict=False)) | originals
    return ColumnChunk(
        None,
        np.concatenate(codes),
        tuple(numbers),
        any(chunk.categorical for chunk in parts),
        tuple(dict.fromkeys(pair for chunk in parts for pair in chunk.spellings))[:3],
        tuple(originals.get(text, text) for text in numbers) if originals else (),
    )


def text_of(value: object) -> str:
    """Convert a value to a string in composed Unicode form without invisible characters; 3.0 becomes "3"."""
    # 3 and 3.0 are the same value, independent of the pandas type of the chunk.
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    text = clean(str(value))
    return text.removesuffix(" 00:00:00") if isinstance(value, datetime) else text
