"""Columns: the kind of each is inferred, and no value is misread, lost or moved."""

import datetime
import decimal
import re
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envariant.core.errors import EnvariantError
from envariant.data.tables.columns import (
    Column,
    column_of_kind,
    has_mixed_types,
    infer_column,
    read_chunk,
)
from envariant.data.tables.kinds import KINDS
from envariant.data.tables.kinds.base import NumericKind
from envariant.data.tables.source import TableSource
from envariant.data.tables.table import Table, load
from envariant.data.tables.table import read as read_table

NAN = np.nan


def column(values, dtype=None):
    return infer_column("x", [read_chunk("x", pd.Series(values, dtype=dtype))])


def in_chunks(*parts):
    return infer_column("x", [read_chunk("x", pd.Series(part)) for part in parts])


def days(text):
    return (pd.Timestamp(text) - pd.Timestamp("1970-01-01")) / pd.Timedelta(days=1)


@pytest.mark.parametrize(
    ("values", "dtype", "kind", "expected"),
    [
        ([1, 2, 3], None, "number", [1, 2, 3]),
        ([1.5, None, 3], None, "number", [1.5, NAN, 3]),
        ([1, None, 3], "Int64", "number", [1, NAN, 3]),
        ([1.5, None], "Float32", "number", [1.5, NAN]),
        ([1, 2], "uint8", "number", [1, 2]),
        ([-3, 4], "int8", "number", [-3, 4]),
        ([True, False], None, "boolean", [1, 0]),
        ([True, None, False], "boolean", "boolean", [1, NAN, 0]),
        ([True, None, False], object, "boolean", [1, NAN, 0]),
        (["yes", "NO", None, " Yes "], object, "boolean", [1, 0, NAN, 1]),
        (["T", "F", "?"], object, "boolean", [1, 0, NAN]),
        (["n", "y", "-"], "string", "boolean", [0, 1, NAN]),
        (["1", "2.5", "?", "NA", "-", " 3 ", "nan", "N/A", "."], object, "number", [1, 2.5, NAN, NAN, NAN, 3, NAN, NAN, NAN]),
        (["3", "1e3", "-.5"], "string", "number", [3, 1000, -0.5]),
        (["03", "04"], object, "number", [3, 4]),
        ([decimal.Decimal("1.5"), None], object, "number", [1.5, NAN]),
        (["3,5", "1,234", "12"], object, "number", [3.5, 1.234, 12]),
        (["0,123", "0,456"], object, "number", [0.123, 0.456]),
        (["1,234", "5,678"], object, "number", [1234, 5678]),
        (pd.to_timedelta([36, None], unit="h"), None, "number", [1.5, NAN]),
        ([None, None], object, "number", [NAN, NAN]),
        ([None, None], "Int64", "number", [NAN, NAN]),
        ([pd.NaT, pd.Timestamp("1970-01-03")], None, "date", [NAN, 2]),
        (["1970-01-02", "1970-1-3", "?"], object, "date", [1, 2, NAN]),
        (["1970/01/02", "1970.01.03"], object, "date", [1, 2]),
        (["13/01/1970", "02/01/1970"], object, "date", [12, 1]),
        (["01/13/1970", "01/02/1970"], object, "date", [12, 1]),
        (["02.01.1970", "03.01.1970"], object, "date", [1, 2]),
        (["1/13/70", "1/2/70"], object, "date", [12, 1]),
        (["31.12.69", "31.12.68"], object, "date", [-1, days("2068-12-31")]),
        (["1970-01-02 12:00", "1970-01-02T18:00:00Z", "1970-01-02 06:00:00.5"], object, "date", [1.5, 1.75, 1.25 + 0.5 / 86_400]),
        (["1/13/1970 6:00 PM", "1/2/1970 6:00 AM"], object, "date", [12.75, 1.25]),
        (["9999-12-31", "0001-01-01", "0000-00-00"], object, "date", [2932896, -719162, NAN]),
        ([datetime.date(1970, 1, 2), None], object, "date", [1, NAN]),
        ([datetime.datetime(1970, 1, 2, 6), datetime.datetime(1970, 1, 1)], object, "date", [1.25, 0]),
    ],
)  # fmt: skip
def test_numbers_booleans_and_dates(values, dtype, kind, expected):
    found = column(values, dtype)
    assert found.kind == kind
    assert found.values.dtype == np.float64
    np.testing.assert_allclose(found.values, expected, rtol=1e-15)
    np.testing.assert_array_equal(found.missing, np.isnan(expected))


@pytest.mark.parametrize(
    ("values", "dtype", "texts"),
    [
        (["b", "a", None, "b"], object, ["b", "a", None, "b"]),
        (["b", "a", pd.NA], "string", ["b", "a", None]),
        ([" a", "a ", "a", "\ta"], object, ["a"] * 4),
        (["a", "A"], object, ["a", "A"]),
        (["03", "3", "x"], object, ["03", "3", "x"]),
        ([3, 3.0, "x", True], object, ["3", "3", "x", "True"]),
        (["1-2-3", "1.2.10"], object, ["1-2-3", "1.2.10"]),
        (["1.2.10", "1.10.12", "11.9.10"], object, ["1.2.10", "1.10.12", "11.9.10"]),
        (["10:30", "11:45"], object, ["10:30", "11:45"]),
        (["2019/20", "2020/21"], object, ["2019/20", "2020/21"]),
        # Day and month cannot be told apart, nor can two notations in one column.
        (["01/02/2020", "03/04/2020"], object, ["01/02/2020", "03/04/2020"]),
        (["31/12/2020", "12/31/2020"], object, ["31/12/2020", "12/31/2020"]),
        (["3,5", "3.5"], object, ["3,5", "3.5"]),
        (["<b>Ü</b>", "a\nb"], object, ["<b>Ü</b>", "a\nb"]),
        (["b", None, "a"], "category", ["b", None, "a"]),
        # A pandas categorical stays categorical.
        ([10, 9, 10], "category", ["10", "9", "10"]),
        ([1.0, 2.0, None], "category", ["1", "2", None]),
        (["yes", "no"], "category", ["yes", "no"]),
        ([True, False, None], "category", ["True", "False", None]),
        (pd.Categorical(["a", "b"], categories=["c", "b", "a"]), None, ["a", "b"]),
    ],
)
def test_categories(values, dtype, texts):
    found = column(values, dtype)
    assert found.kind == "category"
    assert found.texts() == texts
    assert list(found.categories) == sorted({text for text in texts if text is not None})
    assert found.values.dtype == np.int32


def test_a_time_zone_does_not_change_local_time():
    local = pd.Series(pd.date_range("2020-03-28 23:30", periods=4, freq="D", tz="Europe/Berlin"))
    wall = local.dt.tz_localize(None)
    as_text = local.map(lambda t: t.isoformat())
    assert len({text[-6:] for text in as_text}) == 2, "summer begins"
    for same in (local, as_text, wall.astype(str), as_text.map(lambda t: t.replace("T", " "))):
        np.testing.assert_array_equal(column(same).values, column(wall).values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["1"] * 20 + ["old"], "column 'x': 1 of 21 values are not numbers (the first: 'old' in row 21); correct them"),
        (["1"] * 20 + ["inf"], "1 of 21 values are not numbers (the first: 'inf' in row 21)"),
        (["2020-01-01"] * 20 + ["2020-02-31"], "1 of 21 values are not dates (the first: '2020-02-31' in row 21)"),
        ([1.0, np.inf], "column 'x': holds inf in row 2, too large to compute with (the limit is 1e+15). Correct it"),
        ([1, -1e308], "column 'x': holds -1e+308 in row 2, too large"),
        (["1", "1e308"], "column 'x': holds 1e+308 in row 2, too large"),
        ([10**17, 1], "column 'x': holds 1e+17 in row 1, too large"),
        ([1j, 2j], "column 'x': holds complex numbers"),
        ([[1], [2]], "column 'x': holds a list where one value should be; make a column of each of its parts"),
        ([None, {"a": 1}], "column 'x': holds a dict where one value should be"),
        ([np.ones(2), np.ones(2)], "column 'x': holds a ndarray where one value should be"),
    ],
)  # fmt: skip
def test_an_unusable_value_is_rejected_in_one_line(values, message):
    with pytest.raises(EnvariantError) as said:
        column(values)
    assert str(said.value).startswith("column 'x': ")
    assert message in str(said.value)
    assert "\n" not in str(said.value)


def test_chunks_of_different_types_make_one_column():
    assert in_chunks([True, False], [True, None]).kind == "boolean"
    np.testing.assert_array_equal(
        in_chunks([True, False], [NAN, NAN], [True, None]).values, [1, 0, NAN, NAN, 1, NAN]
    )
    found = in_chunks([NAN, NAN], pd.to_datetime(["1970-01-02", None]), [None, None])
    assert found.kind == "date"
    np.testing.assert_array_equal(found.values, [NAN, NAN, 1, NAN, NAN, NAN])
    found = in_chunks([1, 2], [NAN, NAN], ["?", "3"], [None, None])
    assert found.kind == "number"
    np.testing.assert_array_equal(found.values, [1, 2, NAN, NAN, NAN, 3, NAN, NAN])
    found = in_chunks(["b", "a"], ["c", "a"], [NAN, NAN])
    assert found.texts() == ["b", "a", "c", "a", None, None]
    assert in_chunks([1, 2], ["a", "b"]).texts() == ["1", "2", "a", "b"]


def test_has_mixed_types():
    def of(*parts):
        return has_mixed_types([read_chunk("x", pd.Series(part)) for part in parts])

    assert of([1, 2], ["a"])
    assert of([True], ["True", None])
    assert not of([1, 2], [NAN], [1.5])
    assert not of([NAN], ["a", None], [None])


def test_the_kind_is_inferred_from_all_chunks():
    with pytest.raises(EnvariantError, match="'old' in row 42"):
        in_chunks(*[["1", "?"]] * 20, ["2", "old"])
    with pytest.raises(EnvariantError, match="holds inf in row 1003"):
        read_chunk("x", pd.Series([0, 1, np.inf]), first_row=1000)


def test_different_numbers_have_different_texts():
    values = np.array([0.1, 1e-9, 16777216, 16777215, 123456.7, -2, NAN, 1e14], dtype=np.float32)
    texts = Column("x", "number", values).texts()
    assert texts[:7] == ["0.1", "1e-09", "16777216", "16777215", "123456.7", "-2", None]
    np.testing.assert_array_equal(np.array(texts, dtype=np.float32), values)
    dates = Column("x", "date", np.array([1.75, -0.5, NAN], dtype=np.float32))
    assert dates.texts() == ["1970-01-02", "1969-12-31", None]
    assert Column("x", "boolean", np.array([1, 0, NAN], dtype=np.float32)).texts() == ["true", "false", None]


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (["1,5", "2"], "number", [1.5, 2]),
        (["13/01/1970"], "date", [12]),
        (["02.01.1970", None], "date", [1, NAN]),
        ([None, None], "date", [NAN, NAN]),
        ([1, 0, 1], "boolean", [1, 0, 1]),
        (["TRUE", "no", "1", "?"], "boolean", [1, 0, 1, NAN]),
        ([True, False], "number", [1, 0]),
    ],
)
def test_a_column_of_a_known_kind_is_read(values, kind, expected):
    found = column_of_kind("x", read_chunk("x", pd.Series(values)), kind)
    assert found.kind == kind
    np.testing.assert_array_equal(found.values, np.array(expected, dtype=np.float64))


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        # Trained on 31/12/2020 and 1,5: ambiguous values are rejected.
        (["01/02/2020"], "date", "holds '01/02/2020' in row 8, but the model was trained on a date column of this name. Write it as 2020-12-31"),
        (["1,234"], "number", "holds '1,234' in row 8, but the model was trained on a number column of this name. Correct it"),
        ([3.0], "boolean", "holds '3' in row 8"),
        ([np.inf], "number", "holds inf in row 8, too large"),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_is_rejected(values, kind, message):
    with pytest.raises(EnvariantError) as said:
        column_of_kind("x", read_chunk("x", pd.Series(values), first_row=7), kind, first_row=7)
    assert message in str(said.value)


TEXTS = st.lists(
    st.text(max_size=8)
    | st.none()
    | st.sampled_from(["1", "2.5", "?", "yes", "no", "1/2/2020", "31.12.2020", "2020-02-30", "1,5", "inf", "1e400"])
    | st.from_regex(r"\A\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}( \d{1,2}:\d\d)?\Z")
)  # fmt: skip


def attempted(function, *arguments):
    """Return the result, or the error message."""
    try:
        return function(*arguments)
    except EnvariantError as error:
        return str(error)


@given(TEXTS, st.integers(0, 10))
def test_any_texts_make_a_column_with_the_same_number_of_rows_or_a_clear_error(texts, cut):
    whole = pd.Series(texts, dtype=object)
    found = attempted(infer_column, "x", [read_chunk("x", whole)])
    parts = attempted(infer_column, "x", [read_chunk("x", whole[:cut]), read_chunk("x", whole[cut:])])
    if isinstance(found, str):
        assert found.startswith("column 'x': ")
        assert found.isprintable()
        assert parts == found
    else:
        assert len(found) == len(texts)
        assert [text is None for text in found.texts()] == found.missing.tolist()
        assert (parts.kind, parts.categories) == (found.kind, found.categories)
        np.testing.assert_array_equal(parts.values, found.values)
    for kind in ("number", "boolean", "date", "category"):
        known = attempted(column_of_kind, "x", read_chunk("x", whole), kind)
        assert known.isprintable() if isinstance(known, str) else len(known) == len(texts)


@given(st.lists(st.floats(width=32, min_value=-(2.0**46), max_value=2.0**46) | st.just(NAN), min_size=1))
def test_numbers_and_their_texts_make_equal_columns(values):
    numbers = column(values)
    words = column([None if v != v else repr(v) for v in values], object)
    assert words.kind == "number"
    np.testing.assert_array_equal(words.values, numbers.values)


@given(st.lists(st.dates(min_value=datetime.date(1000, 1, 1)), min_size=1))
def test_dates_are_equal_in_every_format(values):
    stamps = column(np.array(values, dtype="datetime64[s]"))
    for sign in ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y"):
        found = column([day.strftime(sign) for day in values], object)
        assert found.kind == stamps.kind == "date"
        np.testing.assert_array_equal(found.values, stamps.values)


def test_stored_columns_are_loaded_unchanged(tmp_path):
    columns = (
        column([1.5, None]),
        column([True, None], "boolean"),
        column(["Ü\n<b>", None], object),
        column(["2020-01-01", None], object),
    )
    table = Table(columns, column([1.0, 2.0]), column(["a", "b"], object), "regression", ())
    folder = tmp_path / "deep" / "folder"
    table.write(folder)
    for a, b in zip(table.all_columns, load(folder).all_columns, strict=True):
        assert (a.name, a.kind, a.categories) == (b.name, b.kind, b.categories)
        np.testing.assert_array_equal(a.values, b.values)
        assert a.values.dtype == b.values.dtype
    assert [path.name for path in folder.iterdir()] == ["table.safetensors"]
    for content in (b"no", (folder / "table.safetensors").read_bytes()[:-1]):
        (folder / "table.safetensors").write_bytes(content)
        with pytest.raises(EnvariantError, match="has no checksum|is damaged"):
            load(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvariantError, match="cannot be written"):
        table.write(tmp_path / "file")


@final
@dataclass(frozen=True)
class Percentage(NumericKind):
    """Shares written as 7 of 100: a kind of column from outside."""

    name: ClassVar[str] = "percentage"
    ordered: ClassVar[bool] = True

    def from_pandas(self, name, rows, first_row):
        return None

    def parse(self, texts):
        return np.array([float(t[:-7]) / 100 if re.fullmatch(r"\d+ of 100", t) else NAN for t in texts])

    def format(self, values, categories):
        return [None if v != v else f"{100 * v:g} of 100" for v in values.tolist()]

    def infer_task(self, values):
        return "regression"


def test_a_new_kind_is_one_registered_class(tmp_path, monkeypatch):
    texts = [f"{k} of 100" for k in range(40)] * 3 + [None]
    assert column(texts, object).kind == "category"
    for name, kind in KINDS.items():
        monkeypatch.setitem(KINDS, name, kind)
    category = KINDS.pop("category")
    KINDS.update(percentage=Percentage(), category=category)
    inferred = column(texts, object)
    assert inferred.kind == "percentage"
    np.testing.assert_allclose(inferred.values[:3], [0, 0.01, 0.02], rtol=1e-6)
    assert inferred.texts()[38:41] == ["38 of 100", "39 of 100", "0 of 100"]
    assert column_of_kind("x", read_chunk("x", pd.Series(["7 of 100"])), "percentage").values == 0.07
    with pytest.raises(
        EnvariantError, match="holds 'seven' in row 1, but the model was trained on a percentage"
    ):
        column_of_kind("x", read_chunk("x", pd.Series(["seven"])), "percentage")
    sites = ["north", "south"] * 60 + ["north"]
    target = column(np.arange(121) / 7)
    Table((inferred,), target, column(sites, object), "regression", ()).write(tmp_path)
    assert load(tmp_path).columns[0].texts() == inferred.texts()
    rows = pd.DataFrame({"share": texts, "site": sites, "y": np.arange(121) % 2, "z": np.arange(121) % 7})
    table = read_table(rows, "y", "site")
    encoder = TableSource(table).encoder
    assert encoder.names[:2] == ("share", "share: missing")
    assert [e.what for e in table.preprocessing_log if e.column == "share"] == [
        "percentage, standardized; 0.8% missing: filled in and marked"
    ]
    assert read_table(rows.dropna(), "share", "site").task == "regression"
    del KINDS["percentage"]
    with pytest.raises(EnvariantError, match="holds a damaged table .*unknown column kind"):
        load(tmp_path)
