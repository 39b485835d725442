"""Load the columns of a table; infer the decimal separator and the words for missing values."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import pandas as pd

from envariant.core.errors import EnvariantError
from envariant.data.tables import reading
from envariant.data.tables.columns import (
    Column,
    column_of_kind,
    concatenated,
    has_mixed_types,
    infer_column,
    read_chunk,
)
from envariant.data.tables.kinds import KINDS, ColumnChunk, Kind, MissingRule, Notation
from envariant.data.tables.kinds.notation import decimal_sign, may_be_thousands, plain
from envariant.data.tables.reading import TableInput, labeled, lacking_columns, open_table

# Largest number of values of a column that are searched for a decimal separator.
_SHOWN = 10_000

Chunks = dict[str, list[ColumnChunk]]


@final
@dataclass(frozen=True, eq=False)
class LoadedColumns:
    """Columns of a table, loaded in chunks, before their kinds are inferred.

    Attributes:
        table: Table that contains the columns.
        chunks: Chunks of each column, by column name.
        index: Pandas index of the rows.
        target_dtype: Pandas type of the target column; None for a text file.
        decimal_comma: Whether numbers have a decimal comma; None if unknown.
    """

    table: TableInput
    chunks: Chunks
    index: "pd.Index[Any]"
    target_dtype: Any
    decimal_comma: bool | None

    def infer(self, roles: Collection[str], declared: frozenset[str] | None) -> dict[str, Column]:
        """Infer the kind of every column.

        Args:
            roles: Names of the target and environment columns, in which words such as "none" are values.
            declared: Strings that the user declared as missing values. Default: words such as NA.

        Raises:
            EnvariantError: If a column of numbers or dates contains a few other strings.
        """
        samples, columns, rules = self.table.samples, dict[str, Column](), dict[str, MissingRule]()
        for name, chunks in self.chunks.items():
            rules[name] = MissingRule(
                declared,
                keeps_words=name in roles,
                quoted=samples[name].quoted_words if name in samples else frozenset(),
                unquoted=samples[name].unquoted_words if name in samples else frozenset(),
                categorical=name not in roles and any(chunk.categorical for chunk in chunks),
            )
            columns[name] = infer_column(name, chunks, rules[name], self.decimal_comma)
        numeric = [name for name, column in columns.items() if column.type.words_are_missing]
        # Words that are missing values among numbers are missing values in the whole table.
        markers = {text.lower() for name in numeric for text in columns[name].missing_as}
        markers |= {word for name in numeric if name in samples for word in samples[name].words}
        quoted = {word for name in numeric if name in samples for word in samples[name].quoted_words}
        for name in columns.keys() - {*numeric, *roles} if markers and declared is None else ():
            if any(text.lower() in markers for chunk in self.chunks[name] for text in chunk.texts):
                rule = replace(rules[name], markers=frozenset(markers), quoted=rules[name].quoted - quoted)
                columns[name] = infer_column(name, self.chunks[name], rule, self.decimal_comma)
        return columns


def load(
    table: TableInput,
    names: Sequence[str],
    *,
    texts: Collection[str] = (),
    target: str = "",
    environment: str = "",
    declared: frozenset[str] | None = None,
) -> LoadedColumns:
    """Load the columns of a table in chunks.

    Args:
        table: Table to read.
        names: Names of the columns to load.
        texts: Names of columns to read as text, without conversion to numbers (for text files).
        target: Name of the target column; "" for none.
        environment: Name of the environment column; "" for none.
        declared: Strings that the user declared as missing values. Default: words such as NA.

    Raises:
        EnvariantError: If the data cannot be read, or a value is invalid.
    """
    sentinels = plain([*(declared or ())])

    def chunk(name: str, rows: "pd.Series[Any]", first_row: int) -> ColumnChunk:
        part = read_chunk(
            name,
            rows,
            first_row=first_row,
            categorical=name == environment,
            is_target=name == target and not table.is_text,
        )
        if part.kind is None or not len(sentinels):
            return part
        return replace(part, values=np.where(np.isin(part.values, sentinels), np.nan, part.values))

    chunks: Chunks = {name: [] for name in names}
    unconverted = {*texts, target, environment}.intersection(names) if table.is_text else set[str]()
    index: list[pd.Index[Any]] = []
    rows, dtype = 0, None
    for frame in table.chunks(None):
        for name in names:
            if table.is_text and (name in unconverted or frame[name].dtype.kind not in "biuf"):
                unconverted.add(name)
            else:
                chunks[name].append(chunk(name, frame[name], rows))
        dtype = frame[target].dtype if target and not table.is_text else dtype
        index.append(frame.index if table.has_index else pd.RangeIndex(rows, rows + len(frame)))
        rows += len(frame)
    if table.is_text:
        unconverted |= {name for name in names if has_mixed_types(chunks[name])}
        chunks |= _as_text(table, sorted(unconverted, key=names.index), chunk)
    decimal_comma, doubtful = _decimal_comma(table, chunks, environment)
    if doubtful:
        chunks |= _as_text(table, doubtful, chunk)
    whole = index[0].append(index[1:]) if index else pd.RangeIndex(0)
    return LoadedColumns(table, chunks, whole, dtype, decimal_comma)


def _as_text(table: TableInput, names: Sequence[str], chunk: Any) -> Chunks:
    """Read columns of a text file again, without converting strings to numbers."""
    chunks: Chunks = {name: [] for name in names}
    first_row = 0
    for frame in table.chunks(names) if names else ():
        for name in names:
            chunks[name].append(chunk(name, frame[name], first_row))
        first_row += len(frame)
    return chunks


def _decimal_comma(table: TableInput, chunks: Chunks, environment: str) -> tuple[bool | None, list[str]]:
    """Return whether numbers have a decimal comma (None if unknown), and names of doubtful columns.

    In a doubtful column, a point may be a thousands separator or a decimal point, so the column must be read
    again as text.
    """
    signs: set[str] = set()
    doubtful: list[str] = []
    for name, parts in chunks.items():
        if name == environment or not parts:
            continue
        if any(part.kind is None for part in parts):
            texts = [text for part in parts for text in part.texts[:_SHOWN]]
            gone = MissingRule().mask(texts, None)
            signs.add(decimal_sign([text for text, absent in zip(texts, gone, strict=True) if not absent]))
        elif table.is_text:
            values = np.unique(np.concatenate([part.values[:_SHOWN] for part in parts]))
            fractions = values[values % 1 > 0]
            if len(fractions) and may_be_thousands(values[~np.isnan(values)]):
                doubtful.append(name)
            elif len(fractions):
                signs.add(".")
    signs.discard("")
    if not signs:
        return (True if table.separator == ";" else None), doubtful
    return (signs == {","} if len(signs) == 1 else None), doubtful


def read_columns(
    data: Any,
    kinds: Mapping[str, Kind],
    *,
    notations: Mapping[str, Notation | None] | None = None,
    known: Mapping[str, Collection[str]] | None = None,
    declared: frozenset[str] | None = None,
    encoding: str = "utf-8",
    optional: Collection[str] = (),
) -> Iterator[tuple["pd.Index[Any]", dict[str, Column]]]:
    """Read new values of the columns on which a model was trained, in chunks of rows.

    Args:
        data: New table: a path, or a data frame of pandas, polars or Arrow.
        kinds: Kind of each column in training, by column name; other columns are ignored.
        notations: Notation of the numbers in training, by column name.
        known: Categories in training, by column name.
        declared: Strings that the user declared as missing values in training. Default: words such as NA.
        encoding: Encoding of a text file.
        optional: Names of columns in `kinds` that may be absent.

    Yields:
        Index of the rows, and columns by name. The index is that of a pandas data frame; for other tables, it
        consists of row numbers from 0. An empty table yields one chunk without rows.

    Raises:
        EnvariantError: If the data cannot be read, a column is missing, or a value is not of the given
            kind.
    """
    notations, known = notations or {}, known or {}
    table = open_table(data, encoding, declared)
    kinds = {name: kind for name, kind in kinds.items() if name not in optional or name in table.header}
    if lacking := [name for name in kinds if name not in table.header]:
        raise lacking_columns(table.label, lacking, table.header)
    texts = [name for name, kind in kinds.items() if KINDS[kind].categorical or notations.get(name)]
    columns: dict[str, Column] = {}
    try:
        loaded = load(table, list(kinds), texts=texts, declared=declared)
        for name, kind in kinds.items():
            parts = loaded.chunks.pop(name) or [ColumnChunk("number", np.zeros(0))]
            columns[name] = column_of_kind(
                name,
                concatenated(parts),
                kind,
                notation=notations.get(name),
                known=known.get(name, ()),
                declared=declared,
            )
    except EnvariantError as error:
        raise labeled(table.label, error) from None
    for start in range(0, max(1, len(loaded.index)), reading.ROWS_PER_CHUNK):
        rows = np.arange(start, min(start + reading.ROWS_PER_CHUNK, len(loaded.index)))
        yield loaded.index[rows], {name: column.rows(rows) for name, column in columns.items()}
