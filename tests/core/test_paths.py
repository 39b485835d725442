"""Paths that must not be opened, and names that must not become folders."""

import os
import socket
from pathlib import Path

import pytest

from envariant.core.errors import EnvariantError
from envariant.core.files import as_path, write_text
from envariant.core.paths import check_file, folder_name
from envariant.data import ImageFolders


def test_only_regular_files_are_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    (tmp_path / "to file").symlink_to("file")
    check_file(tmp_path / "file")
    check_file(tmp_path / "to file")
    with socket.socket(socket.AF_UNIX) as server:
        # The path of a socket must be short.
        monkeypatch.chdir(tmp_path)
        server.bind("socket")
    for name, message in {
        "pipe": "is a pipe, a socket or a device",
        "link": "is a pipe, a socket or a device",
        "socket": "is a pipe, a socket or a device",
        "/dev/zero": "is a pipe, a socket or a device",
        ".": "is a folder",
        "missing": "there is no such file",
        "file/inside": "there is no such file",
        "loop": "cannot be opened",
        "a" * 5000: "cannot be opened",
        "a\0b": "cannot be opened",
    }.items():
        with pytest.raises(EnvariantError, match=message):
            check_file(tmp_path / name)
    with pytest.raises(EnvariantError, match="^holds no model$"):
        check_file(tmp_path / "missing", "holds no model")


HOSTILE_NAMES = [
    "", ".", "..", "../a", "../../a", "a/../../b", "/a", "a/b", "\\a", "..\\a", "a\\b", "C:\\a", "a\0b", "a\nb",
    "\x1b[2J", "\u202ea", "\x85", "\udcff", "con", "NUL", "com1.x", "aux.", "   ", ". .", "a" * 201, "é" * 101,
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_names_become_no_folders(name):
    with pytest.raises(EnvariantError, match="study: the name .* cannot be the name of a folder"):
        folder_name(name, "study: the name")


@pytest.mark.parametrize("name", ["a", "Kliniken 2020", "a.b", ".hidden", "医院", "a:b", "console", "-x"])
def test_ordinary_names_become_folders(name):
    assert folder_name(name, "") == name
    assert Path("studies", name).parent == Path("studies")


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_impossible_names_are_one_line(name, tmp_path):
    uses = (
        lambda: as_path(name, "out"),
        lambda: write_text("text", tmp_path / name),
        lambda: ImageFolders(tmp_path / name),
    )
    for use in uses:
        with pytest.raises(EnvariantError, match="cannot be the name of a file or folder"):
            use()


def test_a_folder_of_images_whose_name_is_too_long_is_one_line(tmp_path):
    with pytest.raises(EnvariantError, match="cannot list .*[Nn]ame too long"):
        ImageFolders(tmp_path / ("a" * 300)).listing()
