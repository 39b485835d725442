"""Tables in other formats than CSV: read, or refused as what they are."""

import gzip
import json
import sys
import zipfile

import numpy as np
import pandas as pd
import pytest

from envariant.core.errors import EnvariantError
from envariant.data.tables.source import TableSource
from envariant.data.tables.table import read


def frame():
    draw = np.random.default_rng(0)
    found = pd.DataFrame(
        {
            "site": np.repeat(["a", "b"], 60),
            "x": draw.normal(size=120).round(3),
            "n": draw.integers(0, 9, 120),
            "word": draw.choice(["none", "some"], 120),
            "y": draw.integers(0, 2, 120),
        }
    )
    found.loc[::7, "x"] = np.nan
    return found


@pytest.fixture(scope="module")
def usual():
    return TableSource(read(frame(), "y", "site")).sample(0).fingerprint()


def lines(path):
    frame().to_json(path, orient="records", lines=True)


WRITERS = {
    "records.json": lambda path: frame().to_json(path, orient="records"),
    "columns.json": lambda path: frame().to_json(path),
    "split.json": lambda path: frame().to_json(path, orient="split"),
    "table.json": lambda path: frame().to_json(path, orient="table"),
    "x.jsonl": lines,
    "x.ndjson": lines,
    "x.json.gz": lambda path: path.write_bytes(gzip.compress(frame().to_json(orient="records").encode())),
    "x.tsv": lambda path: frame().to_csv(path, sep="\t", index=False),
    "x.feather": lambda path: frame().to_feather(path),
    "x.dta": lambda path: frame().to_stata(path, write_index=False),
    "x.orc": lambda path: frame().to_orc(path),
}


@pytest.mark.filterwarnings(
    "ignore:.*columns left out.*numbers the rows:envariant.core.errors.EnvariantWarning"
)
@pytest.mark.parametrize("name", WRITERS)
def test_a_file_equals_its_data_frame(name, usual, tmp_path):
    if name.endswith(("feather", "orc")):
        pytest.importorskip("pyarrow")
    WRITERS[name](tmp_path / name)
    assert TableSource(read(tmp_path / name, "y", "site")).sample(0).fingerprint() == usual


def test_an_excel_file_equals_its_data_frame(usual, tmp_path):
    pytest.importorskip("openpyxl")
    frame().to_excel(tmp_path / "x.xlsx", index=False)
    assert TableSource(read(tmp_path / "x.xlsx", "y", "site")).sample(0).fingerprint() == usual


def test_json_keeps_large_integers_beside_missing_values(tmp_path):
    rows = [{"y": None if k == 0 else 2**60 + k % 2, "x": k * k % 17, "site": k % 2} for k in range(120)]
    rows = [{**row, "site": k // 60} for k, row in enumerate(rows)]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    with pytest.warns(UserWarning, match="1 of 120 rows without a value"):
        assert read(tmp_path / "x.json", "y", "site").classes == (str(2**60), str(2**60 + 1))


def book(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr("xl/workbook.xml", "<workbook/>")


@pytest.mark.parametrize(
    ("name", "package"), [("x.xlsx", "openpyxl"), ("x.ods", "odf"), ("x.sav", "pyreadstat")]
)
def test_a_missing_package_is_named(name, package, tmp_path, monkeypatch):
    if name == "x.ods":
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet")
            archive.writestr("content.xml", "<x/>")
    else:
        book(tmp_path / name)
    monkeypatch.setitem(sys.modules, package, None)
    remedy = {"odf": "odfpy"}.get(package, package)
    with pytest.raises(EnvariantError, match=f"needs {remedy}; pip install {remedy}, or save it as CSV"):
        read(tmp_path / name, "y", "site")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"PK\x03\x04 and more", r"x.csv: is an Excel file \(.xlsx\) or a zip archive"),
        ("x.csv", b"PAR1 and more", r"x.csv: is a Parquet file \(.parquet\), not a text file"),
        ("x.txt", b"ARROW1\0\0", r"is a Feather file"),
        ("x.csv", b"SQLite format 3\0", "is a SQLite database"),
        ("x.csv", b"\n<!DOCTYPE html><html>", "is a web page or XML"),
        ("x.csv", b'[{"a": 1}]', r"is a JSON file \(.json or .jsonl\)"),
        ("x.csv.gz", gzip.compress(b"PAR1 and more", mtime=0), "is a Parquet file"),
        ("x.csv", gzip.compress(b"a,b", mtime=0), r"is a gzip file \(.gz\)"),
        ("x.xls", b"<html><table>", r"cannot be read as Excel \(it is a web page or XML\)"),
        ("x.pkl", b"\x80\x04", "is a Python pickle, which could run code; save it as CSV or Parquet"),
        ("x.db", b"", "is a database"),
        ("x.json", b'"text"', r"cannot be read as JSON \(it holds no list of records\)"),
        ("x.json", b"{", "cannot be read as JSON"),
        ("x.json", b"[" * 100_000, "cannot be read as JSON"),
        ("x.feather", b"no", "cannot be read as Feather|Feather needs"),
        ("x.dta", b"no", "cannot be read as Stata"),
    ],
)  # fmt: skip
def test_a_file_is_refused_as_what_it_is(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EnvariantError, match=message) as said:
        read(tmp_path / name, "y", "site")
    assert "\n" not in str(said.value)
    assert "CSV" in str(said.value)


def test_json_of_records_with_parts_is_refused(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps([{"y": 1, "site": 1, "x": {"a": 1}}] * 3))
    with pytest.raises(EnvariantError, match="column 'x': holds a dict where one value should be"):
        read(tmp_path / "x.json", "y", "site")


def test_a_column_name_occurs_once():
    pyarrow = pytest.importorskip("pyarrow")
    twice = pyarrow.table([[1], [2], [3]], names=["y", "y", "site"])
    with pytest.raises(EnvariantError, match="data frame: a column name is used twice; rename one"):
        read(twice, "y", "site")
