"""Read image files in several threads, and cache the decoded bytes on disk, because reading takes minutes."""

import contextlib
import hashlib
import math
import os
import re
import shutil
import stat
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from envariant.core import machine
from envariant.core.errors import EnvariantError, EnvariantWarning
from envariant.core.files import write_text, writing
from envariant.data.cache import CACHE_VARIABLE, cache_folder
from envariant.data.images.decoding import (
    NOTES,
    Preprocessing,
    bits_of,
    decode,
    largest_gray,
    pillow,
    shown,
    some,
)
from envariant.data.images.pixels import ImageFiles, MemoryPixels, PixelFile

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet pixels by channel, as for pretrained networks and in DomainBed."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Suffixes of image files, the same as in torchvision's `ImageFolder`."""

Storage = Literal["memory", "disk", "files"]
"""Where images are kept: decoded in memory, decoded in a cache file, or only in the image files."""

MEMORY_SHARE = 0.25
"""Share of the free memory up to which images are kept in memory by default."""

# Part of the cache key; must be increased when decoding changes.
_DECODER_VERSION = "3"
_DIGEST_BYTES = 16
_DIGEST = re.compile(rf"[0-9a-f]{{{2 * _DIGEST_BYTES}}}")
# Files submitted to the threads at a time: enough to use all threads, few enough to stop quickly.
_FILES_PER_BATCH = 256
# Bytes of a cache whose size is printed before it is written.
_LARGE_CACHE = 2**30


def open_cache(
    root: Path,
    files: Sequence[str],
    preprocessing: Preprocessing,
    *,
    workers: int | None = None,
    cache: str | Path | None = None,
) -> PixelFile:
    """Open the cache file of images; decode the images and write the file if necessary.

    Grayscale images with more than 8 bits per pixel are scaled by a common factor. The factor corresponds to
    the smallest bit depth (8, 10, 12, 14 or 16) that can represent the largest value in all of these images.

    Args:
        root: Folder of the images.
        files: Paths relative to the folder.
        preprocessing: Conversion of images to squares.
        workers: Number of threads. Default: one per available processor.
        cache: Cache folder. Default: `ENVARIANT_CACHE` (environment variable), else the system's cache
            folder.

    Raises:
        EnvariantError: If a file is missing or not an image, or the cache cannot be written.

    Warns:
        EnvariantWarning: If images lost information when they were decoded; there is one warning per kind of
            loss in `NOTES`.
    """
    return _warned(root, _opened(root, files, preprocessing, workers, cache))


def in_memory(
    root: Path,
    files: Sequence[str],
    preprocessing: Preprocessing,
    *,
    workers: int | None = None,
    cache: str | Path | None = None,
) -> MemoryPixels:
    """Load all images of a cache file into memory. If an image is damaged, the file is written again.

    Arguments, errors and warnings are the same as in `open_cache`.
    """
    arguments = (root, files, preprocessing, workers, cache)
    everything, opened = np.arange(len(files)), _opened(*arguments)
    try:
        rows = opened.read(everything)
    except EnvariantError:
        opened = _opened(*arguments)
        rows = opened.read(everything)
    return MemoryPixels(rows, _warned(root, opened).checksums)


def _opened(
    root: Path,
    files: Sequence[str],
    preprocessing: Preprocessing,
    workers: int | None,
    cache: str | Path | None,
) -> PixelFile:
    """Open the cache file, after writing it if it is missing or damaged."""
    path, shape = cache_path(root, files, preprocessing, cache), _shape(files, preprocessing)
    if (cached := PixelFile.open(path, shape)) is not None:
        return cached
    from filelock import FileLock

    needed = math.prod(shape)
    remedy = (
        f"set the option cache, or the environment variable {CACHE_VARIABLE}, to a folder with "
        f"{_amount(needed)} of free space, or use storage=files, which decodes images whenever they are used "
        f"and needs no cache"
    )
    with writing(path.parent, remedy):
        path.parent.mkdir(parents=True, exist_ok=True)
        # If several processes need the same images, one decodes them and the others wait.
        with FileLock(path.with_suffix(".lock")):
            if (cached := PixelFile.open(path, shape)) is None:
                _check_disk(path.parent, needed, remedy)
                notes: list[str] = []
                with contextlib.closing(_decoded(root, files, preprocessing, workers, notes)) as images:
                    PixelFile.write(path, shape, images, notes, remedy)
                cached = PixelFile.open(path, shape)
    if cached is None:
        raise EnvariantError(
            f"images: the cache file {path} cannot be read back; choose another cache folder"
        )
    return cached


def from_files(
    root: Path, files: Sequence[str], preprocessing: Preprocessing, *, workers: int | None = None
) -> ImageFiles:
    """Return images that are decoded whenever they are used; nothing is written to disk.

    Args:
        root: Folder of the images.
        files: Paths relative to the folder.
        preprocessing: Conversion of images to squares.
        workers: Number of threads. Default: one per available processor.

    Raises:
        EnvariantError: If a file is missing.

    Warns:
        EnvariantWarning: If 16-bit grayscale images contain only values that need fewer bits.
    """
    pillow()
    states, (largest, bits) = file_states(root, files), gray_depth(root, files, workers)
    if bits != 16:
        warnings.warn(f"{shown(str(root))}: {_depth_note(largest, bits)}", EnvariantWarning, stacklevel=3)
    return ImageFiles(root, states, preprocessing, bits)


def gray_depth(root: Path, files: Sequence[str], workers: int | None = None) -> tuple[int, int]:
    """Return the largest value and the bit depth of grayscale images with more than 8 bits per pixel.

    If there are no such images, the value is 0 and the bit depth is 16.

    Args:
        root: Folder of the images.
        files: Paths relative to the folder.
        workers: Number of threads. Default: one per available processor.
    """
    with ThreadPoolExecutor(_threads(workers)) as pool, _no_size_warnings():
        largest = largest_gray(root, files, pool)
    return largest, bits_of(largest) if largest else 16


def cache_path(
    root: Path, files: Sequence[str], preprocessing: Preprocessing, cache: str | Path | None = None
) -> Path:
    """Return the path of the cache file, which depends on the files, their times and the preprocessing."""
    digest = hashlib.blake2b(f"{_DECODER_VERSION} {preprocessing}".encode(), digest_size=16)
    for file, state in file_states(root, files):
        digest.update(f"\0{file}\0{state.st_size} {state.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    return cache_folder(cache) / "images" / f"{digest.hexdigest()}.npy"


def content_digest(
    root: Path, files: Sequence[str], *, workers: int | None = None, cache: str | Path | None = None
) -> str:
    """Return a digest of all bytes of all files, in hexadecimal digits.

    The digest is stored in the cache folder, if that folder can be written. It is computed again if the name,
    the size, the modification time or the status-change time of a file changes.

    Args:
        root: Folder of the files.
        files: Paths relative to the folder.
        workers: Number of threads. Default: one per available processor.
        cache: Cache folder. Default: as in `open_cache`.

    Raises:
        EnvariantError: If a file is missing or cannot be read.
    """
    key = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for file, state in file_states(root, files):
        # Programs can restore the modification time of an edited file, but not the time of its last change.
        times = f"{state.st_mtime_ns} {state.st_ctime_ns}"
        key.update(f"\0{file}\0{state.st_size} {times}".encode("utf-8", "surrogateescape"))
    path = cache_folder(cache) / "images" / f"{key.hexdigest()}.digest"
    with contextlib.suppress(OSError, ValueError):
        if _DIGEST.fullmatch(known := path.read_text(encoding="ascii")):
            return known
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    with _progress("checking images", len(files)) as advance, ThreadPoolExecutor(_threads(workers)) as pool:
        for start in range(0, len(files), _FILES_PER_BATCH):
            paths = [root / file for file in files[start : start + _FILES_PER_BATCH]]
            for each in pool.map(_digest_of, paths):
                digest.update(each)
            advance(len(paths))
    with contextlib.suppress(EnvariantError):
        write_text(digest.hexdigest(), path)
    return digest.hexdigest()


def _digest_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_DIGEST_BYTES)).digest()
    except OSError as error:
        raise EnvariantError(f"{path}: cannot be read ({error.strerror})") from None


def _warned(root: Path, cached: PixelFile) -> PixelFile:
    for note in cached.notes:
        warnings.warn(f"{shown(str(root))}: {note}", EnvariantWarning, stacklevel=3)
    return cached


def _shape(files: Sequence[str], preprocessing: Preprocessing) -> tuple[int, ...]:
    return len(files), 3, preprocessing.size, preprocessing.size


def _check_disk(folder: Path, needed: int, remedy: str) -> None:
    """Print how much space a large cache needs, and check that there is enough."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise EnvariantError(
            f"{folder}: the decoded images need {_amount(needed)}, but only {_amount(free)} are free; "
            f"{remedy}",
            retryable=True,
        )
    if needed >= _LARGE_CACHE:
        from envariant.core.console import SafeConsole

        line = f"decoding images once: {_amount(needed)} are written to {folder}, {_amount(free)} are free"
        SafeConsole(stderr=True, soft_wrap=True).print(line, style="dim", markup=False)


def check_memory(where: str, rows: int, size: int) -> None:
    """Check that decoded images, with one byte per value, fit in memory.

    Args:
        where: Name of the data source, for the error message.
        rows: Number of images.
        size: Side of an image in pixels.

    Raises:
        EnvariantError: If memory is insufficient; the message suggests a smaller size.
    """
    needed, free = rows * 3 * size**2, machine.memory()
    if free is None or needed <= free:
        return
    # Training concatenates the rows, which takes up to three copies.
    largest = math.isqrt(free // (3 * 3 * rows))
    largest -= largest % 8 if largest >= 16 else 0
    hint = f"use storage=disk or size={largest}" if largest >= 8 else "use storage=disk"
    raise EnvariantError(
        f"{where}: {rows:,} images of {size}×{size} need {_amount(needed)} of memory, but only "
        f"{_amount(free)} are free; {hint}"
    )


def storage_for(rows: int, size: int, cache: Path) -> tuple[Storage, str]:
    """Choose where to store decoded images, given the free memory and disk space.

    Args:
        rows: Number of images.
        size: Side of an image in pixels.
        cache: Path of the cache file, which may already exist.

    Returns:
        Storage, and the reason for this choice; the reason is "" if the storage is "memory".
    """
    needed, free = rows * 3 * size**2, machine.memory()
    if free is None or needed <= MEMORY_SHARE * free:
        return "memory", ""
    amount = (
        f"{rows:,} images of {size}×{size} need {_amount(needed)}, more than a quarter of the free memory"
    )
    space = shutil.disk_usage(next(each for each in cache.parents if each.is_dir())).free
    if cache.is_file() or needed <= space:
        return "disk", f"{amount}; they are decoded once, and read from disk in batches (storage=disk)"
    return "files", (
        f"{amount}, and the cache has only {_amount(space)} of free space; images are decoded whenever they "
        f"are used (storage=files)"
    )


def file_states(root: Path, files: Sequence[str]) -> list[tuple[str, os.stat_result]]:
    """Return a pair for every file: its path relative to the folder, and its `os.stat` result.

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


def _decoded(
    root: Path, files: Sequence[str], preprocessing: Preprocessing, workers: int | None, notes: list[str]
) -> Generator[np.ndarray]:
    """Decode images in threads, and yield them in order, `[3, size, size]`; at the end, extend `notes`."""
    pillow()
    counts: Counter[str] = Counter()
    with _progress("reading images", len(files)) as advance, ThreadPoolExecutor(_threads(workers)) as pool:
        with _no_size_warnings():
            largest = largest_gray(root, files, pool)
        bits = bits_of(largest) if largest else 16
        for start in range(0, len(files), _FILES_PER_BATCH):
            paths = [root / file for file in files[start : start + _FILES_PER_BATCH]]
            with _no_size_warnings():
                images = list(pool.map(partial(decode, preprocessing=preprocessing, bits=bits), paths))
            for image, keys in images:
                counts.update(keys)
                yield image
            advance(len(paths))
    if bits != 16:
        notes.append(_depth_note(largest, bits))
    notes += [
        f"{counts[key]:,} of {len(files):,} images {what}" for key, what in NOTES.items() if counts[key]
    ]


@contextlib.contextmanager
def _progress(what: str, total: int) -> Generator[Callable[[int], None]]:
    """Show a progress bar on a terminal; yield a function that advances it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from envariant.core.console import SafeConsole

    columns = TextColumn(what), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=SafeConsole(stderr=True), disable=not sys.stderr.isatty()) as bars:
        task = bars.add_task("", total=total)
        yield lambda count: bars.advance(task, count)


def _threads(workers: int | None) -> int:
    return workers or machine.cores()


@contextlib.contextmanager
def _no_size_warnings() -> Generator[None]:
    # Pillow refuses images of twice the size that it warns about; smaller ones fit in memory.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pillow().DecompressionBombWarning)
        yield


def _depth_note(largest: int, bits: int) -> str:
    return f"gray images of 16 bits hold values up to {largest:,}: read as {bits}-bit images"


def _amount(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
