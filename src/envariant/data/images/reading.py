"""Read image files in several threads, cache the decoded bytes, and convert them to float32.

Reading takes minutes, so decoded images are cached on disk and memory-mapped.
"""

import contextlib
import hashlib
import math
import os
import stat
import sys
import warnings
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from envariant.core import machine
from envariant.core.errors import EnvariantError, EnvariantWarning
from envariant.core.files import replacing, writing
from envariant.data.cache import CACHE_VARIABLE, cache_folder
from envariant.data.images.decoding import NOTES, bits_of, decode, largest_gray, pillow, shown, some

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet pixels by channel, as for pretrained networks and in DomainBed."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Suffixes of image files, the same as in torchvision's `ImageFolder`."""

Pixels = UInt8[np.ndarray, "rows 3 size size"]

# Part of the cache key; increased when decoding changes.
_DECODER_VERSION = "2"
# Files submitted to the threads at a time: enough to use all threads, few enough to stop quickly.
_FILES_PER_BATCH = 256
# Rows converted at a time, so that a block stays in the processor cache for all three operations.
_ROWS_PER_BLOCK = 32
_DIGEST_SIZE = 16


def read(
    root: Path,
    files: Sequence[str],
    size: int,
    *,
    workers: int | None = None,
    cache: str | Path | None = None,
) -> Pixels:
    """Return images as uint8, `[rows, 3, size, size]`, from the cache; decode and cache them if necessary.

    Gray images with more than 8 bits per value are scaled by a common factor: the largest value in all of
    them, rounded up to 10, 12, 14 or 16 bits.

    Args:
        root: Folder of the images.
        files: Paths relative to the folder.
        size: Side of an image in pixels.
        workers: Number of threads. Default: one per available processor.
        cache: Cache folder. Default: the variable `ENVARIANT_CACHE`, else the system's cache folder.

    Raises:
        EnvariantError: If a file is missing or not an image, or the cache cannot be written.

    Warns:
        EnvariantWarning: If images lost information when they were decoded; there is one warning per kind of
            loss in `NOTES`.
    """
    path = cache_folder(cache) / "images" / f"{_key(root, files, size)}.npy"
    shape = (len(files), 3, size, size)
    if (cached := _cached(path, shape)) is not None:
        return _warned(root, *cached)
    from filelock import FileLock

    remedy = (
        f"name a folder with {_amount(math.prod(shape))} of free space as cache or in the variable "
        f"{CACHE_VARIABLE}"
    )
    with writing(path.parent, remedy):
        path.parent.mkdir(parents=True, exist_ok=True)
        # If several processes need the same images, one decodes them and the others wait.
        with FileLock(path.with_suffix(".lock")):
            if (cached := _cached(path, shape)) is None:
                notes: list[str] = []
                with contextlib.closing(_decoded(root, files, size, workers, notes)) as images:
                    _store(path, shape, images, notes, remedy)
                cached = _cached(path, shape)
    if cached is None:
        raise EnvariantError(f"images: the cache file {path} cannot be read back; name another cache")
    return _warned(root, *cached)


def _warned(root: Path, pixels: Pixels, notes: Sequence[str]) -> Pixels:
    for note in notes:
        warnings.warn(f"{shown(str(root))}: {note}", EnvariantWarning, stacklevel=3)
    return pixels


def to_float(pixels: Pixels, *, normalize: bool) -> Float[Tensor, "rows 3 size size"]:
    """Convert uint8 pixels to float32 in [0, 1], or to standardized values if `normalize` is set."""
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    out = torch.empty(pixels.shape)
    for start in range(0, len(pixels), _ROWS_PER_BLOCK):
        block = out[start : start + _ROWS_PER_BLOCK]
        # Copied, because PyTorch warns about read-only arrays.
        block.copy_(torch.from_numpy(np.array(pixels[start : start + _ROWS_PER_BLOCK]))).div_(255)
        if normalize:
            block.sub_(mean).div_(deviation)
    return out


def check_memory(where: str, rows: int, size: int) -> None:
    """Check that images of a given size fit in memory as float32.

    Args:
        where: Name of the data source, for the error message.
        rows: Number of images.
        size: Side of an image in pixels.

    Raises:
        EnvariantError: If memory is insufficient; the message suggests a smaller size.
    """
    needed, free = rows * 3 * size**2 * 4, machine.memory()
    if free is None or needed <= free:
        return
    # Training concatenates the rows, which takes up to three copies.
    largest = math.isqrt(free // (3 * 12 * rows))
    largest -= largest % 8 if largest >= 16 else 0
    hint = f"use size={largest}" if largest >= 8 else "use fewer images"
    raise EnvariantError(
        f"{where}: {rows:,} images of {size}×{size} need {_amount(needed)} of memory and {_amount(free)} are "
        f"free; {hint}"
    )


def _key(root: Path, files: Sequence[str], size: int) -> str:
    """Return a digest that changes if any file changes, but not if the folder is moved."""
    digest = hashlib.blake2b(f"{_DECODER_VERSION} {size}".encode(), digest_size=16)
    for file, state in file_states(root, files):
        digest.update(f"\0{file}\0{state.st_size} {state.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def file_states(root: Path, files: Sequence[str]) -> list[tuple[str, os.stat_result]]:
    """Return the path and `os.stat` result of every file.

    Raises:
        EnvariantError: If files are missing.
    """
    states: list[tuple[str, os.stat_result]] = []
    missing: list[str] = []
    for file in files:
        try:
            states.append((file, (root / file).stat()))
        except (OSError, ValueError):
            missing.append(file)
        else:
            # Opening a pipe could wait forever.
            if not stat.S_ISREG(states[-1][1].st_mode):
                raise EnvariantError(f"{root}: '{shown(file)}' is not a regular file; remove it")
    if missing:
        count = f"{len(missing):,} of {len(files):,}"
        raise EnvariantError(f"{root}: {count} images are missing: {some(missing, 3)}")
    return states


def _cached(path: Path, shape: tuple[int, ...]) -> tuple[Pixels, list[str]] | None:
    """Return the memory-mapped images and notes of a cache file; None if the file is missing or damaged."""
    if not path.is_file():
        # Opening a pipe could wait forever.
        return None
    try:
        pixels: Any = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(pixels, np.memmap) or pixels.shape != shape or pixels.dtype != np.uint8:
            return None
        with path.open("rb") as file:
            file.seek(pixels.offset + pixels.nbytes)
            end = file.read()
    # NumPy raises many types of error for a damaged header, such as that of its tokenizer.
    except Exception:
        return None
    notes, seal = end[:-_DIGEST_SIZE], end[-_DIGEST_SIZE:]
    return (pixels, notes.decode().splitlines()) if seal == _seal(pixels, notes) else None


def _seal(rows: Iterable[np.ndarray], notes: bytes) -> bytes:
    """Return the checksum of images and notes, which is stored at the end of a cache file."""
    digest = hashlib.blake2b(digest_size=_DIGEST_SIZE)
    for row in rows:
        digest.update(row.tobytes())
    digest.update(notes)
    return digest.digest()


def _store(
    path: Path, shape: tuple[int, ...], images: Iterable[np.ndarray], notes: Sequence[str], remedy: str
) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    digest = hashlib.blake2b(digest_size=_DIGEST_SIZE)
    with replacing(path, remedy) as part, part.open("wb") as file:
        # Not memory-mapped, so that a full disk is an error instead of a crash.
        np.lib.format.write_array_header_1_0(cast("BinaryIO", file), header)
        for image in images:
            data = image.tobytes()
            file.write(data)
            digest.update(data)
        # NumPy ignores what follows the array. Notes are complete when all images are read.
        end = "\n".join(notes).encode()
        digest.update(end)
        file.write(end + digest.digest())


def _decoded(
    root: Path, files: Sequence[str], size: int, workers: int | None, notes: list[str]
) -> Generator[np.ndarray]:
    """Decode images in several threads; yield each in order, `[3, size, size]`; finally extend `notes`."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from envariant.core.console import SafeConsole

    pillow()
    counts: Counter[str] = Counter()
    columns = TextColumn("reading images"), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn()
    bars = Progress(*columns, console=SafeConsole(stderr=True), disable=not sys.stderr.isatty())
    with bars, ThreadPoolExecutor(workers or machine.cores()) as pool:
        task = bars.add_task("", total=len(files))
        with _no_size_warnings():
            largest = largest_gray(root, files, pool)
        bits = bits_of(largest) if largest else 16
        for start in range(0, len(files), _FILES_PER_BATCH):
            paths = [root / file for file in files[start : start + _FILES_PER_BATCH]]
            with _no_size_warnings():
                images = list(pool.map(partial(decode, size=size, bits=bits), paths))
            for image, keys in images:
                counts.update(keys)
                yield image
            bars.advance(task, len(paths))
    if bits != 16:
        notes.append(f"gray images of 16 bits hold values up to {largest:,}: read as {bits}-bit images")
    notes += [
        f"{counts[key]:,} of {len(files):,} images {what}" for key, what in NOTES.items() if counts[key]
    ]


@contextlib.contextmanager
def _no_size_warnings() -> Generator[None]:
    # Pillow refuses images of twice the size that it warns about; smaller ones fit in memory.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pillow().DecompressionBombWarning)
        yield


def _amount(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
