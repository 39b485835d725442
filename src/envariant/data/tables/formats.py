"""Read table files that are not plain text: Parquet, Feather, Excel, JSON, Stata, SPSS and SAS."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd

from envariant.core.errors import EnvariantError, first_line, listed
from envariant.data.expansion import OPENERS, check_size
from envariant.data.tables.sample import first_bytes

# Kind of a file by its first bytes.
_MAGIC: Mapping[bytes, str] = {
    b"PAR1": "a Parquet file (.parquet)",
    b"ARROW1": "a Feather file (.feather)",
    b"FEA1": "a Feather file (.feather)",
    b"PK\x03\x04": "an Excel file (.xlsx) or a zip archive (.zip)",
    b"\xd0\xcf\x11\xe0": "an old Excel file (.xls)",
    b"\x1f\x8b": "a gzip file (.gz)",
    b"BZh": "a bzip2 file (.bz2)",
    b"\xfd7zXZ": "an xz file (.xz)",
    b"SQLite format 3": "a SQLite database",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array (.npy)",
    b"$FL2": "an SPSS file (.sav)",
    b"%PDF": "a PDF",
    b"RDX": "a file of R (.RData)",
}
_HTML = re.compile(rb"\s*(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|table|\?xml)", re.IGNORECASE)
_JSON = re.compile(rb"\s*(?:\xef\xbb\xbf)?\s*(?:\[\s*)?\{\s*[\"}]")
# Files that are not read, by suffix.
_OTHERS: Mapping[str, str] = {
    **dict.fromkeys((".pkl", ".pickle", ".joblib"), "a Python pickle, which could run code"),
    **dict.fromkeys((".db", ".sqlite", ".sqlite3"), "a database"),
    **dict.fromkeys((".h5", ".hdf", ".hdf5"), "an HDF5 file"),
    **dict.fromkeys((".rds", ".rda", ".rdata"), "a file of R"),
    **dict.fromkeys((".npy", ".npz"), "a NumPy array"),
    **dict.fromkeys((".html", ".htm", ".xml"), "a web page or XML"),
    **dict.fromkeys((".pdf", ".docx", ".doc", ".numbers"), "a document"),
    ".mat": "a file of MATLAB",
}
_CSV = "save it as CSV or Parquet"


def what_it_is(start: bytes) -> str:
    """Return the format of a file, recognized by its first bytes; "" if the file may be a text table."""
    for magic, kind in _MAGIC.items():
        if start.startswith(magic):
            return kind
    if _HTML.match(start):
        return "a web page or XML"
    return "a JSON file (.json or .jsonl)" if _JSON.match(start) else ""


def opened(
    path: Path, encoding: str, rows: int
) -> tuple[Callable[[], Iterator[pd.DataFrame]], list[str]] | None:
    """Open a table file whose format is not plain text, such as Parquet or Excel.

    Args:
        path: Path of the file; the suffix determines the format.
        encoding: Encoding of text in the file.
        rows: Number of rows per chunk.

    Returns:
        None for a text file. Otherwise, a pair: a function that yields chunks of rows, and the column names.

    Raises:
        EnvariantError: If the file cannot be read, or a package for it is missing.
    """
    suffix = path.suffix.lower()
    if suffix in OPENERS and path.with_suffix("").suffix.lower() in (".json", ".jsonl", ".ndjson"):
        suffix = path.with_suffix("").suffix.lower()
    if suffix in (".parquet", ".pq"):
        return _parquet(path, rows)
    if suffix in _OTHERS:
        raise EnvariantError(f"{path}: is {_OTHERS[suffix]}; {_CSV}")
    if suffix not in _READERS:
        return None
    what, reader, packages = _READERS[suffix]
    try:
        frame = reader(path, encoding)
    except EnvariantError:
        raise
    except ImportError:
        raise EnvariantError(f"{path}: {what} needs {packages}; pip install {packages}, or {_CSV}") from None
    # pandas and the packages raise many types of error for damaged files.
    except Exception as error:
        actual = what_it_is(first_bytes(path, 512))
        reason = f"it is {actual}" if actual and suffix not in actual else first_line(error)
        raise EnvariantError(f"{path}: cannot be read as {what} ({reason}); {_CSV}") from None
    header = [str(name) for name in frame.columns]
    return (lambda: iter([frame.set_axis(header, axis=1)])), header


def _parquet(path: Path, rows: int) -> tuple[Callable[[], Iterator[pd.DataFrame]], list[str]]:
    try:
        parquet = import_module("pyarrow.parquet")
    except ImportError:
        remedy = "pip install pyarrow, or save it as CSV"
        raise EnvariantError(f"{path}: Parquet needs pyarrow; {remedy}") from None

    def batches() -> Iterator[pd.DataFrame]:
        try:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(rows):
                    # The metadata of pandas would turn some columns into an index.
                    yield batch.to_pandas(ignore_metadata=True)
        except Exception as error:
            raise EnvariantError(f"{path}: is damaged ({first_line(error)})") from None

    try:
        with parquet.ParquetFile(path) as file:
            names = [str(name) for name in file.schema_arrow.names]
            # Repeated values take no space in the file.
            check_size(path, 8 * file.metadata.num_rows * len(names), path.stat().st_size)
    except EnvariantError:
        raise
    except Exception as error:
        raise EnvariantError(f"{path}: is not a Parquet file ({first_line(error)})") from None
    # An unnamed index is not a column.
    return batches, [name for name in names if not re.fullmatch(r"__index_level_\d+__", name)]


def _feather(path: Path, encoding: str) -> pd.DataFrame:
    del encoding
    feather = import_module("pyarrow.feather")
    frame = feather.read_table(path).to_pandas(ignore_metadata=True)
    return frame[[name for name in frame.columns if not re.fullmatch(r"__index_level_\d+__", str(name))]]


def _excel(path: Path, encoding: str) -> pd.DataFrame:
    del encoding
    # Without a header and without missing words, so that pandas neither renames nor converts anything.
    with pd.ExcelFile(path) as book:
        sheets = [str(name) for name in book.sheet_names]
        frames = {
            name: book.parse(name, header=None, dtype=object, keep_default_na=False, na_values=[""])
            for name in sheets
        }
    frames = {name: frame.dropna(how="all") for name, frame in frames.items()}
    filled = [name for name in sheets if len(frames[name])]
    if not filled:
        raise EnvariantError(f"{path}: is empty")
    if len(filled) > 1:
        raise EnvariantError(
            f"{path}: has {len(filled)} sheets with content ({listed(filled)}); save the one to read as CSV, "
            f"or pass pandas.read_excel(…, sheet_name=…)"
        )
    frame = frames[filled[0]]
    names = [f"column {k + 1}" if pd.isna(name) else str(name) for k, name in enumerate(frame.iloc[0])]
    return _inferred(frame.iloc[1:].set_axis(names, axis=1).reset_index(drop=True))


def _json(path: Path, encoding: str) -> pd.DataFrame:
    return _frame_of(json.loads(_json_text(path, encoding)))


def _json_lines(path: Path, encoding: str) -> pd.DataFrame:
    lines = _json_text(path, encoding).splitlines()
    return _frame_of([json.loads(line) for line in lines if line.strip()])


def _json_text(path: Path, encoding: str) -> str:
    with OPENERS.get(path.suffix.lower(), Path.open)(path, "rb") as file:
        return file.read().decode("utf-8-sig" if encoding.lower().replace("_", "-") == "utf-8" else encoding)


def _frame_of(content: Any) -> pd.DataFrame:
    """Convert JSON content in one of pandas' layouts (records, columns, split or table) to a data frame."""
    if isinstance(content, dict) and "data" in content and ("columns" in content or "schema" in content):
        names: Sequence[Any] | None = content.get("columns")
        frame = pd.DataFrame(content["data"], columns=names, dtype=object)
        key = content.get("schema", {}).get("primaryKey", [])
        return _inferred(frame.drop(columns=[name for name in key if name == "index"]))
    if not isinstance(content, list | dict):
        raise ValueError("it holds no list of records")
    return _inferred(pd.DataFrame(content, dtype=object))


def _inferred(frame: pd.DataFrame) -> pd.DataFrame:
    """Infer the types of object columns without missing values; otherwise, integers would become floats."""
    if not frame.columns.is_unique:
        # The caller rejects it.
        return frame
    return pd.DataFrame({name: c.infer_objects() if c.notna().all() else c for name, c in frame.items()})


def _of_pandas(name: str, **options: Any) -> Callable[[Path, str], pd.DataFrame]:
    def read(path: Path, encoding: str) -> pd.DataFrame:
        del encoding
        return getattr(pd, name)(path, **options)

    return read


def _sas(path: Path, encoding: str) -> pd.DataFrame:
    return pd.read_sas(path, encoding=encoding)


Reader = Callable[[Path, str], pd.DataFrame]
_READERS: Mapping[str, tuple[str, Reader, str]] = {
    ".json": ("JSON", _json, ""),
    **dict.fromkeys((".jsonl", ".ndjson"), ("JSON lines", _json_lines, "")),
    **dict.fromkeys((".feather", ".arrow"), ("Feather", _feather, "pyarrow")),
    **dict.fromkeys((".xlsx", ".xlsm"), ("Excel", _excel, "openpyxl")),
    ".xls": ("Excel", _excel, "xlrd"),
    ".xlsb": ("Excel", _excel, "pyxlsb"),
    ".ods": ("OpenDocument", _excel, "odfpy"),
    ".orc": ("ORC", _of_pandas("read_orc"), "pyarrow"),
    ".dta": ("Stata", _of_pandas("read_stata"), ""),
    **dict.fromkeys((".sav", ".zsav"), ("SPSS", _of_pandas("read_spss"), "pyreadstat")),
    **dict.fromkeys((".sas7bdat", ".xpt"), ("SAS", _sas, "")),
}
"""Format name, reading function and required package of each file suffix."""
