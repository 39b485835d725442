"""Text columns of tables, replaced by the features of a text encoder."""

import numpy as np
import pandas as pd
import pytest

from envariant import data
from envariant.core.errors import EnvariantError
from envariant.data.tables.source import TableSource
from envariant.data.tables.table import load, read, read_with_texts
from envariant.features import Features, HashedWords
from envariant.features.columns import embedded

WORDS = {False: ("poor", "slow", "broken", "late"), True: ("great", "fast", "solid", "kind")}


def reviews(rows=240):
    rng = np.random.default_rng(0)
    good = rng.random(rows) < 0.5
    text = [
        f"{rng.choice(WORDS[bool(g)])} and {rng.choice(WORDS[bool(g)])} service, order {k}"
        for k, g in enumerate(good)
    ]
    shop = np.array(["north", "south", "west"])[np.arange(rows) % 3]
    return pd.DataFrame({"review": text, "price": rng.normal(size=rows), "shop": shop, "stars": good})


def test_text_columns_join_the_numeric_columns(tmp_path):
    frame = reviews()
    table = embedded(read(frame, "stars", "shop"), (), HashedWords(features=32), tmp_path)
    assert [column.name for column in table.columns[:3]] == ["price", "review 1", "review 2"]
    assert len(table.columns) == 33
    assert table.texts == ()
    matrix = np.stack([column.values for column in table.columns[1:]], axis=1)
    expected = HashedWords(features=32).embed(frame["review"].tolist()).numpy()
    np.testing.assert_allclose(matrix, expected, atol=1e-7)
    assert "replaced by 32 features of hashed-words(features=32)" in str(table.preprocessing_log[-1])
    table.write(tmp_path)
    assert load(tmp_path).embedded == (("review", "hashed-words(features=32)"),)


def test_text_may_be_the_only_input(tmp_path, monkeypatch):
    monkeypatch.setenv("ENVARIANT_CACHE", str(tmp_path / "cache"))
    frame = reviews().drop(columns="price")
    frame.to_csv(tmp_path / "reviews.csv", index=False)
    with pytest.raises(EnvariantError, match="no column is left"):
        read(frame, "stars", "shop")
    assert read_with_texts(frame, "stars", "shop").columns == ()
    path = str(tmp_path / "reviews.csv")
    source = data.source(
        f"features(table({path!r}, target=stars, environment=shop), hashed-words(features=16), text=review)"
    )
    assert isinstance(source, Features)
    assert isinstance(source.table_source, TableSource)
    assert source.sample(0).input_shape[0] == 16
    assert data.source(source.name).identity() == source.identity()


def test_an_unknown_column_is_named(tmp_path):
    table = read(reviews(), "stars", "shop")
    with pytest.raises(EnvariantError, match="unknown text column 'reviwe'.*review"):
        embedded(table, ("reviwe",), HashedWords(), tmp_path)
    with pytest.raises(EnvariantError, match="unknown text column 'price'"):
        embedded(table, ("price",), HashedWords(), tmp_path)
