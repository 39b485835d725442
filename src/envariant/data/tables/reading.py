"""Files and data frames as stretches of rows: CSV and Parquet, frames of pandas, polars and Arrow.

Whatever it was, from here on it is pandas, a stretch at a time, under column names that are used once.
"""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import narwhals
import pandas as pd

from envariant.core.errors import EnvariantError
from envariant.data.tables.columns import ABSENT, Column, Kind, of_kind, piece

# Rows read at a time: a few dozen megabytes of text.
_AT_A_TIME = 200_000


def stretches(
    data: Any, encoding: str, words: Sequence[str] = ()
) -> tuple[str, Iterator[pd.DataFrame], list[str]]:
    """What to call the table, its rows a stretch at a time, and the names of its columns.

    Columns named in `words` are read from a text file as they are written, numbers or not.
    """
    if isinstance(data, str | Path):
        path = Path(data)
        if path.is_dir():
            raise EnvariantError(f"{path}: is a folder; name a file (.csv or .parquet)")
        if not path.exists():
            raise EnvariantError(f"{path}: there is no such file")
        if path.suffix.lower() in (".parquet", ".pq"):
            return (str(path), *_parquet(path))
        return (str(path), *_text(path, encoding, words))
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
        # The clock on the wall, as of any other time.
        column = column.dt.replace_time_zone(None)
    if isinstance(kind, narwhals.Categorical | narwhals.Enum):
        # Arrow would give a missing category as the last one.
        return pd.Series(column.cast(narwhals.String).to_numpy(), dtype="category")
    return pd.Series(column.to_numpy())


def _text(path: Path, encoding: str, words: Sequence[str]) -> tuple[Iterator[pd.DataFrame], list[str]]:
    # Numbers with a ? here and there are then read as numbers.
    absent = [form(text) for text in ABSENT for form in (str, str.upper, str.capitalize)]
    options: dict[str, Any] = {"encoding": encoding, "skipinitialspace": True}
    try:
        # By itself and as text: as a header, the second of two equal names would be given another.
        firsts = {
            sign: pd.read_csv(
                path, sep=sign, header=None, nrows=1, dtype=str, keep_default_na=False, **options
            )
            for sign in (",", ";", "\t", "|")
        }
    except pd.errors.EmptyDataError:
        raise EnvariantError(f"{path}: is empty") from None
    except Exception as error:
        raise _unreadable(path, encoding, error) from None
    widths = {sign: found.shape[1] for sign, found in firsts.items()}
    separator = max(widths, key=widths.__getitem__)
    header = [
        " ".join(str(name).split()) or f"column {k + 1}" for k, name in enumerate(firsts[separator].iloc[0])
    ]
    _single(str(path), header)
    # As text, so that 03 stays 03.
    options["dtype"] = {name: str for name in words if name in header}
    options |= {"sep": separator, "names": header, "na_values": absent}
    return _of_text(path, encoding, options), header


def _of_text(path: Path, encoding: str, options: Mapping[str, Any]) -> Iterator[pd.DataFrame]:
    try:
        # Opened when the first rows are asked for, so that no file stays open where none are.
        with pd.read_csv(
            path, header=0, chunksize=_AT_A_TIME, index_col=False, low_memory=False, **options
        ) as parts:
            while True:
                with warnings.catch_warnings():
                    # Where rows are longer than the header pandas would drop their ends, and warn.
                    warnings.simplefilter("error", pd.errors.ParserWarning)
                    part = next(parts, None)
                if part is None:
                    return
                yield part
    except pd.errors.ParserWarning:
        raise EnvariantError(
            f"{path}: some rows hold more values than its header has names ({len(options['names'])}); is a "
            f"name missing, or a text with a separator in it not in quotes?"
        ) from None
    # pandas, and whatever it unpacks a file with, raise some twenty kinds of error.
    except Exception as error:
        raise _unreadable(path, encoding, error) from None


def _unreadable(path: Path, encoding: str, error: Exception) -> EnvariantError:
    if isinstance(error, UnicodeDecodeError):
        return EnvariantError(
            f"{path}: is not {encoding} text (it holds byte 0x{error.object[error.start]:02x}); name its "
            f"encoding, such as latin-1, or is it no text at all?"
        )
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return EnvariantError(f"{path}: cannot be read as a table ({reason})")


def _parquet(path: Path) -> tuple[Iterator[pd.DataFrame], list[str]]:
    try:
        parquet = import_module("pyarrow.parquet")
    except ImportError:
        raise EnvariantError(
            f"{path}: Parquet needs pyarrow; pip install pyarrow, or save it as CSV"
        ) from None

    def batches() -> Iterator[pd.DataFrame]:
        try:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(_AT_A_TIME):
                    # What pandas noted would make an index of some columns.
                    yield batch.to_pandas(ignore_metadata=True)
        except Exception as error:
            raise EnvariantError(f"{path}: is damaged ({str(error).splitlines()[0]})") from None

    try:
        with parquet.ParquetFile(path) as file:
            names = [str(name) for name in file.schema_arrow.names]
    except Exception as error:
        raise EnvariantError(f"{path}: is no Parquet file ({str(error).splitlines()[0]})") from None
    # An index that has no name of its own is no column.
    header = [name for name in names if not re.fullmatch(r"__index_level_\d+__", name)]
    _single(str(path), header)
    return batches(), header


def _single(label: str, header: Sequence[str]) -> None:
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise EnvariantError(f"{label}: column name '{repeated[0]}' is used twice; rename one")


def labeled(label: str, error: EnvariantError) -> EnvariantError:
    """The error, with the name of the table before it."""
    return error if str(error).startswith(label) else EnvariantError(f"{label}: {error}")


def read_columns(
    data: Any, kinds: Mapping[str, Kind], *, encoding: str = "utf-8"
) -> Iterator[tuple["pd.Index[Any]", dict[str, Column]]]:
    """Columns of kinds that are known already, by name, a stretch of rows at a time; others are passed over.

    Args:
        data: as for `read`.
        kinds: of the columns that are wanted.
        encoding: of a text file.

    Yields:
        What names these rows (a pandas frame's own index, else their numbers from 0), and their columns; at
        least one stretch, if of no rows.

    Raises:
        EnvariantError: the file cannot be read, a column is missing, or a value is not of its kind.
    """
    words = [name for name, kind in kinds.items() if kind == "category"]
    label, parts, header = stretches(data, encoding, words)
    if lacking := [name for name in kinds if name not in header]:
        raise lacking_columns(label, lacking, header)
    named, before, some = isinstance(data, pd.DataFrame), 0, False
    for part in parts:
        index = part.index if named else pd.RangeIndex(before, before + len(part))
        try:
            columns = {
                name: of_kind(name, piece(name, part[name], before=before), kind, before=before)
                for name, kind in kinds.items()
            }
        except EnvariantError as error:
            raise labeled(label, error) from None
        yield index, columns
        before, some = before + len(part), True
    if not some:
        empty = pd.Series([], dtype=object)
        yield pd.RangeIndex(0), {n: of_kind(n, piece(n, empty), kind) for n, kind in kinds.items()}


def lacking_columns(
    label: str, lacking: Sequence[str], header: Sequence[str], what: str = "column"
) -> EnvariantError:
    """The error for columns that a table does not hold, with those it does."""
    small = {name.casefold(): name for name in header}
    told: list[str] = []
    for name in lacking[:5]:
        near = get_close_matches(name.casefold(), small, n=1)
        told.append(f"'{name}'" + (f" (did you mean '{small[near[0]]}'?)" if near else ""))
    more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
    return EnvariantError(
        f"{label}: lacks {what}{'s' if len(lacking) > 1 else ''} {', '.join(told)}{more}; it holds "
        f"{', '.join(header[:20]) or 'none'}{', …' if len(header) > 20 else ''}"
    )
