"""Files that expand without bound, sparse files and pipes are refused before they are read."""

import bz2
import gzip
import lzma
import os
import zipfile

import pandas as pd
import pytest

from envariant.core.errors import EnvariantError
from envariant.data import expansion
from envariant.data.colored import mnist
from envariant.data.images.wilds import MetadataImages
from envariant.data.tables import table as tables

ROWS = b"x,site,y\n" + b"1,a,0\n2,b,1\n" * 200_000
TEXT = "expands to more than 200 times its size"


def read(path):
    return tables.read(path, "y", "site")


@pytest.fixture
def small(monkeypatch):
    """Lower the size from which the ratio counts, so that tests are fast."""
    monkeypatch.setattr(expansion, "_SMALL", 1 << 20)


@pytest.mark.parametrize("pack", [gzip, bz2, lzma], ids=lambda pack: pack.__name__)
def test_compressed_text(pack, small, tmp_path):
    suffix = {gzip: "gz", bz2: "bz2", lzma: "xz"}[pack]
    bomb, sound = tmp_path / f"bomb.csv.{suffix}", tmp_path / f"sound.csv.{suffix}"
    bomb.write_bytes(pack.compress(ROWS))
    with pytest.raises(EnvariantError, match=TEXT):
        read(bomb)
    sound.write_bytes(pack.compress(ROWS[:6009]))
    assert read(sound).environments == ("a", "b")
    damaged = tmp_path / f"damaged.csv.{suffix}"
    damaged.write_bytes(sound.read_bytes()[:40])
    with pytest.raises(EnvariantError, match="damaged.csv"):
        read(damaged)


@pytest.mark.parametrize("suffix", ["csv.zip", "xlsx", "ods"])
def test_archives(suffix, small, tmp_path):
    with zipfile.ZipFile(tmp_path / f"bomb.{suffix}", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/worksheets/sheet1.xml", ROWS)
    with pytest.raises(EnvariantError, match=TEXT):
        read(tmp_path / f"bomb.{suffix}")


def test_parquet_of_repeated_values(small, tmp_path):
    frame = pd.DataFrame({"x": 1.0, "site": "a", "y": 0}, index=range(300_000))
    frame.to_parquet(tmp_path / "bomb.parquet")
    with pytest.raises(EnvariantError, match=TEXT):
        read(tmp_path / "bomb.parquet")


def test_sparse_files(tmp_path):
    path = tmp_path / "sparse.csv"
    path.write_bytes(ROWS[:600])
    os.truncate(path, 1 << 40)
    with pytest.raises(EnvariantError, match=TEXT):
        read(path)
    with pytest.raises(EnvariantError, match=TEXT):
        MetadataImages(tmp_path, file="x", label="y", environment="site", metadata="sparse.csv").listing()


def test_files_larger_than_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(expansion, "memory", lambda: 1000)
    (tmp_path / "large.csv").write_bytes(ROWS[:1209])
    with pytest.raises(EnvariantError, match="GiB of memory are free"):
        read(tmp_path / "large.csv")
    for free in (None, 1 << 40):
        monkeypatch.setattr(expansion, "memory", lambda free=free: free)
        assert read(tmp_path / "large.csv").environments == ("a", "b")


def test_pipes_and_devices_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    os.mkfifo(tmp_path / "pipe.parquet")
    for path in (tmp_path / "pipe.csv", tmp_path / "pipe.parquet", "/dev/zero", "/dev/stdin"):
        with pytest.raises(EnvariantError, match="is a pipe, a socket or a device"):
            read(path)


def test_mnist_files_of_any_size(monkeypatch, tmp_path):
    monkeypatch.setattr(mnist, "_LARGEST_FILE", 1 << 16)
    for number, content in enumerate((gzip.compress(b"\0\0\x08\x01" + bytes(1 << 24)), bytes(1 << 24))):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in mnist.DIGESTS:
            (folder / name).write_bytes(content)
        with pytest.raises(EnvariantError, match="the header declares|is not an IDX file"):
            mnist.load(folder)
