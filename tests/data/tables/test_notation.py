"""Numbers as spreadsheets write them: read, with one decision for the whole column and table, and never silently."""

import re
import warnings

import numpy as np
import pandas as pd
import pytest

import envariant
from envariant.core.errors import EnvariantError, EnvariantWarning
from envariant.data.tables import reading
from envariant.data.tables.source import TableSource
from envariant.data.tables.table import read
from envariant.saved_model import SavedModel

rng = np.random.default_rng(0)
X = rng.normal(size=120)
AMOUNTS = np.round(np.exp(7 + X), 2)
EXACT, WHOLE = AMOUNTS, np.round(AMOUNTS)


def comma(text):
    return text.translate(str.maketrans(",.", ".,"))


def frame(texts, **more):
    return pd.DataFrame(
        {"z": texts, "y": (X > 0).astype(int), "site": np.repeat(["a", "b", "c"], 40), **more}
    )


def values(data):
    """The column z, and what is said about it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = read(data, "y", "site", min_rows=5)
    (said,) = [str(w.message) for w in caught if "'z'" in str(w.message)]
    assert re.search(r"'z': '.*' is read as -?[\d.]+$", said)
    (column,) = [c for c in table.columns if c.name == "z"]
    return column.values


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda v: f"{v:,.0f}", WHOLE),
        (lambda v: f"{v:,.2f}", EXACT),
        (lambda v: comma(f"{v:,.2f}"), EXACT),
        (lambda v: comma(f"{v:,.0f}"), WHOLE),
        (lambda v: f"{v:.2f}".replace(".", ","), EXACT),
        (lambda v: f"{v:,.0f}".replace(",", " "), WHOLE),
        (lambda v: f"{v:,.2f}".replace(",", "\xa0").replace(".", ","), EXACT),
        (lambda v: f"{v:,.2f}".replace(",", "\u202f"), EXACT),
        (lambda v: f"{v:,.2f}".replace(",", "’"), EXACT),
        (lambda v: f"{v:.2f}%", EXACT / 100),
        (lambda v: f"{v:.2f} %".replace(".", ","), EXACT / 100),
        (lambda v: f"${v:,.2f}", EXACT),
        (lambda v: comma(f"{v:,.2f} €"), EXACT),
        (lambda v: f"CHF {v:.2f}", EXACT),
        (lambda v: f"({v:,.2f})", -EXACT),
        (lambda v: f"$({v:,.2f}) ", -EXACT),
        (lambda v: f"{v:.2f}-", -EXACT),
        (lambda v: f"−{v:.2f}", -EXACT),
        (lambda v: f"{v:.6e}".replace(".", ","), EXACT),
        (lambda v: "".join(chr(ord(c) + 0xFEE0) for c in f"{v:.2f}"), EXACT),
        (lambda v: f"{v:.2f}".translate(str.maketrans("0123456789.", "٠١٢٣٤٥٦٧٨٩٫")), EXACT),
        (lambda v: f"{v:.2f} kg", EXACT),
    ],
)  # fmt: skip
def test_a_notation_of_spreadsheets_is_read_and_said(write, expected, tmp_path):
    texts = [write(value) for value in AMOUNTS]
    np.testing.assert_allclose(values(frame(texts)), expected, rtol=1e-12)
    frame(texts).to_csv(tmp_path / "x.csv", index=False)
    np.testing.assert_allclose(values(tmp_path / "x.csv"), expected, rtol=1e-12)


def test_lakh_and_crore():
    texts = ["12,34,567", "1,23,456", "12,345"] * 40
    assert values(frame(texts))[:3].tolist() == [1234567, 123456, 12345]


def test_one_decision_for_all_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "ROWS_PER_CHUNK", 10)
    order = np.argsort(AMOUNTS)
    texts = [comma(f"{v:,.0f}") for v in AMOUNTS[order]]
    assert "." not in "".join(texts[:10])
    frame(texts).to_csv(tmp_path / "x.csv", index=False)
    np.testing.assert_array_equal(values(tmp_path / "x.csv"), WHOLE[order])


@pytest.mark.parametrize(("other", "factor"), [("{:.1f}", 1), ("{:.1f}", 1000)])
def test_other_columns_show_the_decimal_sign(other, factor, tmp_path):
    # 1,234 and 1.234 alone could be either.
    three = [f"{1 + (k * 37 % 50) * 0.013:.3f}" for k in range(120)]
    shown = [other.format(k / 7) for k in range(120)]
    if factor == 1000:
        shown = [comma(text) for text in shown]
        frame(three, shown=shown).to_csv(tmp_path / "x.csv", index=False, sep=";")
        np.testing.assert_allclose(values(tmp_path / "x.csv"), [1000 * float(t) for t in three])
    frame([comma(text) for text in three], shown=shown).to_csv(tmp_path / "x.csv", index=False, sep=";")
    np.testing.assert_allclose(values(tmp_path / "x.csv"), [float(t) * 1000 / factor for t in three])


def test_plain_decimals_stay_plain(tmp_path, recwarn):
    for texts in ([f"{v:.3f}" for v in AMOUNTS / 40], [repr(v) for v in X.tolist()], [f"{v:.3e}" for v in X]):
        frame(texts).to_csv(tmp_path / "x.csv", index=False)
        for data in (frame(texts), tmp_path / "x.csv"):
            (column,) = read(data, "y", "site", min_rows=5).columns
            assert column.values.tolist() == [float(text) for text in texts]
    assert not recwarn


@pytest.mark.parametrize(
    "texts",
    [
        [f"{v:.1f} {'kg' if k % 2 else 'lb'}" for k, v in enumerate(AMOUNTS)],
        [f"<{v:.1f}" if k % 3 else f"{v:.1f}" for k, v in enumerate(AMOUNTS)],
        [f"{v:,.2f}" if k % 2 else comma(f"{v:,.2f}") for k, v in enumerate(AMOUNTS)],
        [f"{v / 1000:.2f}k" if v > 1000 else f"{v:.0f}" for v in AMOUNTS],
        [f"${v:.2f}" if k % 2 else f"€{v:.2f}" for k, v in enumerate(AMOUNTS)],
    ],
)
def test_numbers_in_several_notations_are_reported(texts):
    with pytest.warns(EnvariantWarning) as caught:
        read(frame(texts, x=X), "y", "site", min_rows=5)
    said = " ".join(str(w.message) for w in caught)
    assert "'z': 100% of its values begin with a digit, but are read as text, because of '" in said
    assert "columns left out: 'z' (" in said


def test_few_numbers_with_a_unit_are_categories(recwarn):
    (column,) = read(frame([f"{k % 5} stars" for k in range(120)]), "y", "site", min_rows=5).columns
    assert (column.kind, len(column.categories)) == ("category", 5)
    assert not recwarn


@pytest.fixture(scope="module")
def model():
    with pytest.warns(EnvariantWarning, match="is read as"):
        source = TableSource(read(frame([comma(f"{v:,.2f}") for v in AMOUNTS]), "y", "site", min_rows=5))
    return SavedModel.of(source, envariant.train(source, model="linear", steps=2, test_environments=()))


def test_a_saved_model_reads_new_rows_in_the_notation_of_its_training_rows(model, tmp_path):
    model.save(tmp_path / "model")
    model = SavedModel.load(tmp_path / "model")
    expected = model.predict(frame([1234.0, 999.0, 12.5] * 40))
    # Alone, 1.234 could be a decimal.
    frame(["1.234", "999", "12,5"] * 40).to_csv(tmp_path / "x.csv", index=False)
    pd.testing.assert_frame_equal(model.predict(tmp_path / "x.csv"), expected)
    frame(["1.234"] * 120).to_csv(tmp_path / "x.csv", index=False)
    assert set(model.predict(tmp_path / "x.csv").iloc[:, 1]) == {expected.iloc[0, 1]}
    with pytest.raises(
        EnvariantError, match="column 'z': holds '12%' in row 1, but the model was trained on a number"
    ):
        model.predict(frame(["12%"] * 120))
