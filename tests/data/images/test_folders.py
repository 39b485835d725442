"""Folders of images, made here: what is read and as what, what is kept, what is skipped and what is refused."""

import gc
import os
import pickle
import sys
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

import envariant
from envariant.core.environments import RESERVED
from envariant.core.errors import EnvariantError, EnvariantWarning
from envariant.core.tasks import Binary, Multiclass
from envariant.data import ImageFolders, source
from envariant.data.images import reading
from envariant.data.images.decoding import Preprocessing
from envariant.data.images.reading import DEVIATION, MEAN

Image = pytest.importorskip("PIL.Image")

COLOURS = {"cat": (255, 0, 0), "dog": (0, 255, 0), "emu": (0, 0, 255)}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("ENVARIANT_CACHE", str(folder))
    return folder


def read(root, files, size, **settings):
    pixels = reading.in_memory(root, files, Preprocessing(size), **settings)
    return pixels.read(np.arange(len(files)))


def save(path, color=(9, 8, 7), size=(8, 8), mode="RGB", **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path, **settings)


@pytest.fixture
def root(tmp_path):
    """Three domains; in the second there is no dog, and in the third one image more."""
    folder = tmp_path / "animals"
    for domain, classes in {
        "art": ("cat", "dog"),
        "photo": ("cat", "emu"),
        "sketch": ("cat", "dog", "emu"),
    }.items():
        for kind in classes:
            for k in range(2):
                save(folder / domain / kind / f"{k}.png", COLOURS[kind])
    save(folder / "sketch" / "cat" / "2.JPG", COLOURS["cat"], quality=100)
    return folder


def refusal(call, *arguments, **settings):
    with pytest.raises(EnvariantError) as caught:
        call(*arguments, **settings)
    return str(caught.value)


def drawn(root, **settings):
    return ImageFolders(root, **{"size": 8, **settings}).sample(0)


def test_domains_are_environments_with_common_class_numbers(root):
    found = drawn(root, normalize=False, test=("sketch",))
    assert found.names == ("art", "photo", "sketch")
    assert found.roles()["sketch"] == "test"
    assert (found.task, found.classes) == (Multiclass(3), ("cat", "dog", "emu"))
    assert [e.targets.tolist() for e in found.environments] == [
        [0, 0, 1, 1],
        [0, 0, 2, 2],
        [0, 0, 0, 1, 1, 2, 2],
    ]
    for environment in found.environments:
        # The channel of a class's color is the number of the class.
        assert environment.inputs.shape == (len(environment), 3, 8, 8)
        brightest = environment.inputs.mean(dim=(2, 3)).argmax(dim=1)
        assert torch.equal(brightest, environment.targets)
    assert found["art"].inputs[0, :, 0, 0].tolist() == [1, 0, 0]


def test_pixels_are_standardized_with_imagenet_statistics(root):
    plain, usual = drawn(root, normalize=False)["photo"].inputs, drawn(root)["photo"].inputs
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    assert usual.dtype == torch.float32
    torch.testing.assert_close(usual, (plain - mean) / deviation)


def test_an_image_is_resized_as_pillow_does_it(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (37, 21, 3), dtype=np.uint8)
    path = tmp_path / "noise.png"
    Image.fromarray(noise).save(path)
    found = read(tmp_path, ["noise.png"], 10)
    expected = Image.fromarray(noise).resize((10, 10), Image.Resampling.BILINEAR)
    assert (np.moveaxis(found[0], 0, 2) == np.asarray(expected)).all()


def test_a_large_jpeg_decoded_at_a_reduced_scale_is_nearly_unchanged(tmp_path):
    ramp = np.linspace(0, 255, 512, dtype=np.uint8)
    picture = Image.fromarray(
        np.stack(
            [np.tile(ramp, (512, 1)), np.tile(ramp[:, None], (1, 512)), np.full((512, 512), 90, np.uint8)], 2
        )
    )
    picture.save(tmp_path / "a.jpg", quality=95)
    found = np.moveaxis(read(tmp_path, ["a.jpg"], 16)[0], 0, 2).astype(int)
    full = np.asarray(picture.resize((16, 16), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(found - full).max() <= 3


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("L", 100, (100, 100, 100)),
        ("1", 1, (255, 255, 255)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("LA", (50, 255), (50, 50, 50)),
        ("P", 0, (0, 0, 0)),
        ("I;16", 256 * 100, (100, 100, 100)),
    ],
)
def test_every_kind_of_pixel_becomes_rgb(tmp_path, mode, color, expected):
    save(tmp_path / "a.png", color, mode=mode)
    assert read(tmp_path, ["a.png"], 2)[0, :, 0, 0].tolist() == list(expected)


def read_and_warned(tmp_path, **files):
    for name, picture in files.items():
        picture.save(tmp_path / f"{name}.png", **picture.info)
    with pytest.warns(EnvariantWarning) as caught:
        found = read(tmp_path, [f"{name}.png" for name in files], 2)
    # The cache keeps what was said.
    with pytest.warns(EnvariantWarning) as again:
        read(tmp_path, [f"{name}.png" for name in files], 2)
    said = [str(w.message).removeprefix(f"{tmp_path}: ") for w in caught]
    assert [str(w.message).removeprefix(f"{tmp_path}: ") for w in again] == said
    return found[:, :, 0, 0].tolist(), said


def picture(mode, color, **info):
    found = Image.new(mode, (8, 8), color)
    found.info |= info
    return found


@pytest.mark.parametrize(
    ("levels", "gray", "bits"), [((4095, 2048), (255, 128), 12), ((255, 17), (255, 17), 8), ((1000, 512), (250, 128), 10)]
)  # fmt: skip
def test_gray_values_are_scaled_by_the_range_of_all_images(tmp_path, levels, gray, bits):
    found, said = read_and_warned(tmp_path, a=picture("I;16", levels[0]), b=picture("I;16", levels[1]))
    assert found == [[gray[0]] * 3, [gray[1]] * 3]
    assert said == [f"gray images of 16 bits hold values up to {levels[0]:,}: read as {bits}-bit images"]


def test_what_a_conversion_loses_is_said(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "a": picture("RGBA", (10, 20, 30, 0)),
        "b": picture("P", 0, transparency=b"\0\1\2"),
        "c": picture("LA", (50, 7)),
        "d": picture("RGB", (40, 50, 60), exif=exif),
        "e": picture("RGB", (40, 50, 60), save_all=True, append_images=[picture("RGB", (1, 2, 3))]),
    }
    found, said = read_and_warned(tmp_path, **files)
    assert found == [[10, 20, 30], [0, 0, 0], [50] * 3, [40, 50, 60], [40, 50, 60]]
    assert said == [
        "3 of 5 images have transparent pixels; transparency is dropped",
        "1 of 5 images have an EXIF orientation, which is ignored, as in DomainBed; exif=true applies it",
        "1 of 5 images have several frames or pages, of which only the first is read",
    ]
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "f.jpg")
    with pytest.warns(EnvariantWarning, match="1 of 1 images are CMYK, converted to RGB"):
        read(tmp_path, ["f.jpg"], 2)


def test_negative_pixels_are_rejected(tmp_path):
    Image.fromarray(np.full((8, 8), -5, dtype=np.int32)).save(tmp_path / "a.tif")
    assert "it has negative pixels, whose range is unknown" in refusal(read, tmp_path, ["a.tif"], 2)


def test_classes_in_other_capitals_are_said_before_reading(tmp_path):
    for domain, kinds in {"photo": ("cat", "dog"), "sketch": ("Cat", "dog")}.items():
        for kind in kinds:
            save(tmp_path / domain / kind / "x.png")
    message = "class names 'Cat' and 'cat' differ in capitals only, and are treated as different; if they mean the same"
    with pytest.warns(EnvariantWarning, match=message):
        assert drawn(tmp_path).classes == ("Cat", "cat", "dog")
    assert any(message in line for line in ImageFolders(tmp_path).preprocessing_log())


def test_classes_in_another_form_of_unicode_are_one(tmp_path):
    for domain, kind in (("a", "caf\u00e9"), ("b", "cafe\u0301"), ("b", "x"), ("a", "x")):
        save(tmp_path / domain / kind / "x.png")
    with pytest.warns(
        EnvariantWarning, match="differ in blanks or character form only, and are treated as one class"
    ):
        found = drawn(tmp_path)
    assert found.classes == ("caf\u00e9", "x")
    assert [e.targets.tolist() for e in found.environments] == [[0, 1], [0, 1]]


def test_a_test_environment_whose_classes_were_not_trained_gets_no_verdict(tmp_path, here):
    for domain, kinds in {"photo": ("cat", "dog"), "sketch": ("Cat", "Dog")}.items():
        for kind in kinds:
            save(tmp_path / domain / kind / "x.png")
    data = f"image-folders('{tmp_path}', size=28)"
    done = here("train", "--data", data, "--steps", 1, "--test-environments", "sketch")
    assert done.returncode == 0
    assert (
        "test environment 'sketch': 100% of its rows have classes that no training environment has"
        in done.stderr
    )
    assert (
        "no verdict: 100% of the rows in sketch have classes that no training environment has." in done.stdout
    )
    assert "transfer" not in done.stdout


def test_two_classes_are_binary(root, tmp_path):
    for domain in ("a", "b"):
        for kind in ("cat", "dog"):
            save(tmp_path / "two" / domain / kind / "x.png")
    assert drawn(tmp_path / "two").task == Binary()


def test_the_preprocessing_log_lists_missing_classes_and_skipped_files(root):
    (root / ".DS_Store").write_text("")
    (root / "readme.txt").write_text("")
    (root / "art" / ".git").mkdir()
    (root / "art" / "labels.csv").write_text("")
    (root / "art" / "cat" / "Thumbs.db").write_text("")
    (root / "art" / "cat" / "old.png").mkdir()
    (root / "art" / "emu").mkdir()
    (root / "bare").mkdir()
    assert ImageFolders(root).preprocessing_log() == [
        f"{root}: 3 environments, 3 classes, 15 images",
        "art: 4 images; no images of emu",
        "photo: 4 images; no images of dog",
        "sketch: 7 images",
        "skipped, hidden: .DS_Store, art/.git",
        "skipped, a file in place of a folder: art/labels.csv, readme.txt",
        "skipped, a folder inside a class: art/cat/old.png",
        "skipped, not an image, judging by its suffix: art/cat/Thumbs.db",
        "no images in: art/emu, bare",
    ]
    with pytest.warns(EnvariantWarning) as caught:
        assert drawn(root).names == ("art", "photo", "sketch")
    said = [str(w.message).removeprefix(f"{root}: ") for w in caught]
    assert said == ImageFolders(root).preprocessing_log()[5:], "all but hidden files"


def test_a_long_preprocessing_log_is_shortened(root):
    for k in range(13):
        (root / f"{k:02d}.txt").write_text("")
    assert ImageFolders(root).preprocessing_log()[-1].endswith("08.txt, 09.txt and 3 more")


def test_names_with_markup_and_signs_are_plain_text(tmp_path):
    root = tmp_path / "it's [red]a 'folder'[/red] & \"more\""
    for domain in ("<script>alert(1)</script>".replace("/", "|"), "[bold]b[/bold]".replace("/", "|")):
        for kind in ("<i>", "ü"):
            save(root / domain / kind / "ä b.png")
    own = ImageFolders(root, size=4, test=("[bold]b[|bold]",))
    assert own.sample(0).names == ("<script>alert(1)<|script>", "[bold]b[|bold]")
    assert own.sample(0).roles() == {"<script>alert(1)<|script>": "train", "[bold]b[|bold]": "test"}
    assert own.classes == ("<i>", "ü")
    assert source(own.name) == own


def test_an_invalid_environment_name_is_rejected_before_reading(root, cache):
    (root / "art").rename(root / "a\nb")
    assert refusal(drawn, root).startswith(r"environment 'a\nb': a name must be one line of text")
    (root / "a\nb").rename(root / sorted(RESERVED)[-1])
    assert "a name must be one line of text and not * or worst" in refusal(drawn, root)
    (root / "worst").rename(root / "art")
    assert refusal(drawn, root, test=("scetch",)).endswith(
        "unknown environment 'scetch'; did you mean 'sketch'? known: art, photo, sketch"
    )
    assert not cache.exists()


def test_a_second_sample_maps_the_cache_and_decodes_no_image(root, cache, monkeypatch):
    first = drawn(root)
    (kept,) = (cache / "images").glob("*.npy")
    assert np.load(kept).shape == (15, 3, 8, 8)
    monkeypatch.setattr(reading, "decode", None)
    assert drawn(root).fingerprint() == first.fingerprint()


def test_the_cache_survives_a_moved_folder_and_ends_with_a_change(root, cache, tmp_path):
    def kept():
        return len(list((cache / "images").glob("*.npy")))

    drawn(root)
    moved = root.rename(tmp_path / "moved")
    drawn(moved)
    assert kept() == 1
    drawn(moved, size=4)
    assert kept() == 2
    save(moved / "art" / "cat" / "0.png", (1, 2, 3))
    os.utime(moved / "art" / "cat" / "0.png", ns=(1, 1))
    assert drawn(moved, normalize=False)["art"].inputs[0, :, 0, 0].mul(255).round().tolist() == [1, 2, 3]
    assert kept() == 3


def test_a_cache_folder_can_be_set(root, tmp_path, cache):
    drawn(root, cache=tmp_path / "mine")
    assert list((tmp_path / "mine" / "images").glob("*.npy"))
    assert not cache.exists()


@pytest.mark.parametrize("spoil", ["text", "cut", "bit", "header", "pipe", "shape", "kind", "pickle"])
def test_a_damaged_cache_is_rebuilt(root, cache, spoil):
    first = drawn(root)
    (kept,) = (cache / "images").glob("*.npy")
    whole = kept.read_bytes()
    if spoil == "text":
        kept.write_text("<html>no pixels</html>")
    elif spoil == "cut":
        kept.write_bytes(whole[:-5])
    elif spoil == "bit":
        kept.write_bytes(whole[:300] + bytes([whole[300] ^ 64]) + whole[301:])
    elif spoil == "header":
        kept.write_bytes(whole.replace(b"}", b"(", 1))
    elif spoil == "pipe":
        kept.unlink()
        os.mkfifo(kept)
    elif spoil == "shape":
        np.save(kept, np.zeros((14, 3, 8, 8), np.uint8))
    elif spoil == "kind":
        np.save(kept, np.zeros((15, 3, 8, 8), np.float32))
    else:
        np.save(kept, np.array([object()], dtype=object), allow_pickle=True)
    assert drawn(root).fingerprint() == first.fingerprint()
    assert kept.read_bytes() == whole
    assert {path.suffix for path in (cache / "images").iterdir()} <= {".npy", ".lock"}


def test_an_unwritable_cache_is_rejected(root, tmp_path):
    (tmp_path / "file").write_text("")
    said = refusal(drawn, root, cache=tmp_path / "file")
    assert said.startswith(f"{tmp_path / 'file' / 'images'}: cannot be written (")
    assert said.endswith(
        "); set the option cache, or the environment variable ENVARIANT_CACHE, to a folder with 0.0 MiB of free space, "
        "or use storage=files, which decodes images whenever they are used and needs no cache"
    )


def test_a_broken_image_is_named_and_no_partial_cache_is_stored(root, cache):
    (root / "photo" / "cat" / "1.png").write_text("not an image")
    assert refusal(drawn, root) == (
        f"{root / 'photo' / 'cat' / '1.png'}: cannot be read as an image (unknown format or damaged); "
        f"replace or remove the file"
    )
    assert not list((cache / "images").glob("*.npy"))
    (root / "photo" / "cat" / "1.png").unlink()
    assert len(drawn(root)["photo"]) == 3


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("share", [0, 0.02, 0.5])
def test_a_truncated_image_is_named(root, suffix, share):
    path = root / "art" / "dog" / f"0.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert refusal(drawn, root).startswith(f"{path}: cannot be read as an image (")


def test_floating_point_pixels_are_rejected(root):
    save(root / "art" / "dog" / "0.tiff", 0.5, mode="F")
    assert "(it has floating-point pixels, whose range is unknown)" in refusal(drawn, root)


def test_images_larger_than_memory_are_rejected_with_a_size_that_fits(root, monkeypatch, cache):
    monkeypatch.setattr(reading.machine, "memory", lambda: 2**20)
    said = refusal(drawn, root, size=224, storage="memory")
    assert said == (
        "image-folders: 15 images of 224×224 need 2.2 MiB of memory, but only 1.0 MiB are free; use storage=disk or "
        "size=88"
    )
    assert not cache.exists()
    assert drawn(root, size=40).input_shape == (3, 40, 40)
    monkeypatch.setattr(reading.machine, "memory", lambda: 100)
    assert refusal(drawn, root, storage="memory").endswith("; use storage=disk")


def test_a_missing_pillow_is_explained(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert refusal(drawn, root) == "images: reading them needs pillow; pip install 'envariant[vision]'"


def test_a_folder_with_one_domain_or_class_or_no_image_is_rejected(root, tmp_path):
    assert refusal(drawn, tmp_path / "no") == (
        f"image-folders: cannot list {tmp_path / 'no'} (No such file or directory)"
    )
    file = root / "art" / "cat" / "0.png"
    assert refusal(drawn, file) == (
        f"image-folders: {file} is a file; name the folder that holds domain/class/image"
    )
    (tmp_path / "empty").mkdir()
    empty = f"image-folders: {tmp_path / 'empty'} holds no images of the form domain/class/image"
    assert refusal(drawn, tmp_path / "empty") == empty
    assert refusal(drawn, root / "art") == (
        f"image-folders: {root / 'art'} holds no images of the form domain/class/image; 'cat/0.png' is not inside a class folder"
    )
    assert refusal(drawn, tmp_path) == (
        f"image-folders: {tmp_path} holds no images of the form domain/class/image; 'animals/art/cat' is a folder in place of an image"
    )
    save(tmp_path / "one" / "art" / "cat" / "0.png")
    assert refusal(drawn, tmp_path / "one") == (
        f"image-folders: {tmp_path / 'one'} holds one domain, 'art'; at least two are needed, each with a "
        f"folder for every class"
    )
    save(tmp_path / "one" / "photo" / "cat" / "0.png")
    assert refusal(drawn, tmp_path / "one") == (
        f"image-folders: {tmp_path / 'one'} holds one class, 'cat'; at least two are needed"
    )


def test_an_image_deleted_after_listing_is_reported(tmp_path):
    assert refusal(read, tmp_path, ["a/b.png", "c.png"], 8) == (
        f"{tmp_path}: 2 of 2 images are missing: a/b.png, c.png"
    )


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "image-folders('{root}')"),
        ({"size": 32, "normalize": False}, "image-folders('{root}', size=32, normalize=false)"),
        ({"test": ("art", "a b")}, "image-folders('{root}', test=(art, 'a b'))"),
        ({"test": "2019"}, "image-folders('{root}', test=('2019',))"),
        ({"workers": 3, "cache": "elsewhere", "storage": "disk"}, "image-folders('{root}')"),
    ],
)
def test_the_name_of_an_image_source_works_in_any_working_directory(root, monkeypatch, settings, name):
    monkeypatch.chdir(root.parent)
    own = ImageFolders("animals", **settings)
    assert own.name == name.format(root=root)
    monkeypatch.chdir("/")
    assert source(own.name) == own == ImageFolders(root, **settings)
    assert source(own.name).name == own.name
    assert hash(own) == hash(source(own.name))


def test_short_forms_are_accepted(root):
    typed = source(f'image-folders("{root}", size=16, test=art, workers=1, cache="x")')
    assert typed == ImageFolders(root, 16, ("art",))
    assert (typed.workers, typed.cache) == (1, "x")
    assert source(f"image-folders('{root}', test=2019)").test == ("2019",)
    assert source(f"image-folders('{root}', test=(2019, b))").test == ("2019", "b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image-folders", "image-folders: needs root, as in image-folders(root=…)"),
        ("image-folders('')", "image-folders: root must be the path of a folder; got ''"),
        ("image-folders(x, size=0)", "image-folders: size must be a whole number of at least 1; got 0"),
        ("image-folders(x, size=big)", "image-folders: size must be a whole number; got big"),
        ("image-folders(x, workers=-1)", "image-folders: workers must be a whole number of at least 1; got -1"),
        ("image-folders(x, sise=8)", "image-folders: unknown setting 'sise'; did you mean 'size'? known: cache, "
         "exif, normalize, resize, root, size, storage, test, workers"),
        ("image-folders(x, 64)", "image-folders: takes at most 1 unnamed values; got 2"),
        ("image-folder(x)", "unknown data set 'image-folder'; did you mean 'image-folders'? known: "),
    ],
)  # fmt: skip
def test_invalid_image_settings_are_rejected(text, message):
    assert refusal(source, text).startswith(message)


def test_replicas_share_one_copy_of_the_rows(root):
    own = ImageFolders(root, size=8)
    first = own.sample(0)
    assert own.sample(1) is first
    assert pickle.loads(pickle.dumps(own)) == own
    assert replace(own, size=4).sample(0).input_shape == (3, 4, 4)
    last = weakref.ref(first)
    del first
    gc.collect()
    assert last() is None


def test_no_progress_is_printed_without_a_terminal(root, capfd):
    drawn(root)
    assert capfd.readouterr() == ("", "")


def test_progress_is_printed_on_a_terminal(root, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    drawn(root)
    assert "reading images" in capsys.readouterr().err


def test_folders_of_images_train_and_rows_are_held_out(root):
    own = source(f"image-folders('{root}', size=8, test=sketch)")
    suggested = own.default_settings("erm")
    assert (suggested.model, suggested.batch_size) == ("mnist-cnn", 32)
    result = envariant.train(
        own, "vrex", steps=2, batch_size=2, replicas=2, holdout_fraction=0.5, evaluate_every=2
    )
    assert result.record.spec.data == own.name
    assert {(r.environment, r.role) for r in result.rows} >= {("art", "train"), ("sketch", "test")}
