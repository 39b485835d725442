"""Read CSV and Parquet files, and data frames of pandas, polars and Arrow, in chunks of rows.

Every chunk is a pandas data frame with unique column names.
"""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import narwhals
import pandas as pd

from envariant.core.errors import EnvariantError, closest_name, first_line, listed
from envariant.data.tables.columns import Column, column_of_kind, read_chunk
from envariant.data.tables.kinds import KINDS, Kind
from envariant.data.tables.kinds.base import MISSING_TEXTS

# About a few dozen megabytes of text.
_ROWS_PER_CHUNK = 200_000


def read_chunks(
    data: Any, encoding: str, text_columns: Sequence[str] = ()
) -> tuple[str, Iterator[pd.DataFrame], list[str]]:
    """Read a table in chunks of rows; values of `text_columns` in a text file are not converted.

    Returns:
        A name for the table, an iterator over its chunks, and the names of its columns.

    Raises:
        EnvariantError: If the data cannot be read, or a column name occurs twice.
    """
    if isinstance(data, str | Path):
        path = Path(data)
        if path.is_dir():
            raise EnvariantError(f"{path}: is a folder; name a file (.csv or .parquet)")
        if not path.exists():
            raise EnvariantError(f"{path}: there is no such file")
        if path.suffix.lower() in (".parquet", ".pq"):
            return (str(path), *_parquet(path))
        return (str(path), *_text(path, encoding, text_columns))
    whole = data if isinstance(data, pd.DataFrame) else _in_pandas(data)
    header = [str(name) for name in whole.columns]
    _single("data frame", header)
    return "data frame", iter([whole.set_axis(header, axis=1)]), header


def _in_pandas(data: Any) -> pd.DataFrame:
    try:
        frame = narwhals.from_native(data, eager_only=True)
    except TypeError:
        raise EnvariantError(
            f"data must be a path or a data frame of pandas, polars or Arrow; got {type(data).__name__}"
        ) from None
    return pd.DataFrame({name: _as_pandas(frame[name]) for name in frame.columns})


def _as_pandas(column: "narwhals.Series[Any]") -> "pd.Series[Any]":
    kind = column.dtype
    if isinstance(kind, narwhals.Datetime) and kind.time_zone:
        # Local time, as in all other dates.
        column = column.dt.replace_time_zone(None)
    if isinstance(kind, narwhals.Categorical | narwhals.Enum):
        # Arrow would convert a missing category to the last category.
        return pd.Series(column.cast(narwhals.String).to_numpy(), dtype="category")
    return pd.Series(column.to_numpy())


def _text(path: Path, encoding: str, text_columns: Sequence[str]) -> tuple[Iterator[pd.DataFrame], list[str]]:
    # A column of numbers with a few "?" is then read as numbers.
    missing = [form(text) for text in MISSING_TEXTS for form in (str, str.upper, str.capitalize)]
    options: dict[str, Any] = {"encoding": encoding, "skipinitialspace": True}
    try:
        # The header is read as a row of text, because pandas would rename duplicate names in a header.
        first: dict[str, Any] = {
            "header": None,
            "nrows": 1,
            "dtype": str,
            "keep_default_na": False,
            **options,
        }
        firsts = {sign: pd.read_csv(path, sep=sign, **first) for sign in (",", ";", "\t", "|")}
    except pd.errors.EmptyDataError:
        raise EnvariantError(f"{path}: is empty") from None
    except Exception as error:
        raise _unreadable(path, encoding, error) from None
    widths = {sign: frame.shape[1] for sign, frame in firsts.items()}
    separator = max(widths, key=widths.__getitem__)
    names = firsts[separator].iloc[0]
    header = [" ".join(str(name).split()) or f"column {k + 1}" for k, name in enumerate(names)]
    _single(str(path), header)
    # Read as text, so that 03 is not converted to 3.
    options["dtype"] = {name: str for name in text_columns if name in header}
    options |= {"sep": separator, "names": header, "na_values": missing}
    return _text_chunks(path, encoding, options), header


def _text_chunks(path: Path, encoding: str, options: Mapping[str, Any]) -> Iterator[pd.DataFrame]:
    try:
        # Opened when the first chunk is requested, so that an unused iterator leaves no file open.
        with pd.read_csv(
            path, header=0, chunksize=_ROWS_PER_CHUNK, index_col=False, low_memory=False, **options
        ) as chunks:
            while True:
                with warnings.catch_warnings():
                    # If rows are longer than the header, pandas truncates them with a warning.
                    warnings.simplefilter("error", pd.errors.ParserWarning)
                    chunk = next(chunks, None)
                if chunk is None:
                    return
                yield chunk
    except pd.errors.ParserWarning:
        raise EnvariantError(
            f"{path}: some rows hold more values than its header has names ({len(options['names'])}); is a "
            f"name missing, or a text that contains the separator not in quotes?"
        ) from None
    # pandas and the decompressors raise some twenty types of error.
    except Exception as error:
        raise _unreadable(path, encoding, error) from None


def _unreadable(path: Path, encoding: str, error: Exception) -> EnvariantError:
    if isinstance(error, UnicodeDecodeError):
        return EnvariantError(
            f"{path}: is not {encoding} text (it holds byte 0x{error.object[error.start]:02x}); set its "
            f"encoding, such as latin-1, if it is a text file at all"
        )
    return EnvariantError(f"{path}: cannot be read as a table ({first_line(error)})")


def _parquet(path: Path) -> tuple[Iterator[pd.DataFrame], list[str]]:
    try:
        parquet = import_module("pyarrow.parquet")
    except ImportError:
        remedy = "pip install pyarrow, or save it as CSV"
        raise EnvariantError(f"{path}: Parquet needs pyarrow; {remedy}") from None

    def batches() -> Iterator[pd.DataFrame]:
        try:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(_ROWS_PER_CHUNK):
                    # The metadata of pandas would turn some columns into an index.
                    yield batch.to_pandas(ignore_metadata=True)
        except Exception as error:
            raise EnvariantError(f"{path}: is damaged ({first_line(error)})") from None

    try:
        with parquet.ParquetFile(path) as file:
            names = [str(name) for name in file.schema_arrow.names]
    except Exception as error:
        raise EnvariantError(f"{path}: is no Parquet file ({first_line(error)})") from None
    # An unnamed index is not a column.
    header = [name for name in names if not re.fullmatch(r"__index_level_\d+__", name)]
    _single(str(path), header)
    return batches(), header


def _single(label: str, header: Sequence[str]) -> None:
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise EnvariantError(f"{label}: column name '{repeated[0]}' is used twice; rename one")


def labeled(label: str, error: EnvariantError) -> EnvariantError:
    """Return the error with the name of the table as a prefix."""
    return error if str(error).startswith(label) else EnvariantError(f"{label}: {error}")


def read_columns(
    data: Any, kinds: Mapping[str, Kind], *, encoding: str = "utf-8"
) -> Iterator[tuple["pd.Index[Any]", dict[str, Column]]]:
    """Read columns of given kinds in chunks of rows; other columns are ignored.

    Yields:
        The index of the rows (that of a pandas data frame, else row numbers from 0) and the columns by name.
        An empty table yields one chunk without rows.

    Raises:
        EnvariantError: If the data cannot be read, a column is missing, or a value is not of the given
            kind.
    """
    text_columns = [name for name, kind in kinds.items() if KINDS[kind].categorical]
    label, chunks, header = read_chunks(data, encoding, text_columns)
    if lacking := [name for name in kinds if name not in header]:
        raise lacking_columns(label, lacking, header)
    has_index, first_row, is_empty = isinstance(data, pd.DataFrame), 0, True
    for chunk in chunks:
        index = chunk.index if has_index else pd.RangeIndex(first_row, first_row + len(chunk))
        try:
            columns = _of_kinds(chunk, kinds, first_row)
        except EnvariantError as error:
            raise labeled(label, error) from None
        yield index, columns
        first_row, is_empty = first_row + len(chunk), False
    if is_empty:
        yield pd.RangeIndex(0), _of_kinds(pd.DataFrame(columns=list(kinds), dtype=object), kinds, 0)


def _of_kinds(frame: pd.DataFrame, kinds: Mapping[str, Kind], first_row: int) -> dict[str, Column]:
    def column(name: str, kind: Kind) -> Column:
        chunk = read_chunk(name, frame[name], first_row=first_row)
        return column_of_kind(name, chunk, kind, first_row=first_row)

    return {name: column(name, kind) for name, kind in kinds.items()}


def lacking_columns(
    label: str, lacking: Sequence[str], header: Sequence[str], what: str = "column"
) -> EnvariantError:
    """Return the error for required columns that are missing from the header of a table."""
    similar = {name: closest_name(name, header) for name in lacking[:5]}
    quoted = [f"'{k}'" + (f" (did you mean '{known}'?)" if known else "") for k, known in similar.items()]
    more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
    names = f"{what}{'s' if len(lacking) > 1 else ''} {', '.join(quoted)}{more}"
    return EnvariantError(f"{label}: lacks {names}; it holds {listed(header, 20) or 'none'}")
