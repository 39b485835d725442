"""Words such as none and NA: values where they matter, and never rows that go without a word."""

import numpy as np
import pandas as pd
import pytest

import envariant
from envariant.core.errors import EnvariantError, EnvariantWarning
from envariant.data.tables.source import TableSource
from envariant.data.tables.table import read
from envariant.saved_model import SavedModel

ROWS = 240
rng = np.random.default_rng(0)
WORDS = rng.choice(["mild", "severe"], ROWS)
RARE = np.where(np.arange(ROWS) % 80 == 0, "none", WORDS)
FREQUENT = rng.choice(["none", "mild", "severe"], ROWS)


def frame(**columns):
    usual = {
        "site": np.repeat(["a", "b", "c"], ROWS // 3),
        "y": np.where(rng.random(ROWS) < 0.5, "p", "q"),
        "x": rng.normal(size=ROWS).round(3),
    }
    return pd.DataFrame(usual | columns)


def missing(data, **options):
    """The number of missing values of z."""
    columns = {c.name: c for c in read(data, "y", "site", min_rows=5, **options).columns}
    return int(columns["z"].missing.sum())


def written(path, data, **options):
    data.to_csv(path, index=False, **options)
    return path


@pytest.mark.parametrize("word", ["none", "NA", "null", "N/A", "unknown", "missing"])
def test_a_frequent_word_of_an_input_is_a_category(word, tmp_path):
    data = frame(z=np.where(FREQUENT == "none", word, FREQUENT))
    assert missing(data) == missing(written(tmp_path / "x.csv", data)) == 0
    rare = frame(z=np.where(RARE == "none", word, RARE))
    assert missing(rare) == missing(written(tmp_path / "x.csv", rare)) == 3


def test_a_declared_or_quoted_word_is_a_category(tmp_path):
    assert missing(frame(z=pd.Categorical(RARE))) == 0
    path = tmp_path / "x.csv"
    assert missing(written(path, frame(z=RARE), quoting=2)) == 0
    # Where everything is quoted, quotes mean nothing.
    assert missing(written(path, frame(z=RARE), quoting=1)) == 3
    assert missing(written(path, frame(z=RARE), quoting=1, sep=";")) == 3


def test_a_word_that_marks_missing_numbers_marks_missing_texts(tmp_path):
    data = frame(
        z=np.where(FREQUENT == "none", None, FREQUENT), age=np.where(np.arange(ROWS) % 7, 1.5, np.nan)
    )
    data["age"] *= np.arange(ROWS) % 17
    for quoting in (0, 2):
        path = written(tmp_path / "x.csv", data, na_rep="NA", quoting=quoting)
        assert missing(path) == data.z.isna().sum()
    assert missing(data.astype(object).fillna("NA")) == data.z.isna().sum()


def test_missing_values_can_be_declared(tmp_path):
    data = frame(z=FREQUENT, age=np.where(np.arange(ROWS) % 10, rng.normal(50, 9, ROWS), -999))
    for each in (data, written(tmp_path / "x.csv", data)):
        assert missing(each, missing_values=("none",)) == (FREQUENT == "none").sum()
        table = read(each, "y", "site", min_rows=5, missing_values=["-999"])
        columns = {c.name: c for c in table.columns}
        assert (int(columns["age"].missing.sum()), int(columns["z"].missing.sum())) == (24, 0)
        assert table.missing_values == ("-999",)
    assert missing(frame(z=RARE), missing_values=()) == 0


@pytest.mark.parametrize("word", ["none", "NA", "null", "nan", "N/A", "unknown", "-"])
@pytest.mark.parametrize("role", ["y", "site"])
def test_a_word_in_the_target_or_environment_keeps_its_rows(word, role, tmp_path):
    names = np.where(np.arange(ROWS) % 12 == 0, word, np.where(np.arange(ROWS) % 2, "u", "v"))
    data = frame(**{role: names})
    for each in (data, written(tmp_path / "x.csv", data)):
        with pytest.warns(EnvariantWarning, match=f"'{role}': '{word}' counts as a value, in 20 of 240 rows"):
            table = read(each, "y", "site", min_rows=5)
        assert len(table) == ROWS
        assert word in (table.classes if role == "y" else table.environments)
        with pytest.warns(
            EnvariantWarning, match=rf"'{role}': .*; 20 of 240 rows .*'{word}'; .*set missing_values"
        ):
            table = read(each, "y", "site", min_rows=5, missing_values=[word])
        assert len(table) == ROWS - 20


def test_none_beside_a_few_integers_is_a_class():
    grades = np.where(np.arange(ROWS) % 4 == 0, "none", rng.integers(1, 4, ROWS).astype(str))
    with pytest.warns(EnvariantWarning, match="'none' counts as a value"):
        assert read(frame(y=grades), "y", "site").classes == ("1", "2", "3", "none")


@pytest.mark.parametrize("target", [lambda k: f"{k / 7}", lambda k: str(k % 2)])
def test_rows_without_a_number_in_the_target_are_said_to_go(target, tmp_path):
    values = ["NA" if k % 10 == 0 else target(k) for k in range(ROWS)]
    for each in (frame(y=values), written(tmp_path / "x.csv", frame(y=values))):
        with pytest.warns(
            EnvariantWarning, match=r"'y': target; 24 of 240 rows without a value \(empty or 'NA'; to keep"
        ):
            assert len(read(each, "y", "site")) == ROWS - 24


def test_na_without_quotes_is_missing_where_texts_are_quoted(tmp_path):
    # As R writes it.
    lines = [
        f'"{k}","{"abc"[k % 3]}",{"NA" if k % 10 == 0 else chr(34) + "pq"[k % 2] + chr(34)},{k * k % 31}'
        for k in range(ROWS)
    ]
    (tmp_path / "x.csv").write_text('"","site","y","x"\n' + "\n".join(lines))
    with pytest.warns(EnvariantWarning) as caught:
        table = read(tmp_path / "x.csv", "y", "site")
    assert table.classes == ("p", "q")
    assert any("24 of 240 rows without a value" in str(w.message) for w in caught)


def test_a_saved_model_keeps_the_words_of_its_training_rows(tmp_path):
    data = frame(z=FREQUENT)
    data["y"] = np.where(data.z == "none", "p", "q")
    source = TableSource(read(data, "y", "site"))
    result = envariant.train(source, model="linear", steps=40, learning_rate=0.1, test_environments=())
    model = SavedModel.of(source, result)
    expected = model.predict(data)
    assert (expected.prediction == data.y).all()
    # One row with the word is too few to be frequent.
    few = data.assign(z="mild")
    few.loc[0, "z"] = "none"
    for each in (few, written(tmp_path / "x.csv", few)):
        assert (model.predict(each).prediction == np.where(few.z == "none", "p", "q")).all()
        assert not any(c.missing for c in model.resembles(each).columns)


def test_small_environments_name_the_missing_targets(tmp_path):
    data = frame(y=np.where(rng.random(ROWS) < 0.75, None, "p"))
    data.loc[::20, "y"] = "q"
    with pytest.raises(
        EnvariantError, match=r"choose another column. 'y': target; \d+ of 240 rows without a value"
    ) as said:
        read(written(tmp_path / "x.csv", data), "y", "site")
    assert "\n" not in str(said.value)
    with pytest.raises(
        EnvariantError, match=r"is empty in all rows \('none' were read as missing values; to keep them, set"
    ):
        read(frame(y="none"), "y", "site", missing_values=["none"])
