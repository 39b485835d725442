"""Files written whole or not at all, with the usual permissions and a checksum; every damage is noticed."""

import errno
import os
import subprocess
import sys

import pytest
import torch

from envariant.core.errors import EnvariantError
from envariant.core.files import read_tensors, replacing, write_tensors, write_text

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([True, False]), "c": torch.zeros(0)}


@pytest.fixture
def file(tmp_path):
    write_tensors(
        tmp_path / "x.safetensors", TENSORS, {"about": 'é "checksum":"00000000000000000000000000000000"'}
    )
    return tmp_path / "x.safetensors"


def test_tensors_and_texts_are_read_as_written(file):
    texts, tensors = read_tensors(file, "")
    assert texts["about"] == 'é "checksum":"00000000000000000000000000000000"'
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())


def test_every_flipped_bit_and_every_truncation_is_noticed(file):
    whole = file.read_bytes()
    for position in range(len(whole)):
        file.write_bytes(
            bytes([*whole[:position], whole[position] ^ 1 << position % 8, *whole[position + 1 :]])
        )
        with pytest.raises(EnvariantError, match=r"x\.safetensors: is damaged.*; save it again"):
            read_tensors(file, "save it again")
    for length in range(0, len(whole), 7):
        file.write_bytes(whole[:length])
        with pytest.raises(EnvariantError, match="is damaged"):
            read_tensors(file, "")


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX systems")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_permissions_of_the_umask(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        write_tensors(tmp_path / "x.safetensors", TENSORS, {})
        write_text("x", tmp_path / "x.txt")
        with replacing(tmp_path / "x.bin") as part:
            part.unlink()
            os.close(os.open(part, os.O_CREAT, 0o600))
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EACCES, "choose another folder, or change its permissions"),
        (errno.EROFS, "choose another folder, or change its permissions"),
        (errno.EIO, "check the disk"),
    ],
)
def test_failed_write_is_one_line_and_leaves_the_old_file_only(tmp_path, code, remedy):
    write_text("old", tmp_path / "x.txt")

    def fail(path):
        with replacing(path) as part:
            part.write_text("new")
            raise OSError(code, os.strerror(code))

    with pytest.raises(EnvariantError) as raised:
        fail(tmp_path / "x.txt")
    assert str(raised.value).startswith(
        f"{tmp_path / 'x.txt'}: cannot be written ({os.strerror(code)}); {remedy}"
    )
    assert raised.value.retryable
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"x.txt": "old"}


def test_file_of_a_killed_process_is_removed_and_one_of_a_running_process_is_not(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for process in (ended.pid, os.getppid()):
        (tmp_path / f".x[1].txt.{process}.5.partial").touch()
    write_text("x", tmp_path / "x[1].txt")
    assert {path.name for path in tmp_path.iterdir()} == {"x[1].txt", f".x[1].txt.{os.getppid()}.5.partial"}


def test_folder_is_not_replaced(tmp_path):
    with pytest.raises(EnvariantError, match="is a folder; give the name of a file"):
        write_text("x", tmp_path)
