"""Images of strangers: other formats, huge dimensions, pipes; a file's content starts no other program."""

import os
import struct
import subprocess
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from envariant.core.errors import EnvariantError
from envariant.data.images.decoding import Preprocessing
from envariant.data.images.reading import SUFFIXES, in_memory


def read(root, files, size, **settings):
    return in_memory(root, files, Preprocessing(size), **settings).read(np.arange(len(files)))


def png(width, height):
    """Return a PNG file that announces a size, with one row of pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(width + 1))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(/tmp/x) (w) file\nshowpage\n"
HOSTILE = {
    "EPS": EPS,
    "EPS in DOS format": b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, len(EPS)) + bytes(20) + EPS,
    "empty": b"",
    "text": b"import os\n",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "a million rows": png(10**6, 10**6),
    "no rows": png(0, 0),
    "zeros": bytes(1000),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("suffix", SUFFIXES[::4])
def test_content_that_is_no_image_is_one_line_and_starts_no_program(content, suffix, tmp_path, monkeypatch):
    started = []
    for name in ("Popen", "run", "call", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, name, lambda *a, **k: started.append(a))
    monkeypatch.setattr(os, "system", started.append)
    (tmp_path / f"image{suffix}").write_bytes(content)
    with pytest.raises(EnvariantError, match="cannot be read as an image") as error:
        read(tmp_path, [f"image{suffix}"], 8, workers=1, cache=tmp_path / "cache")
    assert "\n" not in str(error.value)
    assert "replace or remove the file" in str(error.value)
    assert not started


@pytest.mark.parametrize("kind", ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
def test_images_are_read_whatever_their_suffix(kind, tmp_path):
    Image.fromarray(np.full((8, 8, 3), 128, np.uint8)).save(tmp_path / "image.png", format=kind)
    pixels = read(tmp_path, ["image.png"], 8, workers=1, cache=tmp_path / "cache")
    assert np.abs(pixels.astype(int) - 128).max() <= 4


def test_large_images_are_read_without_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (15, 10)).save(tmp_path / "large.png")
    Image.new("L", (30, 10)).save(tmp_path / "huge.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(tmp_path, ["large.png"], 8, workers=1, cache=tmp_path / "cache").shape == (1, 3, 8, 8)
        with pytest.raises(EnvariantError, match=r"exceeds limit of 200 pixels"):
            read(tmp_path, ["huge.png"], 8, workers=1, cache=tmp_path / "cache")


def test_no_memory_is_one_line(tmp_path, monkeypatch):
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    monkeypatch.setattr(Image.Image, "convert", lambda *_: bytearray(1 << 60))
    with pytest.raises(EnvariantError, match=r"cannot be read as an image \(MemoryError\)"):
        read(tmp_path, ["image.png"], 8, workers=1, cache=tmp_path / "cache")


def test_pipes_and_folders_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "device.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "folder.png", "device.png"):
        with pytest.raises(EnvariantError, match=f"'{name}' is not a regular file"):
            read(tmp_path, [name], 8, cache=tmp_path / "cache")
