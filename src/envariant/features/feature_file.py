"""Feature files: NumPy arrays with a checksum, written completely or not at all; writing can be resumed.

Blocks of rows are appended to a partial file, and a journal stores the checksum of each block. If the process
is killed, at most one block is lost; damaged blocks are computed again.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np
import torch
from torch import Tensor

from envariant.core.errors import EnvariantError
from envariant.core.files import replacing, writing

DType = Literal["float32", "bfloat16"]
"""Type in which features are stored."""

Blocks = Callable[[int], Iterator[Tensor]]
"""Function that, given the index of a row, yields the features of this and all later rows in blocks."""

# NumPy has no bfloat16, so its bytes are stored as whole numbers.
_STORED = {"float32": ("<f4", torch.float32), "bfloat16": ("<u2", torch.bfloat16)}
_DIGEST_SIZE = 16


def features_in(path: Path, shape: tuple[int, int], dtype: DType, blocks: Blocks, remedy: str) -> Tensor:
    """Return the memory-mapped features of a file; compute and store them first if necessary.

    Args:
        path: Path of the file; its name identifies the content.
        shape: Number of rows and number of features.
        dtype: Data type of the stored features.
        blocks: Function that, given a row index, yields the features of that row and of all later rows.
        remedy: Advice in the error message if the file cannot be written.

    Raises:
        EnvariantError: If the file cannot be written or read back.
    """
    if (stored := _read(path, shape, dtype)) is not None:
        return stored
    from filelock import FileLock

    with writing(path.parent, remedy):
        path.parent.mkdir(parents=True, exist_ok=True)
        # If several processes need the same features, one computes them and the others wait.
        with FileLock(path.with_suffix(".lock")):
            if (stored := _read(path, shape, dtype)) is None:
                _write(path, shape, dtype, blocks, remedy)
                stored = _read(path, shape, dtype)
    if stored is None:
        raise EnvariantError(
            f"features: the cache file {path} cannot be read back; choose another cache folder"
        )
    return stored


def rows_done(path: Path, shape: tuple[int, int], dtype: DType) -> int:
    """Return the number of rows that are stored, in a finished or a partial file.

    Args:
        path: Path of the finished file.
        shape: Number of rows and number of features.
        dtype: Data type of the stored features.
    """
    return shape[0] if path.is_file() else _resumed(_part(path), shape[1] * _itemsize(dtype))[0]


def _read(path: Path, shape: tuple[int, int], dtype: DType) -> Tensor | None:
    """Return the features of a finished file; None if it is missing or damaged."""
    stored, torch_dtype = _STORED[dtype]
    if not path.is_file():
        return None
    try:
        # Copy-on-write mode, because PyTorch warns about read-only arrays. The array is never changed.
        values: Any = np.load(path, mmap_mode="c", allow_pickle=False)
        if not isinstance(values, np.memmap) or values.shape != shape or values.dtype != np.dtype(stored):
            return None
        with path.open("rb") as file:
            file.seek(cast("Any", values).offset + values.nbytes)
            seal = file.read()
    # For a damaged header, NumPy raises many types of error, including errors of Python's tokenizer.
    except Exception:
        return None
    if seal != hashlib.blake2b(values.data, digest_size=_DIGEST_SIZE).digest():
        return None
    features = torch.from_numpy(values)
    return features if dtype == "float32" else features.view(torch_dtype)


def _write(path: Path, shape: tuple[int, int], dtype: DType, blocks: Blocks, remedy: str) -> None:
    part, journal = _part(path), _journal(path)
    done, size = _resumed(part, shape[1] * _itemsize(dtype))
    with part.open("r+b" if part.exists() else "w+b") as file, journal.open("a") as entries:
        file.truncate(size)
        file.seek(size)
        for block in blocks(done) if done < shape[0] else ():
            data = _bytes(block, dtype)
            file.write(data)
            file.flush()
            # The journal entry is written after the rows, and rows without an entry are computed again.
            entries.write(f"{len(block)} {hashlib.blake2b(data, digest_size=_DIGEST_SIZE).hexdigest()}\n")
            entries.flush()
    digest, header = (
        hashlib.blake2b(digest_size=_DIGEST_SIZE),
        {
            "descr": _STORED[dtype][0],
            "fortran_order": False,
            "shape": shape,
        },
    )
    with replacing(path, remedy) as whole, whole.open("wb") as target, part.open("rb") as rows:
        np.lib.format.write_array_header_1_0(cast("BinaryIO", target), header)
        while chunk := rows.read(2**20):
            target.write(chunk)
            digest.update(chunk)
        target.write(digest.digest())
    part.unlink()
    journal.unlink()


def _resumed(part: Path, row_bytes: int) -> tuple[int, int]:
    """Return how many rows and bytes of a partial file are valid, up to the first bad journal entry."""
    rows = size = 0
    journal = part.with_suffix(".journal")
    if not part.is_file() or not journal.is_file():
        return 0, 0
    sound: list[str] = []
    with part.open("rb") as file:
        for line in journal.read_text(errors="replace").splitlines():
            count, _, digest = line.partition(" ")
            data = file.read(int(count) * row_bytes) if count.isdecimal() else b""
            if not data or hashlib.blake2b(data, digest_size=_DIGEST_SIZE).hexdigest() != digest:
                break
            rows, size = rows + int(count), size + len(data)
            sound.append(line)
    journal.write_text("".join(f"{line}\n" for line in sound))
    return rows, size


def _part(path: Path) -> Path:
    return path.with_suffix(".part")


def _journal(path: Path) -> Path:
    return path.with_suffix(".journal")


def _itemsize(dtype: DType) -> int:
    return 4 if dtype == "float32" else 2


def _bytes(block: Tensor, dtype: DType) -> bytes:
    values = block.detach().cpu().to(_STORED[dtype][1]).contiguous()
    return (values if dtype == "float32" else values.view(torch.int16)).numpy().tobytes()
