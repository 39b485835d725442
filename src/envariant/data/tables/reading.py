"""Open tables for reading in chunks of rows: files of all supported formats, and data frames.

Every chunk is a pandas data frame with unique column names.
"""

import codecs
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import narwhals
import pandas as pd

from envariant.core.errors import EnvariantError, closest_name, first_line, listed
from envariant.core.paths import check_file
from envariant.data.expansion import check_expansion
from envariant.data.tables import bundled
from envariant.data.tables.formats import opened, what_it_is
from envariant.data.tables.kinds.missing import MISSING_TEXTS
from envariant.data.tables.sample import ColumnSample, first_bytes, first_records

ROWS_PER_CHUNK = 200_000
"""Number of rows of a file to read at a time, typically a few dozen megabytes of text."""

_SEPARATORS = (",", ";", "\t", "|")


@final
@dataclass(frozen=True, eq=False)
class TableInput:
    """Opened table, which can be read several times in chunks of rows.

    Attributes:
        label: Name of the table in messages.
        header: Names of the columns.
        chunks: Function that yields chunks of rows. Its argument has an effect only for text files. If it is
            a list of column names, only these columns are read, and all values remain strings. If it is None,
            all columns are read, and strings are converted to numbers where possible.
        is_text: Whether the table is a text file.
        separator: Separator of the fields in a text file.
        samples: Words for missing values in the first records of a text file, by column name.
        has_index: Whether the table is a pandas data frame, whose index is then used for predictions.
    """

    label: str
    header: Sequence[str]
    chunks: Callable[[Sequence[str] | None], Iterator[pd.DataFrame]]
    is_text: bool = False
    separator: str = ""
    samples: Mapping[str, ColumnSample] = field(default_factory=dict[str, ColumnSample])
    has_index: bool = False


def open_table(data: Any, encoding: str, declared: frozenset[str] | None = None) -> TableInput:
    """Open a file or a data frame as a table.

    Args:
        data: Path, name of a bundled table, or data frame of pandas, polars or Arrow.
        encoding: Encoding of a text file.
        declared: Strings that the user declared as missing values. Default: words such as NA.

    Raises:
        EnvariantError: If the data cannot be read, or a column name occurs twice.
    """
    if not isinstance(data, str | Path):
        whole = data if isinstance(data, pd.DataFrame) else _in_pandas(data)
        header = [str(name) for name in whole.columns]
        _single("data frame", header)
        frame = whole.set_axis(header, axis=1)
        return TableInput("data frame", header, lambda _: iter([frame]), has_index=whole is data)
    path = bundled.find(Path(data))
    check_file(path, kinds=" (.csv or .parquet)")
    check_expansion(path)
    if (table := opened(path, encoding, ROWS_PER_CHUNK)) is not None:
        _single(str(path), table[1])
        return TableInput(str(path), table[1], lambda _: table[0]())
    return _text(path, encoding, declared)


def _in_pandas(data: Any) -> pd.DataFrame:
    try:
        frame = narwhals.from_native(data, eager_only=True)
    except narwhals.exceptions.DuplicateError:
        raise EnvariantError("data frame: a column name is used twice; rename one") from None
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
        texts, names = column.cast(narwhals.String).to_numpy(), getattr(kind, "categories", None)
        native = column.to_native()
        if narwhals.dependencies.is_pyarrow_chunked_array(native) and native.num_chunks:
            names = native.unify_dictionaries().chunk(0).dictionary.to_pylist()
        return pd.Series(pd.Categorical(texts, names, ordered=isinstance(kind, narwhals.Enum)))
    if kind.is_integer() and column.null_count():
        # As floats, large integers would lose digits.
        return pd.Series(
            pd.array(column.to_list(), dtype="UInt64" if kind.is_unsigned_integer() else "Int64")
        )
    return pd.Series(column.to_numpy())


def _text(path: Path, encoding: str, declared: frozenset[str] | None) -> TableInput:
    if kind := what_it_is(first_bytes(path, 512)):
        raise EnvariantError(f"{path}: is {kind}, not a text file (.csv); rename it, or save it as CSV")
    options: dict[str, Any] = {"encoding": encoding, "skipinitialspace": True}
    as_text: dict[str, Any] = {"dtype": str, "keep_default_na": False}
    try:
        # The header is read as a row of text, because pandas would rename duplicate names in a header.
        first: dict[str, Any] = {"header": None, "nrows": 1, **as_text, **options}
        firsts = {sign: pd.read_csv(path, sep=sign, **first) for sign in _SEPARATORS}
    except pd.errors.EmptyDataError:
        raise EnvariantError(f"{path}: is empty") from None
    except Exception as error:
        raise _unreadable(path, encoding, error) from None
    widths = {sign: frame.shape[1] for sign, frame in firsts.items()}
    separator = max(widths, key=widths.__getitem__)
    names = firsts[separator].iloc[0]
    header = [" ".join(str(name).split()) or f"column {k + 1}" for k, name in enumerate(names)]
    _single(str(path), header)
    options |= {"sep": separator, "names": header}
    # A column of numbers with a few "?" is then read as numbers.
    missing = [form(text) for text in MISSING_TEXTS for form in (str, str.upper, str.capitalize)]
    numbers: dict[str, Any] = {
        "na_values": missing if declared is None else ["", *declared],
        "keep_default_na": declared is None,
    }
    if pd.__version__ < "3":
        # Later versions always read the nearest number.
        numbers["float_precision"] = "round_trip"

    def chunks(columns: Sequence[str] | None) -> Iterator[pd.DataFrame]:
        how = numbers if columns is None else {"usecols": list(columns), **as_text}
        return _text_chunks(path, encoding, options | how)

    samples = first_records(path, encoding, separator, header)
    return TableInput(str(path), header, chunks, is_text=True, separator=separator, samples=samples)


def _text_chunks(path: Path, encoding: str, options: Mapping[str, Any]) -> Iterator[pd.DataFrame]:
    try:
        # Opened when the first chunk is requested, so that an unused iterator leaves no file open.
        with pd.read_csv(
            path, header=0, chunksize=ROWS_PER_CHUNK, index_col=False, low_memory=False, **options
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
            f"name missing, or does an unquoted text contain the separator?"
        ) from None
    # pandas and the decompressors raise some twenty types of error.
    except Exception as error:
        raise _unreadable(path, encoding, error) from None


def _unreadable(path: Path, encoding: str, error: Exception) -> EnvariantError:
    if isinstance(error, UnicodeDecodeError):
        # Bytes that mark the beginning of a text in UTF-16.
        marked = error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        return EnvariantError(
            f"{path}: is not {encoding} text (it holds byte 0x{error.object[error.start]:02x}); if it is a "
            f"text file, set its encoding, such as {'utf-16' if marked else 'latin-1'}"
        )
    return EnvariantError(f"{path}: cannot be read as a table ({first_line(error)})")


def _single(label: str, header: Sequence[str]) -> None:
    if repeated := sorted(name for name, count in Counter(header).items() if count > 1):
        raise EnvariantError(f"{label}: column name '{repeated[0]}' is used twice; rename one")


def labeled(label: str, error: EnvariantError) -> EnvariantError:
    """Return a copy of an error whose message begins with the table's name."""
    return error if str(error).startswith(label) else EnvariantError(f"{label}: {error}")


def lacking_columns(
    label: str, lacking: Sequence[str], header: Sequence[str], what: str = "column"
) -> EnvariantError:
    """Build the error for required columns that are absent from a table.

    Args:
        label: Name of the table.
        lacking: Names of the missing columns.
        header: Names of all columns of the table.
        what: Noun for a column in the error message, such as "target column".
    """
    similar = {name: closest_name(name, header) for name in lacking[:5]}
    quoted = [f"'{k}'" + (f" (did you mean '{known}'?)" if known else "") for k, known in similar.items()]
    more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
    names = f"{what}{'s' if len(lacking) > 1 else ''} {', '.join(quoted)}{more}"
    return EnvariantError(f"{label}: lacks {names}; its columns: {listed(header, 20) or 'none'}")
