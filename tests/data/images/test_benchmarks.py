"""Benchmarks in the folders of DomainBed, Spawrious and WILDS, made here in miniature."""

import pytest

from envariant.core.errors import EnvariantError
from envariant.data import DomainBed, Spawrious, Wilds, source, wilds_table
from envariant.data.images import spawrious
from envariant.data.images.domainbed import LAYOUTS

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ENVARIANT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "a.png"
    Image.new("RGB", (8, 8), (9, 8, 7)).save(path)
    return path.read_bytes()


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def refusal(call, *arguments, **settings):
    with pytest.raises(EnvariantError) as caught:
        call(*arguments, **settings)
    return str(caught.value)


def domainbed(folder, name, picture):
    """All classes in the first domain, and two in the others."""
    layout = LAYOUTS[name]
    for k, domain in enumerate(layout.domains):
        for kind in range(layout.classes if k == 0 else 2):
            put(folder / name / domain / f"kind {kind:03d}" / "0.png", picture)
    return folder / name


@pytest.mark.parametrize("name", LAYOUTS)
def test_folders_of_domainbed_are_read(tmp_path, picture, name):
    root = domainbed(tmp_path, name, picture)
    layout = LAYOUTS[name]
    listing = DomainBed(root).listing()
    assert tuple(group.name for group in listing.groups) == layout.domains
    assert len(listing.classes) == layout.classes
    if layout.classes > 10:
        return
    sample = source(f"domainbed('{root}', size=4, test='{layout.domains[1]}')").sample(0)
    assert [len(e) for e in sample.environments] == [layout.classes, *[2] * (len(layout.domains) - 1)]
    assert sample.roles()[layout.domains[1]] == "test"


def test_what_a_folder_of_domainbed_lacks_is_said_with_what_is_expected(tmp_path, picture):
    root = domainbed(tmp_path, "PACS", picture)
    expected = (
        "PACS must hold 4 domains (art_painting, cartoon, photo, sketch) with 7 classes, as in "
        "PACS/photo/dog/056_0001.jpg"
    )
    (root / "photo").rename(root / "Photo")
    assert refusal(DomainBed(root).listing) == f"domainbed: {root} lacks the domain photo; {expected}"
    (root / "Photo").rename(root / "photo")
    put(root / "photo" / "whale" / "0.png", picture)
    assert refusal(DomainBed(root).listing).endswith(f"and 3 more); {expected}")
    empty = tmp_path / "empty" / "PACS"
    empty.mkdir(parents=True)
    assert (
        refusal(DomainBed(empty).listing)
        == f"domainbed: {empty} holds no images of the form domain/class/image; {expected}"
    )
    other = root.rename(tmp_path / "PAC")
    assert "unknown benchmark 'PAC'; did you mean 'PACS'?" in refusal(DomainBed(other).listing)
    moved = other.rename(tmp_path / "pacs")
    assert "lacks" not in refusal(DomainBed(moved).listing), "names of folders in other capitals are known"


@pytest.mark.parametrize("benchmark", ["o2o_easy", "m2m_hard"])
def test_spawrious_exchanges_backgrounds(tmp_path, picture, benchmark, monkeypatch):
    monkeypatch.setattr(spawrious, "_TOTAL", 100)
    root = tmp_path / "spawrious224"
    for folder in "01":
        for background in ("beach", "desert", "dirt", "jungle", "mountain", "snow"):
            for breed in spawrious.CLASSES:
                for k in range(2):
                    put(root / folder / background / breed / f"{k}.png", picture)
    own = Spawrious(root, benchmark=benchmark)
    groups = {group.name: group for group in own.listing().groups}
    assert own.listing().test == ("test",)

    def backgrounds(name):
        found = {}
        for file, target in zip(groups[name].files, groups[name].targets, strict=True):
            folder, background, breed, _ = file.split("/")
            assert spawrious.CLASSES[target] == breed
            found.setdefault(breed, set()).add((folder, background))
        return found

    if benchmark == "o2o_easy":
        assert backgrounds("group 1")["bulldog"] == {("0", "desert"), ("0", "beach")}
        assert backgrounds("group 2")["corgi"] == {("1", "snow"), ("1", "beach")}
        assert backgrounds("test")["dachshund"] == {("0", "snow"), ("1", "snow")}
    else:
        assert backgrounds("group 1")["bulldog"] == {("0", "dirt")}
        assert backgrounds("group 2")["bulldog"] == {("0", "jungle")}
        assert backgrounds("test")["corgi"] == {("0", "jungle"), ("0", "dirt")}
    (root / "0" / "jungle").rename(root / "gone")
    assert refusal(own.listing).endswith("/*.png, so pass the folder spawrious224 of the unpacked archive")
    assert "unknown benchmark 'o2o'" in refusal(Spawrious(root, benchmark="o2o").listing)


def test_spawrious_has_the_shares_of_its_paper(tmp_path, picture, monkeypatch):
    monkeypatch.setattr(spawrious, "_TOTAL", 20)
    root = tmp_path / "spawrious224"
    for folder in "01":
        for background in ("beach", "desert", "dirt", "jungle", "snow"):
            for breed in spawrious.CLASSES:
                for k in range(20):
                    put(root / folder / background / breed / f"{k}.png", picture)
    groups = {group.name: group for group in Spawrious(root, benchmark="o2o_easy").listing().groups}
    for name, count in (("group 1", 19), ("group 2", 17)):
        files = [file for file in groups[name].files if "bulldog" in file]
        assert len(files) == 20
        assert sum("/desert/" in file for file in files) == count


def test_fmow_is_cut_by_year_and_grouped_by_region(tmp_path, picture):
    root = tmp_path / "fmow_v1.1"
    rows = [
        ("train", "2010-05-01T00:00:00Z", "zoo", "FRA"),
        ("train", "2014-05-01T00:00:00Z", "zoo", "FRA"),
        ("val", "2011-05-01T00:00:00Z", "dam", "USA"),
        ("val", "2015-12-31T23:00:00Z", "dam", "FRA"),
        ("test", "2016-01-01T00:00:00Z", "zoo", "USA"),
        ("test", "2009-01-01T00:00:00Z", "dam", "XXX"),
        ("seq", "2009-01-01T00:00:00Z", "dam", "FRA"),
        ("train", "2009-01-01T00:00:00Z", "dam", "USA"),
    ]
    for k in range(len(rows)):
        put(root / "images" / f"rgb_img_{k}.png", picture)
    lines = ["split,timestamp,category,country_code", *map(",".join, rows)]
    (root / "rgb_metadata.csv").write_text("\n".join(lines) + "\n")
    assert "there is no country_code_mapping.csv" in refusal_without_release(root)
    (root / "country_code_mapping.csv").write_text("alpha-3,region\nFRA,Europe\nUSA,Americas\n")
    listing = Wilds(root, size=4).listing()
    found = {group.name: group.files for group in listing.groups}
    assert found == {
        "Americas": ["images/rgb_img_7.png"],
        "Americas (id_val)": ["images/rgb_img_2.png"],
        "Americas (test)": ["images/rgb_img_4.png"],
        "Europe": ["images/rgb_img_0.png"],
        "Europe (val)": ["images/rgb_img_3.png"],
        "Other": ["images/rgb_img_5.png"],
    }
    assert listing.remarks == ("2 rows are in no official split, and are left out",)
    assert set(listing.test) == {"Americas (test)", "Other"}


def refusal_without_release(root):
    assert "lacks its RELEASE_v….txt" in refusal(Wilds(root).listing)
    (root / "RELEASE_v1.0.txt").write_text("")
    return refusal(Wilds(root).listing)


def test_celeba_has_two_tables(tmp_path, picture):
    root = tmp_path / "celebA_v1.0"
    for k in range(4):
        put(root / "img_align_celeba" / f"{k}.jpg", picture)
    (root / "list_attr_celeba.csv").write_text(
        "image_id,Male,Blond_Hair\n0.jpg,-1,1\n1.jpg,1,-1\n2.jpg,-1,-1\n3.jpg,1,1\n"
    )
    assert "there is no list_eval_partition.csv" in refusal_without_release(root)
    (root / "list_eval_partition.csv").write_text("image_id,partition\n0.jpg,0\n1.jpg,0\n2.jpg,2\n")
    assert "list_eval_partition.csv lacks 1 of 4 images (first: 3.jpg)" in refusal(Wilds(root).listing)
    (root / "list_eval_partition.csv").write_text("image_id,partition\n0.jpg,0\n1.jpg,0\n2.jpg,2\n3.jpg,1\n")
    sample = Wilds(root, size=4).sample(0)
    assert sample.roles() == {
        "female": "train", "female (2)": "test", "male": "train", "male (1)": "validation",
    }  # fmt: skip
    assert sample.classes == ("blond", "not blond")


def test_texts_of_wilds_are_tables(tmp_path):
    root = tmp_path / "civilcomments_v1.0"
    root.mkdir()
    identities = "male,female,LGBTQ,christian,muslim,other_religions,black,white"
    (root / "all_data_with_identities.csv").write_text(
        f'id,comment_text,split,toxicity,{identities}\n1,"Hello, you",train,0.6,0,0.7,0,0.9,0,0,0,0\n'
        f"2,Fine,test,0.2,0,0,0,0,0,0,0,0\n"
    )
    assert "lacks its RELEASE_v….txt" in refusal(wilds_table, root)
    (root / "RELEASE_v1.0.txt").write_text("")
    found = wilds_table(root)
    assert found["text"].tolist() == ["Hello, you", "Fine"]
    assert found["target"].tolist() == [True, False]
    assert found["environment"].tolist() == ["female", "none"]
    assert found["christian"].tolist() == [True, False]
    root = tmp_path / "amazon_v2.1"
    (root / "splits").mkdir(parents=True)
    (root / "RELEASE_v2.1.txt").write_text("")
    (root / "reviews.csv").write_text(
        'reviewerID,reviewText,category,overall,reviewYear\nA,"Good",Books,5.0,2010\nB,,Toys,1.0,2011\nC,x,Toys,2.0,2011\n'
    )
    assert "there is no splits/user.csv" in refusal(wilds_table, root)
    (root / "splits" / "user.csv").write_text("split\n0\n3\n")
    assert "user.csv has 2 rows, and reviews.csv has 3" in refusal(wilds_table, root)
    (root / "splits" / "user.csv").write_text("split\n0\n3\n-1\n")
    found = wilds_table(str(root))
    assert found.to_dict("list") == {
        "text": ["Good", ""], "target": [5, 1], "environment": ["Books", "Toys"], "group": ["A", "B"],
        "split": ["train", "test"],
    }  # fmt: skip
    assert "unknown data set 'fmow'" in refusal(wilds_table, tmp_path / "fmow_v1.1")
