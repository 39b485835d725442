"""Tables as people have them: files of every make, frames of every library, and an account of what was done."""

import gzip
import sys
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch

from envariant import data
from envariant.core.environments import WEIGHT, EnvironmentSource
from envariant.core.errors import EnvariantError
from envariant.core.files import read_tensors, write_tensors
from envariant.core.tasks import Binary, Multiclass, Regression
from envariant.data.tables import reading
from envariant.data.tables import source as table_source
from envariant.data.tables import table as tables
from envariant.data.tables.source import TableSource
from envariant.data.tables.table import load, read

# Most tables here have columns or rows that are left out; `test_remarks.py` covers the warnings.
pytestmark = pytest.mark.filterwarnings("ignore::envariant.core.errors.EnvariantWarning")

ROWS = 300


def frame(rows=ROWS, seed=0):
    """Three sites, a column of each kind, and gaps."""
    draw = np.random.default_rng(seed)
    found = pd.DataFrame(
        {
            "site": draw.choice(["north", "south", "east, or so"], rows),
            "age": draw.integers(20, 80, rows).astype(float),
            # Exact in text, which has no single precision.
            "dose": (draw.integers(-200, 200, rows) / 64).astype(np.float32),
            "smoker": draw.choice(["yes", "no"], rows),
            "ward": draw.choice(["A&E", "<b>Ü</b>", "3"], rows),
            "seen": pd.Timestamp("2020-01-01") + pd.to_timedelta(draw.integers(0, 700, rows), unit="D"),
            "alive": draw.random(rows) < 0.5,
            "y": draw.integers(2, size=rows),
        }
    )
    found.loc[::7, "age"] = np.nan
    found.loc[::11, "ward"] = None
    return found


def fingerprint(anything, **more):
    return TableSource(read(anything, "y", "site", **more)).sample(0).fingerprint()


def preprocessing_log(table, column):
    return [line.what for line in table.preprocessing_log if line.column == column]


def csv(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


@pytest.fixture(scope="module")
def usual():
    return fingerprint(frame())


@pytest.mark.parametrize("stretch", [200_000, 40])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sep": ";"},
        {"sep": ";", "decimal": ","},
        {"sep": "\t"},
        {"sep": "|"},
        {"lineterminator": "\r\n"},
        {"quoting": 1},
        {"na_rep": "?"},
        {"na_rep": "NA"},
        {"date_format": "%d.%m.%Y"},
        {"date_format": "%m/%d/%Y"},
        {"encoding": "utf-8-sig"},
        {"encoding": "latin-1"},
        {"encoding": "utf-16"},
    ],
    ids=str,
)
def test_a_text_file_equals_its_data_frame(options, stretch, usual, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "ROWS_PER_CHUNK", stretch)
    frame().to_csv(tmp_path / "x.csv", index=False, **options)
    encoding = options.get("encoding", "utf-8").removesuffix("-sig")
    assert fingerprint(tmp_path / "x.csv", encoding=encoding) == usual
    assert fingerprint(str(tmp_path / "x.csv"), encoding=encoding) == usual


@pytest.mark.parametrize(
    "name", ["x.csv.gz", "x.csv.bz2", "x.csv.xz", "x.csv.zip", "x.TSV", "x", "x.parquet.csv"]
)
def test_the_suffix_of_a_text_file_decides_its_compression_only(name, usual, tmp_path):
    frame().to_csv(tmp_path / name, index=False)
    assert fingerprint(tmp_path / name) == usual


def test_an_index_is_no_column(usual, tmp_path):
    named = frame().set_index(pd.Index(np.arange(ROWS)[::-1] * 3, name="patient"))
    assert fingerprint(named) == usual
    # Written into a file it is one, and numbers the rows.
    frame().to_csv(tmp_path / "x.csv")
    table = read(tmp_path / "x.csv", "y", "site")
    assert preprocessing_log(table, "column 1") == ["left out: it numbers the rows"]
    assert TableSource(table).sample(0).fingerprint() == usual


@pytest.mark.parametrize("stretch", [200_000, 40])
def test_a_parquet_file_equals_its_data_frame(stretch, usual, tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(reading, "ROWS_PER_CHUNK", stretch)
    path = tmp_path / "x.parquet"
    for each in (frame(), frame().sample(frac=1, random_state=0).sort_index(), frame().convert_dtypes()):
        each.to_parquet(path)
        assert fingerprint(path) == usual
    # An index without a name is dropped, one with a name is a column.
    frame().set_index(np.arange(ROWS) ** 2).to_parquet(path)
    assert fingerprint(path) == usual
    frame().set_index(pd.Index(np.random.default_rng(0).permutation(ROWS), name="patient")).to_parquet(path)
    table = read(path, "y", "site")
    assert preprocessing_log(table, "patient") == ["left out: it numbers the rows"]
    assert TableSource(table).sample(0).fingerprint() == usual
    frame().assign(ward=frame().ward.astype("category")).set_index("site").to_parquet(path)
    assert fingerprint(path) == usual


def test_data_frames_of_other_libraries(usual):
    pyarrow = pytest.importorskip("pyarrow")
    arrow = pyarrow.Table.from_pandas(frame())
    assert fingerprint(arrow) == usual
    packed = frame().assign(ward=frame().ward.astype("category"), site=frame().site.astype("category"))
    assert fingerprint(pyarrow.Table.from_pandas(packed)) == usual
    assert fingerprint(packed) == usual
    backed = arrow.to_pandas(types_mapper=pd.ArrowDtype)
    assert fingerprint(backed) == usual
    polars = pytest.importorskip("polars")
    table = polars.from_pandas(frame())
    assert fingerprint(table) == usual
    assert fingerprint(table.with_columns(polars.col("ward", "site").cast(polars.Categorical))) == usual
    assert fingerprint(table.with_columns(polars.col("seen").cast(polars.Date))) == usual
    local = frame().assign(seen=frame().seen.dt.tz_localize("America/New_York"))
    for zoned in (local, pyarrow.Table.from_pandas(local), polars.from_pandas(local)):
        assert fingerprint(zoned) == usual
    lists = table.with_columns(polars.lit([1, 2]).alias("pair"))
    with pytest.raises(EnvariantError, match="column 'pair': holds a .* where one value should be"):
        read(lists, "y", "site")
    with pytest.raises(
        EnvariantError, match="path or a data frame of pandas, polars or Arrow; got LazyFrame"
    ):
        read(table.lazy(), "y", "site")


@pytest.mark.parametrize("dtypes", ["numpy_nullable", "pyarrow"])
def test_other_types_of_pandas(dtypes, usual):
    if dtypes == "pyarrow":
        pytest.importorskip("pyarrow")
    assert fingerprint(frame().convert_dtypes(dtype_backend=dtypes)) == usual
    assert fingerprint(frame().astype(object)) == usual


def test_the_name_of_a_table_reads_back_to_the_same_environments(usual, tmp_path):
    frame().rename(columns={"site": 'the, "site"'}).to_csv(tmp_path / "x.csv", index=False)
    source = table_source.source(str(tmp_path / "x.csv"), target="y", environment='the, "site"')
    again = data.source(source.name)
    assert again.name == source.name
    assert again.sample(0).fingerprint() == source.sample(0).fingerprint() == usual
    table = read(tmp_path / "x.csv", "y", 'the, "site"')
    table.write(tmp_path / "stored")
    stored = data.source(f'table("{tmp_path / "stored"}")')
    assert stored.sample(0).fingerprint() == usual
    assert isinstance(stored, EnvironmentSource)
    held = data.source(stored.name).with_test_environments(["north"])
    assert held.sample(0).test == ("north",)
    assert held is stored.with_test_environments(["north"]), "encoded once"
    with pytest.raises(EnvariantError, match="set target=… and environment=… to the names"):
        data.source(f'table("{tmp_path / "x.csv"}")')
    with pytest.raises(EnvariantError, match="unknown environment 'nroth'; did you mean 'north'"):
        stored.with_test_environments(["nroth"]).sample(0)
    with pytest.raises(EnvariantError, match="all environments are held out"):
        stored.with_test_environments(["north", "south", "east, or so"]).sample(0)


def test_a_stored_table_is_loaded_unchanged(tmp_path):
    table = read(frame(), "y", "site")
    table.write(tmp_path / "x")
    again = load(tmp_path / "x")
    assert (again.task, again.preprocessing_log, again.environments, again.classes, len(again)) == (
        table.task,
        table.preprocessing_log,
        table.environments,
        table.classes,
        ROWS,
    )
    arrays, path = {"0": torch.zeros(1)}, tmp_path / "x" / "table.safetensors"
    write_tensors(path, arrays, {"table": "{"})
    with pytest.raises(EnvariantError, match=r"holds a damaged table \(Invalid JSON"):
        load(tmp_path / "x")
    write_tensors(path, arrays, {})
    with pytest.raises(EnvariantError, match="holds no table"):
        load(tmp_path / "x")


@pytest.mark.parametrize(
    "change",
    [
        lambda values: {name: value[:7] if name == "0" else value for name, value in values.items()},
        lambda values: {name: value + 1000 for name, value in values.items()},
        lambda values: {name: value * np.inf for name, value in values.items()},
        lambda values: {name: value.float() for name, value in values.items()},
        lambda values: {name: value[:, None] for name, value in values.items()},
        lambda values: {name: value[:0] for name, value in values.items()},
        lambda values: {name: torch.full_like(value, -1) for name, value in values.items()},
    ],
)
def test_a_stored_table_of_a_stranger_is_validated(change, tmp_path):
    read(frame(), "y", "site").write(tmp_path)
    path = tmp_path / "table.safetensors"
    texts, values = read_tensors(path, "")
    write_tensors(path, change(values), {"table": texts["table"]})
    with pytest.raises(EnvariantError, match="holds a damaged table"):
        load(tmp_path)


def of_target(values, **more):
    rows = len(values)
    draw = np.random.default_rng(0)
    table = pd.DataFrame({"x": draw.normal(size=rows), "site": np.arange(rows) % 2, "y": values})
    return read(table, "y", "site", min_rows=5, **more)


THIRTY = np.arange(120)


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        (THIRTY % 2 == 0, "binary", ("False", "True")),
        (THIRTY % 2, "binary", ("0", "1")),
        (THIRTY % 2 * 2 - 1, "binary", ("-1", "1")),
        (np.array([0.5, 10.0])[THIRTY % 2], "binary", ("0.5", "10")),
        (np.array(["no", "YES"])[THIRTY % 2], "binary", ("no", "YES")),
        (np.array(["well", "ill"])[THIRTY % 2], "binary", ("ill", "well")),
        (np.array([1, 2, 10])[THIRTY % 3], "multiclass", ("1", "2", "10")),
        (np.array(["b", "c", "a"])[THIRTY % 3], "multiclass", ("a", "b", "c")),
        (pd.Categorical(np.array([3, 1, 2])[THIRTY % 3]), "multiclass", ("1", "2", "3")),
        (np.array([16777216, 16777218, 7])[THIRTY % 3], "multiclass", ("7", "16777216", "16777218")),
        (THIRTY % 10, "multiclass", tuple(map(str, range(10)))),
        (THIRTY % 11, "regression", ()),
        (THIRTY % 30, "regression", ()),
        (THIRTY / 7, "regression", ()),
        (np.array([0.5, 1.5, 2])[THIRTY % 3], "regression", ()),
        (pd.date_range("2020-01-01", periods=120), "regression", ()),
    ],
)  # fmt: skip
def test_the_task_is_inferred_and_logged(values, task, classes):
    table = of_target(values)
    assert (table.task, table.classes) == (task, classes)
    told = preprocessing_log(table, "y")[0]
    assert told.startswith(f"target; {task}, inferred")
    assert all(name in told for name in classes[:6])
    drawn = TableSource(table).sample(0)
    assert drawn.classes == classes
    expected = {"binary": Binary(), "multiclass": Multiclass(max(2, len(classes)))}
    assert task == "regression" or drawn.task == expected[task]
    together = torch.cat([e.targets for e in drawn.environments])
    if task != "regression":
        assert sorted(together.unique().tolist()) == list(range(len(classes)))


@pytest.mark.parametrize(
    ("values", "task", "kind"),
    [
        (THIRTY % 2, "regression", Regression),
        (THIRTY % 2 == 0, "regression", Regression),
        (THIRTY % 3, "regression", Regression),
        (THIRTY % 30, "multiclass", Multiclass),
        (THIRTY % 2, "multiclass", Multiclass),
        (THIRTY % 2 == 0, "multiclass", Multiclass),
        (THIRTY % 2, "binary", Binary),
    ],
)
def test_the_task_can_be_set(values, task, kind):
    table = of_target(values, task=task)
    assert preprocessing_log(table, "y")[0].startswith(f"target; {task}, as requested")
    assert isinstance(TableSource(table).task, kind)


@pytest.mark.parametrize(
    ("values", "task", "message"),
    [
        (THIRTY % 3, "binary", "has 3 values; a binary task has two"),
        (
            np.array(["a", "b"])[THIRTY % 2],
            "regression",
            r"holds text \('a', …\); a regression needs numbers",
        ),
        (THIRTY / 7, "multiclass", "has 120 different values in 120 rows, too many for classes"),
        (
            np.array([f"n{k}" for k in THIRTY]),
            None,
            "has 120 different values in 120 rows, too many for classes",
        ),
        (np.ones(120), None, "target 'y' is '1' in every row; there is nothing to predict"),
        (np.full(120, np.nan), None, "target 'y' is empty in all rows"),
        (np.where(THIRTY == 7, np.inf, THIRTY), None, "column 'y': holds inf in row 8, too large"),
        (THIRTY, "classes", "unknown task 'classes'; known: binary"),
    ],
)
def test_an_unusable_target_is_rejected(values, task, message):
    with pytest.raises(EnvariantError, match=message):
        of_target(values, task=task)


def test_regression_targets_are_standardized_for_training_only():
    draw = np.random.default_rng(0)
    values = np.where(THIRTY % 2, 5000, 100) + draw.normal(scale=30, size=120)
    table = of_target(values.astype(np.float32))
    drawn = TableSource(table).with_test_environments(["1"]).sample(0)
    known, new = (np.float64(values[k::2].astype(np.float32)) for k in (0, 1))
    assert drawn.task.center == pytest.approx(known.mean())
    assert drawn.task.scale == pytest.approx(known.std())
    north, south = drawn.environments
    assert float(north.targets.mean()) == pytest.approx(0, abs=1e-5)
    assert float(north.targets.std(correction=0)) == pytest.approx(1, rel=1e-5)
    # What one number for all would lose, in squares of the target's own unit.
    lost = drawn.task.scores(torch.zeros(60), south.targets).mean()
    assert float(lost) == pytest.approx(np.mean((new - known.mean()) ** 2), rel=1e-4)


def sites(values, min_rows=5, **more):
    rows = len(values)
    draw = np.random.default_rng(0)
    table = pd.DataFrame({"x": draw.normal(size=rows), "y": np.arange(rows) // 3 % 2, "site": values})
    return read(table.assign(**more), "y", "site", min_rows=min_rows)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([10, 9, 100], ("9", "10", "100")),
        ([10.0, 9.0, np.nan], ("9", "10")),
        (["10", "9", "x"], ("9", "10", "x")),
        (["b", "a", "B"], ("B", "a", "b")),
        ([0.1, 0.25, -1.0], ("-1", "0.1", "0.25")),
        # More digits than float32 has.
        ([9007199254740991, 9007199254740990, 7], ("7", "9007199254740990", "9007199254740991")),
        ([True, False, True], ("False", "True")),
        (["yes", "no", "no"], ("no", "yes")),
        (["03", "3", "x"], ("03", "3", "x")),
        (["worst", "*", "mean"], ("'*'", "'mean'", "'worst'")),
        (["a\nb", "<i>c</i>", "d\x00\u200b"], ("<i>c</i>", "a b", "d")),
        # What is written in two ways on one line is one.
        (["a b", "a  b", "a\tb ", "c"], ("a b", "c")),
        (pd.to_datetime(["2020-01-01", "2021-01-01", None]), ("2020-01-01", "2021-01-01")),
        (pd.Categorical(["b", "a", None], categories=["c", "b", "a"]), ("a", "b")),
        (["unknown", "a", "NA"], ("NA", "a", "unknown")),
    ],
)
def test_environments_have_names_in_order(values, names, tmp_path):
    repeated = pd.Series(values).repeat(12).reset_index(drop=True)
    table = sites(repeated)
    assert table.environments == names
    drawn = TableSource(table).sample(0)
    assert drawn.names == names
    assert sum(len(e) for e in drawn.environments) == len(table)
    gone = 12 * (len(values) - repeated.nunique()) if repeated.isna().any() else 0
    if gone:
        assert "rows without a value are left out" in preprocessing_log(table, "site")[0]
    if not any("\n" in str(v) or "\x00" in str(v) for v in values):
        draw = np.random.default_rng(0)
        written = pd.DataFrame(
            {"x": draw.normal(size=len(repeated)), "y": np.arange(len(repeated)) // 3 % 2, "site": repeated}
        )
        written.to_csv(tmp_path / "x.csv", index=False)
        again = read(tmp_path / "x.csv", "y", "site", min_rows=5)
        assert again.environments == names
        assert TableSource(again).sample(0).fingerprint() == drawn.fingerprint()


def test_environments_that_differ_in_case_only_are_distinct_and_logged():
    assert (
        "'North' and 'north' differ in capitals only, and are treated as different; if they mean the same, spell "
        "them identically"
    ) in preprocessing_log(sites(["North", "north", "x"] * 12), "site")
    table = sites(["a", "b"] * 30, ward=["ICU", "icu", "er"] * 20)
    assert (
        preprocessing_log(table, "ward")[1]
        == "'ICU' and 'icu' differ in capitals only, and are treated as different"
    )


def test_small_environments_are_pooled_or_left_out():
    table = sites(["a"] * 20 + ["b"] * 20 + ["c"] * 3 + ["d"] * 4)
    assert table.environments == ("a", "b", "2 small ones")
    assert preprocessing_log(table, "site") == [
        "2 of 4 environments have fewer than 5 rows (c, d): pooled, 7 rows together",
        "environment column; 3 environments",
    ]
    assert np.bincount(table.environment.values).tolist() == [20, 20, 7]
    table = sites(["a"] * 20 + ["b"] * 20 + ["c"] * 3)
    assert table.environments == ("a", "b")
    assert len(table) == 40
    assert "1 of 3 environments have fewer than 5 rows (c): left out, 3 rows" in preprocessing_log(
        table, "site"
    )
    with pytest.raises(
        EnvariantError,
        match=r"has 1 environment\(s\) of at least 5 rows \(a\) and \d+ smaller ones; at least two are needed",
    ):
        sites(["a"] * 20 + ["b"] * 4)
    with pytest.raises(EnvariantError, match=r"has 0 environment\(s\) of at least 50 rows \(none\)"):
        sites(["a", "b"] * 5, min_rows=50)


def test_a_missing_class_is_logged():
    values = np.array(["a", "b", "c"])[np.arange(120) % 3]
    values[1::2] = np.where(values[1::2] == "a", "b", values[1::2])
    table = of_target(values)
    assert "no row of 1 is a" in preprocessing_log(table, "y")
    assert not any("no row of 0" in what for what in preprocessing_log(table, "y"))


def test_the_preprocessing_log_covers_every_column():
    draw = np.random.default_rng(0)
    rows = 400
    many = [f"c{k}" for k in draw.integers(0, 40, rows)]
    given = frame(rows).assign(
        secret=1.0,
        constant=7,
        empty=np.nan,
        gone="?",
        number=draw.permutation(rows) + 5,
        name=[f"name {k}" for k in range(rows)],
        many=many,
        only=lambda f: np.where(f.site == "north", draw.normal(size=rows), 0.0),
        where=lambda f: (f.site == "north").astype(int),
        gaps=np.where(draw.random(rows) < 0.25, 1.0, np.nan),
    )
    given.loc[:9, "y"] = np.nan
    given.loc[10:14, "site"] = None
    table = read(given, "y", "site", exclude=["secret", "secret"])
    assert len(table) == rows - 15
    told = {name: preprocessing_log(table, name) for name in given.columns}
    assert told["secret"] == ["left out, as requested"]
    assert told["constant"] == ["left out: its value is the same in every row"]
    assert told["empty"] == told["gone"] == ["left out: it holds no value"]
    assert told["number"] == ["left out: it numbers the rows"], "in any order, though 15 rows are left out"
    assert told["name"] == ["left out: 385 different texts in 385 rows: a name, not a category"]
    assert told["many"] == ["category of 40"]
    assert told["age"][0].startswith("number, standardized; 14")
    assert told["age"][0].endswith("% missing: filled in and marked")
    assert told["smoker"] == ["boolean, standardized"]
    assert told["seen"] == ["date, as days and as the season"]
    assert told["only"] == [
        "number, standardized; not used if the test environment is north, because it is constant in all others"
    ]
    assert told["where"] == [
        "number, standardized; not used if the test environment is north, because it is constant in all others"
    ]
    assert "missing: filled in and marked" in told["gaps"][0]
    assert told["y"][0].startswith("target; 10 of 400 rows without a value")
    assert told["site"][0].startswith("environment; 5 of 400 rows without a value")
    kept = {column.name for column in table.columns}
    assert kept == {name for name in given.columns if "left out" not in told[name][0]} - {"y", "site"}
    held = TableSource(table).with_test_environments(["north"])
    assert "only" not in held.columns
    assert "only" in TableSource(table).columns
    assert set(TableSource(table).columns) == kept


def test_two_environments_each_with_its_own_constant():
    table = sites(["a", "b"] * 30, beds=[100, 200] * 30)
    assert preprocessing_log(table, "beds") == [
        "number, standardized; not used if the test environment is a or b, because it is constant in all others"
    ]


@pytest.mark.parametrize("stretch", [200_000, 50])
def test_codes_keep_their_spelling_across_chunks(stretch, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "ROWS_PER_CHUNK", stretch)
    codes = ["03", "3", "1.0", "007"] * 25 + ["V27", "03", "3", "007"] * 25
    flags = ["True", "False"] * 50 + ["TRUE", "", "False", "true"] * 25
    gaps = [""] * 50 + ["2020-01-02", "2020-01-03"] * 25 + [""] * 100
    whole = ["1", "2"] * 50 + ["", "3"] * 50
    rows = [
        f"{c},{f},{g},{w},{k % 2},{k // 3 % 2}"
        for k, (c, f, g, w) in enumerate(zip(codes, flags, gaps, whole, strict=True))
    ]
    path = csv(tmp_path / "x.csv", "code,flag,day,whole,site,y\n" + "\n".join(rows))
    columns = {c.name: c for c in read(path, "y", "site").columns}
    assert columns["code"].categories == ("007", "03", "1.0", "3", "V27")
    assert columns["code"].texts() == codes
    assert columns["flag"].kind == "boolean"
    assert columns["flag"].missing.sum() == 25
    assert columns["day"].kind == "date"
    assert columns["whole"].kind == "number"
    csv(path, path.read_text().replace("V27", "inf", 1).replace("V27", "5"))
    with pytest.raises(EnvariantError, match=r"x.csv: column 'code': holds inf in row 101, too large"):
        read(path, "y", "site")


HEADER, BODY = "a,b,site,y", "\n".join(f"{k * k % 17},{k % 5},{k % 2},{k // 3 % 2}" for k in range(120))


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ('"a, really",b,site,y', ("a, really", "b")),
        (' a , "b" ,site,y', ("a", "b")),
        ('"a\nof two lines",b,site,y', ("a of two lines", "b")),
        ("\n\na,b,site,y", ("a", "b")),
        (",b,site,y", ("column 1", "b")),
        ("1,2,site,y", ("1", "2")),
        ("NA,null,site,y", ("NA", "null")),
        ("\ufeffa,b,site,y", ("a", "b")),
        ("<b>ä</b>,worst,site,y", ("<b>ä</b>", "worst")),
    ],
)
def test_headers(header, names, tmp_path):
    path = csv(tmp_path / "x.csv", f"{header}\n{BODY}\n")
    table = read(path, "y", "site")
    assert tuple(c.name for c in table.columns) == names
    assert len(table) == 120
    assert table.columns[0].values[:3].tolist() == [0, 1, 4]


def test_trailing_commas_are_ignored(tmp_path):
    ending = BODY.replace("\n", ",\n")
    assert len(read(csv(tmp_path / "x.csv", f"{HEADER}\n{ending},\n"), "y", "site").columns) == 2
    table = read(csv(tmp_path / "x.csv", f"{HEADER},\n{ending},\n"), "y", "site")
    assert preprocessing_log(table, "column 5") == ["left out: it holds no value"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.csv: is empty"),
        ("\n\n", "x.csv: is empty"),
        (HEADER, "x.csv: holds no rows under its header"),
        (HEADER + "\n", "x.csv: holds no rows under its header"),
        ("a,a,site,y\n" + BODY, "x.csv: column name 'a' is used twice; rename one"),
        (HEADER + "\n1,2,3,4,5\n" + BODY, r"some rows hold more values than its header has names \(4\)"),
        (HEADER + "\n" + BODY + "\n1,2,3,4,5", "cannot be read as a table .*Expected 4 fields in line 122, saw 5"),
        (HEADER.replace("y", "Y").replace("site", "SITE") + "\n" + BODY, r"lacks target column 'y' \(did you mean 'Y'\?\)"),
        ("a,b,sites,y\n" + BODY, r"x.csv: lacks environment column 'site' \(did you mean 'sites'\?\); its columns: a, b, sites, y"),
        (HEADER + "\n" + BODY.replace("16,", "sixteen,", 1), "x.csv: column 'a': 1 of 120 values are not numbers .*'sixteen' in row 5"),
        ('a,b,site,y\n"1,2,0,1\n', "cannot be read as a table|holds no rows|no value"),
    ],
)  # fmt: skip
def test_invalid_text_files_are_rejected(text, message, tmp_path):
    path = csv(tmp_path / "x.csv", text)
    with pytest.raises(EnvariantError, match=message) as said:
        read(path, "y", "site")
    assert str(path) in str(said.value)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "a,b,site,y\nü,1,2,3\n".encode("latin-1"), r"is not utf-8 text \(it holds byte 0xfc\); if it is a text file, set its encoding"),
        ("x.csv", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "is not utf-8 text .* if it is a text file, set its encoding"),
        ("x.csv.gz", b"no gzip", "cannot be read as a table"),
        ("x.csv.gz", gzip.compress(HEADER.encode() * 5000, mtime=0)[:40], "cannot be read as a table"),
        ("x.zip", b"PK\x03\x04 no zip", "cannot be read as a table"),
        ("x.csv.xz", b"no xz", "cannot be read as a table"),
        ("x.csv.bz2", b"no bz2", "cannot be read as a table"),
        ("x.tar", b"no tar", "cannot be read as a table"),
        ("x.csv.zst", b"no zst", "cannot be read as a table"),
    ],
)  # fmt: skip
def test_binary_files_are_rejected(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EnvariantError, match=message) as said:
        read(tmp_path / name, "y", "site")
    assert "\n" not in str(said.value)


def test_unsupported_data_are_rejected(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as packed:
        packed.writestr("a.csv", HEADER)
        packed.writestr("b.csv", HEADER)
    with pytest.raises(EnvariantError, match="cannot be read as a table .*[Mm]ultiple files"):
        read(tmp_path / "two.zip", "y", "site")
    with pytest.raises(EnvariantError, match="is a folder; name a file"):
        read(tmp_path, "y", "site")
    with pytest.raises(EnvariantError, match="there is no such file"):
        read(tmp_path / "nowhere.csv", "y", "site")
    with pytest.raises(EnvariantError, match="cannot be read as a table .*unknown encoding"):
        read(csv(tmp_path / "x.csv", HEADER), "y", "site", encoding="klingon")
    with pytest.raises(EnvariantError, match="got dict"):
        read({"y": [1]}, "y", "site")
    twice = pd.concat([frame(), frame()[["age"]]], axis=1)
    with pytest.raises(EnvariantError, match="data frame: column name 'age' is used twice"):
        read(twice, "y", "site")
    with pytest.raises(EnvariantError, match="data frame: holds no rows"):
        read(frame().iloc[:0], "y", "site")
    with pytest.raises(EnvariantError, match="lacks target column 'y'; its columns: none"):
        read(pd.DataFrame(), "y", "site")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(EnvariantError, match="Parquet needs pyarrow; pip install pyarrow, or save it as CSV"):
        read(csv(tmp_path / "x.parquet", "PAR1"), "y", "site")


def test_damaged_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    with pytest.raises(EnvariantError, match="is not a Parquet file"):
        read(csv(tmp_path / "x.parquet", "PAR1 no"), "y", "site")
    path = tmp_path / "y.parquet"
    frame().to_parquet(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + b"\xff" * 400 + whole[404:])
    with pytest.raises(EnvariantError, match="y.parquet: is damaged"):
        read(path, "y", "site")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"target": "site"}, r"a column can have one role only \(target 'site', environment 'site'\)"),
        ({"exclude": ["y"]}, "the target column 'y' cannot be excluded"),
        ({"exclude": ["site"]}, "the environment column 'site' cannot be excluded"),
        ({"exclude": ["agee"]}, r"lacks column 'agee' \(did you mean 'age'\?\)"),
        ({"exclude": [n for n in frame().columns if n not in ("site", "y")]}, "no column is left to predict 'y' from"),
        ({"task": "clustering"}, "unknown task 'clustering'"),
        ({"min_rows": 1000}, r"column 'site' has 0 environment\(s\) of at least 1000 rows"),
    ],
)  # fmt: skip
def test_invalid_options_are_rejected(more, message):
    with pytest.raises(EnvariantError, match=message):
        read(frame(), **{"target": "y", "environment": "site", **more})


def test_sample_weights_follow_their_rows_and_are_not_inputs(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "x": rng.normal(size=200),
            "often": rng.integers(1, 5, size=200),
            "y": rng.integers(2, size=200),
            "site": np.repeat(["b", "a"], 100),
        }
    )
    frame.loc[3, "y"] = np.nan
    table = tables.read(frame, "y", "site", sample_weight="often")
    assert [column.name for column in table.columns] == ["x"]
    assert any(
        line.column == "often" and line.what.startswith("weights of rows") for line in table.preprocessing_log
    )
    table.write(tmp_path)
    for each in (table, tables.load(tmp_path)):
        drawn = TableSource(each).sample(0)
        kept = frame.dropna()
        for name in ("a", "b"):
            own = kept[kept["site"] == name]["often"]
            assert drawn[name].attributes[WEIGHT].tolist() == own.tolist()
    assert TableSource(tables.load(tmp_path)).columns == {"x": slice(0, 1)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"often": -1.0}, "sample_weight 'often' must be a number of at least 0 in every row"),
        ({"often": np.nan}, "sample_weight 'often' must be a number of at least 0 in every row"),
        ({"often": "many"}, "sample_weight 'often' must be a number of at least 0 in every row"),
    ],
)
def test_invalid_sample_weights_are_rejected(change, message):
    frame = pd.DataFrame({"x": range(200), "often": 1.0, "y": [0, 1] * 100, "site": ["a", "b"] * 100})
    frame["x"] = np.random.default_rng(0).normal(size=200)
    with pytest.raises(EnvariantError, match=message):
        tables.read(frame.assign(**change), "y", "site", sample_weight="often")
    with pytest.raises(EnvariantError, match="a column can have one role only"):
        tables.read(frame, "y", "site", sample_weight="site")
    with pytest.raises(
        EnvariantError, match=r"lacks sample_weight column 'offen' \(did you mean 'often'\?\)"
    ):
        tables.read(frame, "y", "site", sample_weight="offen")


def test_an_unknown_setting_of_a_table_is_rejected():
    with pytest.raises(EnvariantError, match="table: unknown setting 'weight'; did you mean 'sample_weight'"):
        table_source.source("x.csv", "y", "site", weight="w")
