"""Sources of decoded pixels: memory, a cache file, or the image files themselves.

All sources return the same bytes, so a run gives bit-identical results with each of them.
"""

import hashlib
import os
import threading
import warnings
import weakref
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast, final

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from envariant.core.errors import EnvariantError, EnvariantWarning
from envariant.core.files import replacing
from envariant.data.images.decoding import NOTES, Preprocessing, decode

Rows = UInt8[np.ndarray, "rows 3 size size"]

_DIGEST_SIZE = 16


class Pixels(ABC):
    """Base class of sources of decoded images, which are uint8 arrays `[rows, 3, size, size]`.

    Attributes:
        shape: Shape of the array of all images.
    """

    shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def streamed(self) -> bool:
        """Whether images are read from disk only when they are used."""
        return True

    @abstractmethod
    def read(self, numbers: NDArray[np.int64]) -> Rows:
        """Return selected images. The function is thread-safe.

        Args:
            numbers: Indices of the images.

        Raises:
            EnvariantError: If an image cannot be read.
        """

    @abstractmethod
    def digests(self, numbers: NDArray[np.int64]) -> Iterator[bytes]:
        """Yield bytes that identify the images, for a content hash, without reading the images."""


@final
class MemoryPixels(Pixels):
    """Images in memory.

    Args:
        rows: The images.
        checksums: CRC-32 checksum of each image.
    """

    def __init__(self, rows: Rows, checksums: NDArray[np.uint32]) -> None:
        self.shape, self._rows, self._checksums = rows.shape, rows, checksums

    @property
    def streamed(self) -> bool:
        return False

    def read(self, numbers: NDArray[np.int64]) -> Rows:
        first, last = (int(numbers[0]), int(numbers[-1])) if len(numbers) else (0, -1)
        if last - first + 1 == len(numbers) and bool((np.diff(numbers) == 1).all()):
            return self._rows[first : last + 1]
        return self._rows[numbers]

    def digests(self, numbers: NDArray[np.int64]) -> Iterator[bytes]:
        yield self._checksums[numbers].tobytes()


@final
class PixelFile(Pixels):
    """Images in a cache file.

    The file contains a NumPy array with all images, a checksum per image, and notes. At its end is a digest
    of the checksums and notes.

    Images are read with `pread`. Unlike with a memory map, the pages that are read do not count as memory of
    the process, and a disk error raises an exception instead of crashing the process. The checksum of an
    image is verified whenever the image is read.

    Args:
        path: Path of the file.
        offset: Position of the first image in bytes.
        shape: Shape of all images together.
        checksums: CRC-32 checksum of each image.
        notes: Messages about information that was lost when the images were decoded.
    """

    def __init__(
        self,
        path: Path,
        offset: int,
        shape: tuple[int, ...],
        checksums: NDArray[np.uint32],
        notes: Sequence[str],
    ) -> None:
        self.shape, self.notes, self.checksums = shape, tuple(notes), checksums
        self._path, self._offset = path, offset
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        weakref.finalize(self, os.close, self._file)

    @classmethod
    def open(cls, path: Path, shape: tuple[int, ...]) -> "PixelFile | None":
        """Open a cache file; return None if it is missing or damaged, or its images have another shape.

        Args:
            path: Path of the file.
            shape: Expected shape of all images together.
        """
        if not path.is_file():
            # Opening a pipe could wait forever.
            return None
        try:
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
            if not isinstance(mapped, np.memmap) or mapped.shape != shape or mapped.dtype != np.uint8:
                return None
            offset, size = mapped.offset, mapped.nbytes
            del mapped
            with path.open("rb") as file:
                file.seek(offset + size)
                end = file.read()
        # For a damaged header, NumPy raises many types of error, including errors of Python's tokenizer.
        except Exception:
            return None
        content, seal = end[:-_DIGEST_SIZE], end[-_DIGEST_SIZE:]
        if len(content) < 4 * shape[0] or seal != _seal(content):
            return None
        checksums = np.frombuffer(content[: 4 * shape[0]], "<u4").astype(np.uint32)
        return cls(path, offset, shape, checksums, content[4 * shape[0] :].decode().splitlines())

    @classmethod
    def write(
        cls,
        path: Path,
        shape: tuple[int, ...],
        images: Iterable[np.ndarray],
        notes: Sequence[str],
        remedy: str,
    ) -> None:
        """Write a cache file completely or not at all.

        Args:
            path: Path of the file.
            shape: Shape of all images together.
            images: Iterable of the images, in order.
            notes: Messages to store with the images. The list may grow until the last image has been taken
                from `images`.
            remedy: Advice in the error message if the file cannot be written.

        Raises:
            EnvariantError: If the file cannot be written.
        """
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        checksums: list[int] = []
        with replacing(path, remedy) as part, part.open("wb") as file:
            # Not memory-mapped, so that a full disk is an error instead of a crash.
            np.lib.format.write_array_header_1_0(cast("BinaryIO", file), header)
            for image in images:
                data = image.tobytes()
                file.write(data)
                checksums.append(zlib.crc32(data))
            # NumPy ignores what follows the array.
            content = np.array(checksums, "<u4").tobytes() + "\n".join(notes).encode()
            file.write(content + _seal(content))

    def read(self, numbers: NDArray[np.int64]) -> Rows:
        rows = np.empty((len(numbers), *self.shape[1:]), np.uint8)
        size = rows[0].nbytes if len(rows) else 0
        for row, number in zip(rows, numbers.tolist(), strict=True):
            view = memoryview(row).cast("B")
            try:
                count = os.preadv(self._file, [view], self._offset + number * size)
            except OSError as error:
                raise EnvariantError(
                    f"{self._path}: cannot be read ({error.strerror})", retryable=True
                ) from None
            if count != size or zlib.crc32(view) != self.checksums[number]:
                self._path.unlink(missing_ok=True)
                raise EnvariantError(
                    f"{self._path}: image {number} of the cache was damaged, and the file has been removed; "
                    f"run again to decode the images",
                    retryable=True,
                )
        return rows

    def digests(self, numbers: NDArray[np.int64]) -> Iterator[bytes]:
        yield self.checksums[numbers].tobytes()


@final
class ImageFiles(Pixels):
    """Image files that are decoded whenever they are used.

    For each kind of information loss, one warning is issued, when the first affected image is read.

    Args:
        root: Folder of the images.
        states: For every file, its path relative to the folder and its `os.stat` result.
        preprocessing: Conversion of images to squares.
        bits: Bit depth of grayscale images with more than 8 bits per pixel.
    """

    def __init__(
        self,
        root: Path,
        states: Sequence[tuple[str, os.stat_result]],
        preprocessing: Preprocessing,
        bits: int,
    ) -> None:
        self.shape = len(states), 3, preprocessing.size, preprocessing.size
        self._root, self._preprocessing, self._bits = root, preprocessing, bits
        self._files = [(file, state.st_size, state.st_mtime_ns) for file, state in states]
        self._reported: set[str] = set()
        self._lock = threading.Lock()

    def read(self, numbers: NDArray[np.int64]) -> Rows:
        rows = np.empty((len(numbers), *self.shape[1:]), np.uint8)
        for row, number in zip(rows, numbers.tolist(), strict=True):
            file, size, time = self._files[number]
            path = self._root / file
            if path.is_file() and ((state := path.stat()).st_size, state.st_mtime_ns) != (size, time):
                raise EnvariantError(
                    f"{path}: has changed since the data source listed it; run again to use the new file"
                )
            row[:], keys = decode(path, self._preprocessing, self._bits)
            for key in keys:
                with self._lock:
                    first = key not in self._reported
                    self._reported.add(key)
                if first:
                    message = f"{path}: is the first of the images that {NOTES[key]}"
                    warnings.warn(message, EnvariantWarning, stacklevel=2)
        return rows

    def digests(self, numbers: NDArray[np.int64]) -> Iterator[bytes]:
        for number in numbers.tolist():
            yield repr(self._files[number]).encode("utf-8", "surrogateescape")


def _seal(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_SIZE).digest()
