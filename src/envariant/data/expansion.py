"""Check the size of files after decompression, before they are read."""

import bz2
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Final

from envariant.core.errors import EnvariantError
from envariant.core.machine import memory

OPENERS: Final[Mapping[str, Callable[..., IO[Any]]]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
"""Functions that open a compressed file, by suffix."""

# Files of this size are read whatever their compression.
_SMALL: Final = 1 << 28
# Tables of text shrink to a third up to a thirtieth of their size.
_LARGEST_RATIO: Final = 200
_BLOCK: Final = 1 << 20
_ARCHIVES: Final = (".zip", ".xlsx", ".xlsm", ".xlsb", ".ods")
_DAMAGED: Final = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)


def check_expansion(path: Path) -> None:
    """Check that a compressed file does not expand to an excessive size, and fits in memory.

    Args:
        path: File to be read; the suffix determines the compression.

    Raises:
        EnvariantError: If the decompressed content is larger than 256 MiB and also larger than 200 times the
            file, or if it is larger than the available memory.
    """
    state, suffix = path.stat(), path.suffix.lower()
    # A sparse file has holes of zeros, which take no space on the disk.
    size = min(state.st_size, getattr(state, "st_blocks", state.st_size) * 512)
    try:
        if suffix in _ARCHIVES:
            with zipfile.ZipFile(path) as archive:
                # Python reads no more than what the directory of the archive declares.
                check_size(path, sum(member.file_size for member in archive.infolist()), size)
        elif suffix in OPENERS:
            with OPENERS[suffix](path, "rb") as file:
                length = 0
                while block := file.read(_BLOCK):
                    check_size(path, length := length + len(block), size)
        else:
            check_size(path, state.st_size, size)
    except EnvariantError:
        raise
    except _DAMAGED:
        # The reader of the file says what is wrong with it.
        return


def check_size(path: Path, length: int, size: int) -> None:
    """Check that the decompressed size of a file is within the limits of `check_expansion`.

    Args:
        path: Path of the file, for the error message.
        length: Number of bytes after decompression.
        size: Number of bytes on the disk.

    Raises:
        EnvariantError: If `length` exceeds a limit.
    """
    free = memory()
    if length > max(_SMALL, _LARGEST_RATIO * size):
        raise EnvariantError(
            f"{path}: expands to more than {_LARGEST_RATIO} times its size; if you trust it, decompress it "
            f"first"
        )
    if free is not None and length > free:
        raise EnvariantError(
            f"{path}: holds {length / 2**30:.1f} GiB or more, but only {free / 2**30:.1f} GiB of memory are "
            f"free; use fewer rows or columns"
        )
