"""Predictions: the values, the type and the category order of the user's target column, whatever its type."""

import datetime

import numpy as np
import pandas as pd
import pytest

import envariant
from envariant.core.errors import EnvariantWarning
from envariant.data.tables.source import TableSource
from envariant.data.tables.table import load, read
from envariant.saved_model import SavedModel

ROWS = 60
K = np.arange(ROWS) % 3


def frame(y):
    # One indicator per class, so that any class is learned.
    inputs = {f"x{j}": np.where(j == K, "a", "b") for j in range(3)}
    return pd.DataFrame({**inputs, "site": np.arange(ROWS) // 20, "y": y})


def predicted(data, folder, target="y"):
    table = read(data, target, "site", min_rows=5)
    table.write(folder / "table")
    source = TableSource(load(folder / "table"))
    result = envariant.train(
        source, model="linear", steps=30, learning_rate=0.3, test_environments=(), progress=False
    )
    SavedModel.of(source, result).save(folder / "model")
    model = SavedModel.load(folder / "model")
    return model, model.predict(data)


def of(a, b, c, **options):
    return pd.Series([(a, b, c)[k] for k in K], **options)


DAYS = [datetime.date(2020, 1, 1), datetime.date(2021, 1, 1), datetime.date(2021, 1, 1)]
TARGETS = {
    "words": of("yes", "no", "no"),
    "capitals": of("YES", "NO", "NO"),
    "true": of(True, False, False),
    "nullable boolean": of(True, False, False, dtype="boolean"),
    "bytes": of(1, 2, 3, dtype="int8"),
    "nullable integers": of(1, 2, 3, dtype="Int64"),
    "signs": of(-1, 1, 1),
    "floats": of(1.0, 2.0, 2.0),
    "nine digits": of(712345001, 712345002, 798765000),
    "beyond float64": of(2**60, 2**60 + 1, 7),
    "beyond int64": of(2**63, 2**63 + 1, 2**63 + 2, dtype="uint64"),
    "string": of("u", "v", "w", dtype="string"),
    "object": of("u", "v", "w", dtype=object),
    "blanks": of(" u ", "v", "v"),
    "plus and minus": of("+", "-", "-"),
    "amounts": of("1,234", "5,678", "12,345"),
    "category": pd.Series(pd.Categorical(of("low", "mid", "high"), ["low", "mid", "high", "never"], ordered=True)),
    "category of integers": pd.Series(pd.Categorical(of(10, 9, 100), [100, 9, 10])),
    "category of a word": pd.Series(pd.Categorical(of("none", "some", "all"), ["some", "none", "all"])),
    "stamps": pd.to_datetime(pd.Series(of(*DAYS))),
    "hours": pd.to_datetime(of("2020-01-01 06:00", "2020-01-01 18:00", "2020-01-01 18:00")),
    "time zone": pd.to_datetime(pd.Series(of(*DAYS))).dt.tz_localize("Europe/Berlin"),
    "dates": of(*DAYS, dtype=object),
    "durations": pd.to_timedelta(of(1, 2, 2), unit="h"),
    "periods": pd.Series(pd.PeriodIndex(of("2020", "2021", "2022"), freq="Y")),
    "Arrow": of("u", "v", "w", dtype="string[pyarrow]"),
    "Arrow integers": of(5, 6, 7, dtype="int64[pyarrow]"),
    "Arrow Booleans": of(True, False, False, dtype="bool[pyarrow]"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*counts as a value|.*is read as:envariant.core.errors.EnvariantWarning")
@pytest.mark.parametrize("name", TARGETS)
def test_predictions_equal_the_target_column(name, tmp_path):
    target = TARGETS[name]
    model, predictions = predicted(frame(target), tmp_path)
    pd.testing.assert_series_equal(predictions.prediction, target, check_names=False)
    if target.dtype == "category":
        assert model.classes == tuple(map(str, (c for c in target.cat.categories if c != "never")))
    assert list(predictions.columns[1:]) == [f"P({name})" for name in model.classes]


@pytest.mark.filterwarnings("ignore:.*counts as a value:envariant.core.errors.EnvariantWarning")
@pytest.mark.parametrize(
    "values",
    [("yes", "no", "no"), ("TRUE", "FALSE", "FALSE"), (3, 10, 1), (1.5, 10.0, 1.5), ("none", "b", "c")],
)
def test_predictions_equal_the_column_that_pandas_reads_from_a_file(values, tmp_path):
    frame(of(*values)).to_csv(tmp_path / "x.csv", index=False)
    _, predictions = predicted(tmp_path / "x.csv", tmp_path)
    expected = pd.read_csv(tmp_path / "x.csv", keep_default_na=False)["y"]
    pd.testing.assert_series_equal(predictions.prediction, expected, check_names=False)


def test_predictions_for_frames_of_other_libraries(tmp_path):
    polars, arrow = pytest.importorskip("polars"), pytest.importorskip("pyarrow")
    data = polars.from_pandas(frame(of("low", "mid", "high")))
    order = polars.Enum(["low", "mid", "high"])
    model, predictions = predicted(data.with_columns(polars.col("y").cast(order)), tmp_path)
    assert model.classes == ("low", "mid", "high")
    assert predictions.prediction.dtype == pd.CategoricalDtype(["low", "mid", "high"], ordered=True)
    assert predictions.prediction.tolist() == data["y"].to_list()
    gaps = data.with_columns(y=polars.Series([2**60 + k if n else None for n, k in enumerate(K.tolist())]))
    with pytest.warns(EnvariantWarning, match="1 of 60 rows without a value"):
        _, predictions = predicted(gaps, tmp_path)
    assert predictions.prediction[1:].tolist() == gaps["y"].to_list()[1:]
    packed = arrow.table(frame(of("low", "mid", "high"))).set_column(
        4, "y", arrow.DictionaryArray.from_arrays(arrow.array(K), ["low", "mid", "high"])
    )
    model, predictions = predicted(packed, tmp_path)
    assert model.classes == ("low", "mid", "high")
    assert predictions.prediction.tolist() == of("low", "mid", "high").tolist()


@pytest.mark.parametrize(
    "target",
    [
        pd.Timestamp("2020-01-01") + pd.to_timedelta(pd.Series(np.arange(60) * 7 % 43), unit="h"),
        pd.Series(pd.date_range("2020-03-20", periods=60, tz="Europe/Berlin")),
        pd.to_timedelta(pd.Series(np.arange(60) * 7 % 43), unit="min"),
    ],
    ids=["stamps", "time zone", "durations"],
)  # fmt: skip
def test_a_regression_predicts_times_as_times(target, tmp_path):
    _, predictions = predicted(frame(target), tmp_path)
    assert predictions.prediction.dtype == target.dtype
    assert (predictions.prediction - target).abs().max() < pd.Timedelta(days=90)
    assert abs((predictions.prediction - target).mean()) < pd.Timedelta(days=9)


def test_dates_in_the_text_of_a_file_are_predicted_as_dates(tmp_path):
    days = pd.Timestamp("2020-01-01") + pd.to_timedelta(np.arange(60) * 7 % 43, unit="D")
    frame(days.strftime("%d.%m.%Y")).to_csv(tmp_path / "x.csv", index=False)
    _, predictions = predicted(tmp_path / "x.csv", tmp_path)
    assert predictions.prediction.between("2019-10-01", "2020-06-01").all()


def test_two_spellings_of_yes_are_one_class(tmp_path):
    with pytest.warns(
        EnvariantWarning, match="'YES' and 'yes' differ in capitals only, and are treated as one"
    ):
        model, predictions = predicted(
            frame(of("yes", "no", "no").where(np.arange(ROWS) % 9 != 0, "YES")), tmp_path
        )
    assert model.classes == ("no", "yes")
    assert set(predictions.prediction) == {"no", "yes"}
