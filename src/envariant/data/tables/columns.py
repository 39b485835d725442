"""Columns of a table, and inference of their kinds."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from envariant.core.errors import EnvariantError
from envariant.data.tables.kinds import KINDS, Category, ColumnChunk, ColumnKind, Kind


@final
@dataclass(frozen=True, eq=False)
class Column:
    """Column of a table: name, kind and values.

    Attributes:
        name: Name of the column in the header.
        kind: Name of the kind of the values, a key of `KINDS`.
        values: Values `[rows]`: float32 with NaN for missing values (dates in days since 1970), or int32
            codes of categories with −1 for missing values.
        categories: Categories in the order of their codes; empty for other kinds.
    """

    name: str
    kind: Kind
    values: NDArray[Any]
    categories: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    @property
    def type(self) -> ColumnKind:
        """Kind of the values."""
        return KINDS[self.kind]

    @property
    def missing(self) -> NDArray[np.bool_]:
        """Mask of missing values, `[rows]`."""
        return self.type.missing(self.values)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes if the column is a classification target, in order."""
        return self.type.class_names(self.categories)

    def rows(self, index: NDArray[Any]) -> "Column":
        """Return the column with the rows selected by an index or a mask."""
        return Column(self.name, self.kind, self.values[index], self.categories)

    def texts(self) -> list[str | None]:
        """Return the values as readable text, with None for missing values."""
        return self.type.format(self.values, self.categories)


def read_chunk(
    name: str, rows: "pd.Series[Any]", *, first_row: int = 0, categorical: bool = False
) -> ColumnChunk:
    """Convert consecutive rows of a column to compact form.

    If `categorical` is set, or the pandas type is categorical, numbers are categories as well. `first_row` is
    the number of preceding rows, for error messages.

    Raises:
        EnvariantError: If a number is too large to compute with, or a value is not a scalar.
    """
    if categorical or isinstance(rows.dtype, pd.CategoricalDtype):
        return _text_chunk(name, rows, categorical=True)
    if pd.api.types.is_complex_dtype(rows):
        raise EnvariantError(f"column '{name}': holds complex numbers; split them into two columns")
    for kind in KINDS.values():
        values = kind.from_pandas(name, rows, first_row)
        if values is not None:
            return ColumnChunk(kind.name, values)
    return _text_chunk(name, rows, categorical=False)


def infer_column(name: str, chunks: Sequence[ColumnChunk]) -> Column:
    """Join consecutive chunks to a column, and infer its kind from all chunks.

    Raises:
        EnvariantError: If a column of numbers or dates contains a few other texts.
    """
    kinds = {chunk.kind for chunk in chunks if not chunk.blank}
    categorical = any(chunk.categorical for chunk in chunks)
    if not categorical and len(kinds) < 2 and None not in kinds:
        values = [np.full(len(c.values), np.nan, np.float32) if c.blank else c.values for c in chunks]
        return Column(name, next(iter(kinds), None) or "number", np.concatenate(values))
    texts = _joined([_as_text(chunk) for chunk in chunks])
    for kind in () if categorical else KINDS.values():
        if (parsed := kind.infer(name, texts)) is not None:
            return Column(name, kind.name, *parsed)
    return Column(name, Category.name, *Category().infer(name, texts))


def has_mixed_types(chunks: Sequence[ColumnChunk]) -> bool:
    """Return whether pandas inferred several types for one column, so the original text may be lost."""
    return len({chunk.kind for chunk in chunks if not chunk.blank}) > 1


def column_of_kind(name: str, chunk: ColumnChunk, kind: Kind, *, first_row: int = 0) -> Column:
    """Convert a chunk to a column of a given kind, known from training.

    Categories may be given as numbers, Booleans as 0 and 1 or as words, numbers and dates as text.

    Raises:
        EnvariantError: If a value is not of the given kind.
    """
    if chunk.kind not in (None, kind) and KINDS[chunk.kind].exclusive and not chunk.blank:
        raise EnvariantError(
            f"column '{name}': holds {chunk.kind}s; the model learned from a {kind} of that name"
        )
    chunk = _as_text(chunk) if KINDS[kind].categorical else chunk
    return Column(name, kind, *KINDS[kind].read(name, chunk, first_row))


def _text_chunk(name: str, rows: "pd.Series[Any]", *, categorical: bool) -> ColumnChunk:
    try:
        codes, values = pd.factorize(rows)
    except TypeError:
        value = next((value for value in rows if not isinstance(value, Hashable)), rows.iloc[0])
        raise EnvariantError(
            f"column '{name}': holds a {type(value).__name__} where one value should be; make a column of "
            f"each of its parts, or exclude the column"
        ) from None
    # Distinct values may have the same text.
    text_codes, texts = pd.factorize(np.array([_text(value) for value in values], dtype=object))
    return ColumnChunk(None, np.append(text_codes, -1)[codes].astype(np.int32), tuple(texts), categorical)


def _as_text(chunk: ColumnChunk) -> ColumnChunk:
    return chunk if chunk.kind is None else KINDS[chunk.kind].as_text(chunk.values)


def _joined(chunks: Sequence[ColumnChunk]) -> ColumnChunk:
    """Join consecutive text chunks to one chunk."""
    numbers: dict[str, int] = {}
    codes: list[NDArray[np.int32]] = []
    for chunk in chunks:
        # The last entry is for code −1.
        table = [numbers.setdefault(text, len(numbers)) for text in chunk.texts]
        codes.append(np.array([*table, -1], dtype=np.int32)[chunk.values])
    return ColumnChunk(None, np.concatenate(codes), tuple(numbers))


def _text(value: object) -> str:
    # 3 and 3.0 are the same value, independent of the pandas type of the chunk.
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    text = str(value).strip()
    return text.removesuffix(" 00:00:00") if isinstance(value, datetime) else text
