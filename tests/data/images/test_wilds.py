"""Tables of image files, made here as WILDS lays them out: environments, splits, paths and what is refused."""

import numpy as np
import pytest
import torch

import envariant
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Binary, Multiclass
from envariant.data import MetadataImages, Wilds, source
from envariant.data.images import wilds

Image = pytest.importorskip("PIL.Image")

IMAGES = (
    "file,animal,site,part\na.png,dog,9,train\nb.png,cat,10,train\nc/d.png,cat,9,val\nb.png,dog,11,test\n"
)
COLUMNS = {"file": "file", "label": "animal", "environment": "site"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ENVARIANT_CACHE", str(tmp_path / "cache"))


def save(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (shade,) * 3).save(path)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "own"
    for k, file in enumerate(("a.png", "b.png", "c/d.png")):
        save(folder / file, 10 * k)
    (folder / "metadata.csv").write_text(IMAGES)
    return folder


def refusal(call, *arguments, **settings):
    with pytest.raises(EnvariantError) as caught:
        call(*arguments, **settings)
    return str(caught.value)


def own(root, **settings):
    return MetadataImages(root, **{**COLUMNS, "size": 4, **settings})


def shades(environment):
    """The shade of each image of an environment that is not normalized."""
    return environment.inputs[:, 0, 0, 0].mul(255).round().int().tolist()


def test_three_columns_make_environments(root):
    found = own(root, normalize=False).sample(0)
    assert found.names == ("9", "10", "11")
    assert set(found.roles().values()) == {"train"}
    assert (found.task, found.classes) == (Binary(), ("cat", "dog"))
    assert [e.targets.tolist() for e in found.environments] == [[1, 0], [0], [1]]
    assert [shades(e) for e in found.environments] == [[0, 20], [10], [10]]


def test_splits_become_test_and_validation_environments(root):
    found = own(root, split="part").sample(0)
    assert found.roles() == {"9": "train", "9 (val)": "validation", "10": "train", "11": "test"}
    assert own(root, split="part", test=("10",)).sample(0).roles()["11"] == "train"


def test_the_preprocessing_log_lists_missing_classes(root):
    assert own(root).preprocessing_log() == [
        f"{root}: 3 environments, 2 classes, 4 images",
        "9: 2 images",
        "10: 1 images; no images of dog",
        "11: 1 images; no images of cat",
    ]


def test_labels_that_are_numbers_come_by_number(root):
    (root / "metadata.csv").write_text(
        "\ufefffile,animal,site\na.png,10,x\nb.png,9,y\na.png, 2 ,y\n", encoding="utf-8"
    )
    found = own(root).sample(0)
    assert (found.task, found.classes) == (Multiclass(3), ("2", "9", "10"))
    assert found["y"].targets.tolist() == [1, 0]


def test_names_with_markup_are_plain_text(root):
    (root / "metadata.csv").write_text('file,animal,site\na.png,<i>,"<b>, it\'s ""x""</b>"\nb.png,[red],y\n')
    found = own(root).sample(0)
    assert found.names == ('<b>, it\'s "x"</b>', "y")
    assert found.classes == ("<i>", "[red]")


@pytest.mark.parametrize(
    ("table", "settings", "message"),
    [
        (None, {}, "metadata-images: there is no metadata.csv in {root}"),
        ("", {}, "metadata-images: {root}/metadata.csv: cannot be read as a table (No columns to parse from file)"),
        ("file,animal,site\n", {}, "metadata-images: {root}/metadata.csv: has no rows"),
        (IMAGES, {"label": "anmal"}, "metadata-images: {root}/metadata.csv: unknown column 'anmal'; did you mean "
         "'animal'? known: animal, file, part, site"),
        (IMAGES, {"split": "animal"}, "metadata-images: unknown split 'dog'; known: 0, 1, 2, dev, id_test, id_val, "
         "test, train, training, val, valid, validation"),
        (IMAGES, {"label": "site", "environment": "animal", "metadata": "x.csv"},
         "metadata-images: there is no x.csv in {root}"),
        (IMAGES.replace("b.png,cat", "b.png,"), {}, "metadata-images: {root}/metadata.csv: column 'animal' is empty "
         "in 1 of 4 rows (first: row 2); fill in or remove them"),
        (IMAGES.replace("cat", "dog"), {}, "metadata-images: 4 rows have 1 classes (dog); at least two "
         "are needed, with several images of each"),
        ("file,animal,site\na.png,cat,9\nb.png,dog,9\n", {}, "metadata-images: all rows come from '9'; at least two "
         "environments are needed"),
        (IMAGES.replace("c/d.png", "c/e.png"), {}, "{root}: 1 of 4 images are missing: c/e.png"),
        ("\0\1\2", {}, "metadata-images: {root}/metadata.csv: "),
    ],
)  # fmt: skip
def test_invalid_metadata_is_rejected(root, table, settings, message):
    (root / "metadata.csv").unlink()
    if table is not None:
        (root / "metadata.csv").write_text(table)
    assert refusal(own(root, **settings).sample, 0).startswith(message.format(root=root))


def test_as_many_classes_as_rows_are_rejected(root):
    rows = "".join(f"a.png,{k},{k % 2}\n" for k in range(60))
    (root / "metadata.csv").write_text(f"file,animal,site\n{rows}")
    assert refusal(own(root).sample, 0).startswith(
        "metadata-images: 60 rows have 60 classes (0, 1, 2 and 57 more); "
    )


def test_a_path_that_is_not_a_folder_is_rejected(root, tmp_path):
    assert refusal(own(tmp_path / "no").sample, 0) == (
        f"metadata-images: {tmp_path / 'no'} is missing; pass a folder"
    )
    assert (
        refusal(own(root / "a.png").sample, 0)
        == f"metadata-images: {root / 'a.png'} is a file; pass a folder"
    )


def test_an_image_file_with_text_is_named(root):
    (root / "a.png").write_text("no image")
    assert refusal(own(root).sample, 0).startswith(f"{root / 'a.png'}: cannot be read as an image (")


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "metadata-images('{root}', size=4, file=file, label=animal, environment=site)"),
        (
            {"split": "the part", "metadata": "x.csv", "test": ("9",)},
            "metadata-images('{root}', size=4, test=('9',), file=file, label=animal, environment=site, "
            "split='the part', metadata='x.csv')",
        ),
    ],
)
def test_text_round_trip_preserves_a_source(root, settings, name):
    found = own(root, **settings)
    assert found.name == name.format(root=root)
    assert source(found.name) == found
    wilds = Wilds(root, splits=False, size=96)
    assert wilds.name == f"wilds('{root}', size=96, splits=false)"
    assert source(wilds.name) == wilds


def test_columns_must_be_named(root):
    assert refusal(source, f"metadata-images('{root}', file=a)") == (
        "metadata-images: needs environment, label, as in metadata-images(environment=…)"
    )


CAMELYON = """,patient,node,x_coord,y_coord,tumor,slide,center,split
0,004,4,3328,21792,1,0,0,0
1,004,4,3200,22272,0,0,0,1
2,051,0,4,5,1,1,1,0
3,051,0,4,6,0,1,1,1
4,060,3,7,8,1,2,2,0
5,061,3,7,8,0,2,3,0
"""
CAMELYON_FILES = [
    "patches/patient_004_node_4/patch_patient_004_node_4_x_3328_y_21792.png",
    "patches/patient_004_node_4/patch_patient_004_node_4_x_3200_y_22272.png",
    "patches/patient_051_node_0/patch_patient_051_node_0_x_4_y_5.png",
    "patches/patient_051_node_0/patch_patient_051_node_0_x_4_y_6.png",
    "patches/patient_060_node_3/patch_patient_060_node_3_x_7_y_8.png",
    "patches/patient_061_node_3/patch_patient_061_node_3_x_7_y_8.png",
]
SETS = {
    "camelyon17_v1.0": (
        CAMELYON,
        CAMELYON_FILES,
        {"center 0": "train", "center 0 (id_val)": "validation", "center 1": "validation", "center 2": "test",
         "center 3": "train"},
        {"center 0": [1, 0], "center 1": [1, 0], "center 2": [1], "center 3": [0]},
    ),
    "iwildcam_v2.0": (
        "split,location_remapped,location,sequence_remapped,y,filename\n"
        "train,10,5,0,0,a.jpg\nid_val,10,5,0,2,b.jpg\nval,9,6,0,1,c.jpg\ntest,2,7,0,0,d.jpg\nid_test,10,5,1,1,e.jpg\n",
        [f"train/{name}.jpg" for name in "abcde"],
        {"2": "test", "9": "validation", "10": "train", "10 (id_val)": "validation", "10 (id_test)": "test"},
        {"2": [0], "9": [1], "10": [0, 2, 1]},
    ),
    "rxrx1_v1.0": (
        "site_id,well_id,cell_type,dataset,experiment,plate,well,site,well_type,sirna,sirna_id\n"
        "x,x,HEPG2,train,HEPG2-01,1,B02,1,t,s,1138\nx,x,HEPG2,train,HEPG2-01,1,B02,2,t,s,1138\n"
        "x,x,RPE,val,RPE-02,3,C03,1,t,s,7\nx,x,U2OS,test,U2OS-04,4,D10,2,t,s,7\n",
        ["images/HEPG2-01/Plate1/B02_s1.png", "images/HEPG2-01/Plate1/B02_s2.png",
         "images/RPE-02/Plate3/C03_s1.png", "images/U2OS-04/Plate4/D10_s2.png"],
        {"HEPG2-01": "train", "HEPG2-01 (id_test)": "test", "RPE-02": "validation", "U2OS-04": "test"},
        {"HEPG2-01": [1, 1], "RPE-02": [0], "U2OS-04": [0]},
    ),
    "waterbirds_v1.0": (
        "img_id,img_filename,y,split,place,place_filename\n"
        "1,001.A/a.jpg,0,1,0,x\n2,001.A/b.jpg,0,0,0,x\n3,002.B/c.jpg,1,0,1,x\n4,002.B/d.jpg,1,2,0,x\n",
        ["001.A/a.jpg", "001.A/b.jpg", "002.B/c.jpg", "002.B/d.jpg"],
        {"land": "train", "land (1)": "validation", "land (2)": "test", "water": "train"},
        {"land": [0, 0, 1], "water": [1]},
    ),
}  # fmt: skip


def laid_out(tmp_path, name):
    table, files, *_ = SETS[name]
    root = tmp_path / name
    for k, file in enumerate(files):
        save(root / file, k)
    (root / "metadata.csv").write_text(table)
    (root / f"RELEASE_{name.split('_')[1]}.txt").write_text("")
    return root


@pytest.mark.parametrize("name", SETS)
def test_wilds_data_use_the_official_splits_or_none(tmp_path, name):
    *_, roles, targets = SETS[name]
    root = laid_out(tmp_path, name)
    assert source(f"wilds('{root}', size=4)").sample(0).roles() == roles
    whole = Wilds(root, size=4, splits=False).sample(0)
    assert {e.name: e.targets.tolist() for e in whole.environments} == targets
    assert set(whole.roles().values()) == {"train"}


def test_file_paths_follow_from_metadata(tmp_path):
    for name, (_, files, _, _) in SETS.items():
        root = laid_out(tmp_path, name)
        found = Wilds(root, size=4, splits=False, normalize=False).sample(0)
        assert sorted(s for e in found.environments for s in shades(e)) == pytest.approx(
            range(len(files)), abs=3
        )


def test_an_incomplete_download_is_rejected(tmp_path):
    root = laid_out(tmp_path, "waterbirds_v1.0")
    (root / "RELEASE_v1.0.txt").unlink()
    assert refusal(Wilds(root).sample, 0) == (
        f"wilds: {root} lacks its RELEASE_v….txt, which marks a complete download; download the data set "
        f"again"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("animals", "wilds: {root} must have a name such as camelyon17_v1.0, as in WILDS; for other "
         "images use metadata-images"),
        ("poverty_v1.1", "wilds (for others use metadata-images): unknown data set 'poverty'; known: camelyon17, "
         "celebA, fmow, iwildcam, rxrx1, waterbirds"),
        ("camelyon17_v1.0", "wilds: {root} is missing; pass a folder"),
    ],
)  # fmt: skip
def test_an_unknown_wilds_data_set_is_rejected(tmp_path, name, message):
    root = tmp_path / name
    assert refusal(Wilds(root).sample, 0) == message.format(root=root)


def test_damaged_numbers_and_times_are_named(tmp_path):
    (tmp_path / "table.csv").write_text(
        "toxicity,time\n0.5,2013-01-01T00:00:00Z\nx,2016-01-01T00:00:00Z\n0,y\n"
    )
    table = wilds.Table("wilds", tmp_path, "table.csv")
    assert refusal(table.numbers, "toxicity").endswith(
        "column 'toxicity' holds 'x' in row 2, which is not a number; download the data set again"
    )
    assert refusal(table.years, "time").endswith(
        "column 'time' holds 'y' in row 3, which is not a time in ISO 8601; download the data set again"
    )


def test_a_table_of_images_trains(root):
    rows = "".join(
        f"{'ab'[k % 2]}.png,{('cat', 'dog')[k % 2]},{k % 3},{'test' if k % 3 == 2 else 'train'}\n"
        for k in range(24)
    )
    (root / "metadata.csv").write_text(f"file,animal,site,part\n{rows}")
    result = envariant.train(own(root, split="part"), "erm", steps=2, batch_size=4, evaluate_every=2)
    assert {(r.environment, r.role) for r in result.rows} >= {("0", "train"), ("1", "train"), ("2", "test")}
    assert all(np.isfinite(r.value) for r in result.rows)
    assert torch.get_default_dtype() == torch.float32
