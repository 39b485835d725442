"""Text columns of tables, replaced by the features of a text encoder."""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import ks_2samp

from envariant import data
from envariant.comparison import inputs
from envariant.comparison.data_check import check_data
from envariant.core.errors import EnvariantError, EnvariantWarning
from envariant.data.tables.columns import Column
from envariant.data.tables.source import TableSource
from envariant.data.tables.table import load, read, read_with_texts
from envariant.features import Features, HashedWords
from envariant.features.columns import embedded
from envariant.features.tables import expanded, image_table
from envariant.predictors import Linear
from envariant.reporting.coverage import Coverage
from envariant.reporting.shift import drift_table
from envariant.saved_model import SavedModel

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
    table = embedded(read_with_texts(frame, "stars", "shop"), (), HashedWords(features=32), tmp_path)
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
    table = read_with_texts(reviews(), "stars", "shop")
    with pytest.raises(EnvariantError, match="unknown text column 'reviwe'.*review"):
        embedded(table, ("reviwe",), HashedWords(), tmp_path)
    with pytest.raises(EnvariantError, match="unknown text column 'price'"):
        embedded(table, ("price",), HashedWords(), tmp_path)


def test_features_are_not_reported_as_leaks_but_other_columns_are(tmp_path):
    frame = reviews().assign(copied=lambda f: f["stars"].astype(float) + 1)
    table = embedded(read_with_texts(frame, "stars", "shop"), (), HashedWords(features=64), tmp_path)
    findings = [finding for finding in check_data(table) if "leak" in finding.kind]
    assert [finding.columns for finding in findings] == [("copied",)]
    assert not [f for f in check_data(table.rows(np.arange(240))) if f.kind == "joint target leak"]


def test_a_saved_model_reads_texts_or_their_features(tmp_path, monkeypatch):
    monkeypatch.setenv("ENVARIANT_CACHE", str(tmp_path / "cache"))
    frame = reviews()
    source = Features(
        TableSource(read_with_texts(frame, "stars", "shop"), "reviews"), HashedWords(features=32)
    ).table_source
    SavedModel.of_predictor(source, Linear()).save(tmp_path / "model")
    model = SavedModel.load(tmp_path / "model")
    predicted = model.predict(frame[["price", "review"]])
    assert (predicted["prediction"] == frame["stars"]).mean() > 0.9
    values = HashedWords(features=32).embed(frame["review"].tolist()).numpy()
    columns = {f"review {k + 1}": values[:, k] for k in range(32)} | {"price": frame["price"]}
    pd.testing.assert_frame_equal(model.predict(pd.DataFrame(columns)), predicted)
    with pytest.raises(EnvariantError, match="price"):
        model.predict(frame[["review"]])
    with pytest.raises(EnvariantError, match="lacks column 'review'; its columns: price"):
        model.predict(frame[["price"]])


def test_drift_of_a_text_column_is_reported_for_the_column_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("ENVARIANT_CACHE", str(tmp_path / "cache"))
    frame = reviews()
    source = Features(
        TableSource(read_with_texts(frame, "stars", "shop"), "reviews"), HashedWords(features=32)
    ).table_source
    model = SavedModel.of_predictor(source, Linear())
    alike = model.resembles(frame)
    assert [(c.name, c.kind, c.standing) for c in alike.columns] == [
        ("price", "number", "alike"),
        ("review", "32 features", "alike"),
    ]
    assert (alike.kind, alike.remarks) == ("alike", ())
    new = frame.assign(review="an entirely different sentence on quite another subject")
    drift = model.serve(new).drift
    assert drift.differing == ("review",)
    assert re.fullmatch(
        r"New rows differ in review, by more than training environments differ from each other: review \(distance 0\.\d\d, at "
        r"most 0\.\d\d between training environments\)",
        drift.verdict,
    )
    assert drift.remarks == ()
    # The mean Kolmogorov-Smirnov distance of all features, computed from the values themselves.
    old, later = (HashedWords(features=32).embed(f["review"].tolist()).numpy() for f in (frame, new))
    distances = [ks_2samp(old[:, k], later[:, k]).statistic for k in range(32)]
    assert drift.columns[1].distance == pytest.approx(np.mean(distances), abs=0.011)
    within = [
        np.mean([ks_2samp(old[shop, k], old[~shop, k]).statistic for k in range(32)])
        for shop in (frame["shop"].to_numpy() == name for name in ("north", "south", "west"))
    ]
    assert drift.columns[1].between == pytest.approx(max(within), abs=0.011)
    assert "mean distance of its features" in str(drift_table(drift))


def test_images_become_a_table_and_the_model_reads_files(tmp_path, monkeypatch):
    pytest.importorskip("PIL")
    from PIL import Image

    monkeypatch.setenv("ENVARIANT_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for place in ("north", "south"):
        for name, low in (("dark", 0), ("light", 128)):
            folder = tmp_path / "photos" / place / name
            folder.mkdir(parents=True)
            for k in range(12):
                pixels = rng.integers(low, low + 128, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{k}.png")
    table = inputs.read(tmp_path / "photos", None, None, "lenet", (), min_rows=5)
    assert table.task == "binary"
    assert table.classes == ("dark", "light")
    assert table.environments == ("north", "south")
    source = TableSource(table, "photos")
    model = SavedModel.of_predictor(source, Linear())
    paths = sorted(map(str, (tmp_path / "photos").rglob("*.png")))
    predicted = model.predict(pd.DataFrame({"image": paths}))["prediction"]
    assert (predicted == [path.split("/")[-2] for path in paths]).mean() > 0.9


def test_a_folder_needs_a_network(tmp_path):
    with pytest.raises(EnvariantError, match="is a folder; hashed-words needs a table with texts"):
        inputs.read(tmp_path, None, None, "hashed-words", ())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": "lenet", "target": "stars"}, "'target' refers to columns of a table"),
        ({"features": "lenet", "text": ("review",), "target": "a", "environment": "b"}, "not a text encoder"),
        ({}, "for a table, set the options 'target' and 'environment'"),
    ],
)
def test_arguments_of_a_comparison_that_do_not_fit(arguments, message, tmp_path):
    known = {"target": None, "environment": None, "features": None, "text": ()} | arguments
    frame = reviews().rename(columns={"stars": "a", "shop": "b"})
    with pytest.raises(EnvariantError, match=message):
        inputs.read(frame, **known)


@pytest.mark.parametrize(
    "settings", [{"components": 3}, {"standardize": False}, {"size": 8}, {"dtype": "bfloat16"}]
)
def test_settings_of_images_are_errors_for_texts(settings):
    source = TableSource(read_with_texts(reviews(), "stars", "shop"), "reviews")
    with pytest.raises(EnvariantError, match=f"{next(iter(settings))}' has no effect on texts in a table"):
        Features(source, HashedWords(features=8), **settings)
    shop = source.table.environments[0]
    assert Features(source, HashedWords(features=8), test=(shop,)).table_source.test == (shop,)


def test_a_module_of_the_user_is_not_saved_and_this_is_said(tmp_path, monkeypatch):
    pytest.importorskip("PIL")
    from PIL import Image

    monkeypatch.setenv("ENVARIANT_CACHE", str(tmp_path / "cache"))
    for k in range(4):
        path = tmp_path / "photos" / "ab"[k % 2] / "xy"[k // 2] / "0.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (4, 4), (k, 0, 0)).save(path)
    features = Features(f"image-folders('{tmp_path / 'photos'}', size=4)", torch.nn.Flatten())
    with pytest.warns(EnvariantWarning, match="the network Flatten is not saved with the model"):
        table = image_table(features)
    column = Column("image", "category", np.zeros(1, np.int32), (str(path),))
    with pytest.raises(EnvariantError, match=r"Flatten is not saved .* replace the column 'image'"):
        expanded({"image": column}, table.embedded)
    with pytest.raises(EnvariantError, match="the option 'components' depends on the test environments"):
        image_table(dataclasses.replace(features, components=1))
    assert Coverage.of(features, 0).log[-1].startswith("48 features by Flatten")
