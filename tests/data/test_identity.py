"""Identity of data: equal for copies in other places, different after any change of content or settings."""

import os
import shutil

import numpy as np
import pandas as pd
import pytest

import envariant
from envariant import Study, data
from envariant.core.environments import EnvironmentSource
from envariant.core.errors import EnvariantError
from envariant.data.tables.source import TableSource
from envariant.data.tables.source import source as table_source
from envariant.data.tables.table import read
from envariant.data.validation_split import ValidationSplit
from envariant.studies.study import begin


def frame():
    draw = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "site": draw.choice(["north", "south"], 200),
            "age": draw.integers(20, 80, 200),
            "ward": draw.choice(["a", "b", "c"], 200),
            "seen": pd.Timestamp("2020-01-01") + pd.to_timedelta(draw.integers(0, 700, 200), unit="D"),
            "w": draw.random(200),
            "y": draw.integers(2, size=200),
        }
    )


def table_identity(rows, **settings):
    return TableSource(read(rows, "y", "site", **settings)).identity()


def test_a_copied_table_keeps_its_identity(tmp_path):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    path, copy = tmp_path / "here" / "x.csv", tmp_path / "there" / "other name.csv"
    frame().to_csv(path, index=False)
    shutil.copy(path, copy)
    os.utime(copy, (1, 1))
    sources = [table_source(str(p), target="y", environment="site") for p in (path, copy)]
    assert sources[0].name != sources[1].name
    assert sources[0].identity() == sources[1].identity() == table_identity(frame())
    assert str(tmp_path) not in sources[0].identity()


def test_a_stored_table_keeps_its_identity_wherever_its_folder_is(tmp_path):
    table = read(frame(), "y", "site", exclude=["age"])
    table.write(tmp_path / "a")
    shutil.move(tmp_path / "a", tmp_path / "b")
    stored = data.source(f"table('{tmp_path / 'b'}')")
    assert stored.identity() == TableSource(table).identity()


def changed_cell(column, value):
    rows = frame()
    rows.loc[7, column] = value
    return rows


@pytest.mark.parametrize(
    "rows",
    [
        changed_cell("age", 19),
        changed_cell("age", None),
        changed_cell("ward", "d"),
        changed_cell("seen", pd.Timestamp("2019-12-31")),
        frame().assign(y=lambda x: 1 - x["y"]),
        frame().assign(site=lambda x: x["site"].map({"north": "south", "south": "north"})),
        frame().rename(columns={"age": "years"}),
        frame().replace({"ward": {"a": "A"}}),
        frame().iloc[::-1],
        frame().iloc[1:],
    ],
)
def test_any_change_of_a_table_changes_its_identity(rows):
    assert table_identity(rows) != table_identity(frame())


def test_settings_that_change_a_table_change_its_identity():
    identities = {
        table_identity(frame()),
        table_identity(frame(), exclude=["age"]),
        table_identity(frame(), task="multiclass"),
        table_identity(frame(), sample_weight="w"),
        TableSource(read(frame(), "y", "site")).with_test_environments(("north",)).identity(),
    }
    assert len(identities) == 5


@pytest.fixture
def images(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    folder = tmp_path / "images"
    rows = ["file,animal,site"]
    for domain in ("art", "photo"):
        for kind in ("cat", "dog"):
            (folder / domain / kind).mkdir(parents=True)
            pillow.new("RGB", (8, 8)).save(folder / domain / kind / "0.png")
            rows.append(f"{domain}/{kind}/0.png,{kind},{domain}")
    (folder / "metadata.csv").write_text("\n".join(rows))
    return folder


IMAGE_SOURCES = (
    "image-folders('{}', size=8)",
    "metadata-images('{}', size=8, file=file, label=animal, environment=site)",
)


@pytest.mark.parametrize("text", IMAGE_SOURCES)
def test_a_copied_folder_of_images_keeps_its_identity(text, images, tmp_path):
    before = data.source(text.format(images))
    shutil.copytree(images, tmp_path / "copy", copy_function=shutil.copyfile)
    after = data.source(text.format(tmp_path / "copy"))
    assert before.name != after.name
    assert before.identity() == after.identity()
    assert str(tmp_path) not in before.identity()


@pytest.mark.parametrize("text", IMAGE_SOURCES)
@pytest.mark.parametrize("setting", ["size=9", "normalize=false", "test=art"])
def test_settings_of_images_change_their_identity(text, setting, images):
    other = text.replace("size=8", setting)
    assert data.source(text.format(images)).identity() != data.source(other.format(images)).identity()


def test_a_changed_renamed_or_relabeled_image_changes_the_identity(images):
    def identity():
        return data.source(IMAGE_SOURCES[0].format(images)).identity()

    identities = [identity()]
    (images / "art/cat/0.png").rename(images / "art/cat/1.png")
    identities.append(identity())
    (images / "art/cat/1.png").rename(images / "art/dog/1.png")
    identities.append(identity())
    with (images / "art/dog/1.png").open("ab") as file:
        file.write(b"x")
    identities.append(identity())
    assert len(set(identities)) == 4


def edit_in_place(path):
    """Change the last pixel, so that the file keeps its size."""
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    os.utime(path, (1, 1))


@pytest.mark.parametrize("cache", ["cache", "images/art/cat/0.ppm"], ids=["a cache", "no writable cache"])
def test_an_image_edited_in_place_changes_the_identity(cache, images, tmp_path, monkeypatch):
    monkeypatch.setenv("ENVARIANT_CACHE", str(tmp_path / cache))
    pytest.importorskip("PIL.Image").new("RGB", (8, 8)).save(images / "art/cat/0.ppm")
    (images / "metadata.csv").unlink()
    text = IMAGE_SOURCES[0].format(images)
    before = data.source(text)
    original, states = before.identity(), sorted(path.stat().st_size for path in images.rglob("*.p*"))
    assert data.source(text).identity() == original
    edit_in_place(images / "art/cat/0.ppm")
    assert sorted(path.stat().st_size for path in images.rglob("*.p*")) == states
    assert data.source(text).identity() != original
    with pytest.raises(EnvariantError, match=f"the images in {images} have changed since they were first us"):
        before.sample(0)
    edit_in_place(images / "art/cat/0.ppm")
    assert data.source(text).identity() == original


def test_runs_are_not_resumed_with_images_edited_in_place(images, tmp_path, monkeypatch):
    monkeypatch.setenv("ENVARIANT_CACHE", str(tmp_path / "cache"))
    pytest.importorskip("PIL.Image").new("RGB", (8, 8)).save(images / "art/cat/0.ppm")
    (images / "metadata.csv").unlink()
    text = IMAGE_SOURCES[0].format(images)
    study = {"data": text, "algorithms": "erm", "n_trials": 1, "replicas": 1}
    options = {"model": "linear", "steps": 1, "batch_size": 1}
    begin(tmp_path / "study", Study(**study)).close()
    envariant.train(text, out=tmp_path / "run", **options)
    edit_in_place(images / "art/cat/0.ppm")
    with pytest.raises(EnvariantError, match=f"has runs on different data named 'image-folders.*{images}"):
        begin(tmp_path / "study", Study(**study))
    with pytest.raises(EnvariantError, match=f"other data under the same name, image-folders.*{images}"):
        envariant.train(text, out=tmp_path / "run", **options)


def test_a_relabeled_row_of_metadata_changes_the_identity(images):
    before = data.source(IMAGE_SOURCES[1].format(images)).identity()
    metadata = images / "metadata.csv"
    metadata.write_text(metadata.read_text().replace("art/cat/0.png,cat", "art/cat/0.png,dog"))
    assert data.source(IMAGE_SOURCES[1].format(images)).identity() != before


@pytest.mark.parametrize("name", ["colored-mnist:irm", "colored-digits", "colored-mnist-channels"])
def test_constructed_data_are_identified_by_their_name(name, tmp_path):
    assert data.source(name, folder=tmp_path).identity() == name


def test_a_validation_split_is_identified_by_its_data_and_its_settings():
    digits = data.colored_digits()

    def identity(source: EnvironmentSource = digits, share=0.2, test=None):
        return ValidationSplit(source, share, test).identity()

    assert identity() == identity(data.colored_digits())
    others = [
        digits.identity(),
        identity(share=0.3),
        identity(test=("flip-0.1",)),
        identity(test=()),
        identity(data.colored_digits(label_noise=0.1)),
    ]
    assert len({identity(), *others}) == 6
