"""Image files as environments: read once by several threads, kept as bytes in the cache, given as float32.

What folders of images and tables of image files have in common is here; they differ in how they find the
files. Reading takes minutes and drawing seconds, so what can go wrong with names is looked at first.
"""

import contextlib
import hashlib
import math
import os
import sys
import uuid
import weakref
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast, final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from envariant.core import specs
from envariant.core.environments import DefaultSettings, Environment, EnvironmentSet, EnvironmentSource
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Binary, Multiclass
from envariant.data.colored.mnist import CACHE_VARIABLE

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels by channel: what networks that were trained on it expect, and DomainBed uses."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""What the names of image files end in, as for torchvision's folder reader."""

Pixels = UInt8[np.ndarray, "rows 3 size size"]

# Part of the key in the cache: another number wherever the same file would give other bytes.
_WAY_OF_READING = "1"
# Files handed to the threads at a time: enough to keep them busy, few enough to stop soon.
_AT_A_TIME = 256
# Rows made real at a time, so that a block stays in the processor's cache over all three operations.
_BLOCK = 32


@final
@dataclass(frozen=True, eq=False)
class ReplicaStack:
    """The images of one environment.

    Attributes:
        name: of the environment.
        files: their paths, relative to the root.
        targets: the number of each one's class.
    """

    name: str
    files: Sequence[str]
    targets: Sequence[int]


@final
@dataclass(frozen=True, eq=False)
class Listing:
    """Which images there are, before any is read.

    Attributes:
        groups: in order.
        classes: names, in the order of their numbers.
        test: names of the environments held out unless the user says otherwise.
        validation: names of those that are measured and not trained on.
        remarks: what was left aside, a line each.
    """

    groups: tuple[ReplicaStack, ...]
    classes: tuple[str, ...]
    test: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


@final
class _Shared:
    """The set drawn last, for as long as anybody has it: replicas then train on one copy of the rows."""

    def __init__(self) -> None:
        self._last: weakref.ref[EnvironmentSet] | None = None

    def get(self, make: Callable[[], EnvironmentSet]) -> EnvironmentSet:
        found = None if self._last is None else self._last()
        if found is None:
            found = make()
            self._last = weakref.ref(found)
        return found

    def __reduce__(self) -> tuple[type["_Shared"], tuple[()]]:
        # A copy in another process draws for itself.
        return _Shared, ()


@dataclass(frozen=True)
class ImageSource(EnvironmentSource):
    """Image files under a folder; what they are and where they belong is up to the subclass.

    Images are made RGB and resized to a square, bilinearly. What is unusual about the pixels' way here:
    JPEGs much larger than that are read at a reduced scale of at least twice the size, transparency is
    dropped, 16 bits become 8, and how a camera was held is not looked at, as in DomainBed.

    Attributes:
        root: the folder; kept as an absolute path.
        size: the side of an image, in pixels.
        test: names of the environments held out unless an experiment says otherwise.
        normalize: subtract the mean of ImageNet's pixels and divide by their standard deviation, by
            channel; else pixels lie between 0 and 1.
        workers: threads that read images; None is one for each processor this process may use.
        cache: the folder for what was read; None means the variable `ENVARIANT_CACHE`, else the system's.
    """

    base: ClassVar[str]
    root: str | Path
    size: int = 64
    test: tuple[str, ...] = ()
    normalize: bool = True
    workers: int | None = field(default=None, compare=False)
    cache: str | Path | None = field(default=None, compare=False)
    _drawn: _Shared = field(default_factory=_Shared, init=False, repr=False, compare=False)
    _identity: list[str] = field(default_factory=list[str], init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.root, str | Path) or not str(self.root):
            raise EnvariantError(f"{self.base}: root must be the path of a folder; got {self.root!r}")
        # The name must lead to the same folder from wherever it is read.
        object.__setattr__(self, "root", os.path.abspath(os.path.expanduser(self.root)))  # noqa: PTH100, PTH111
        names = (self.test,) if isinstance(self.test, str) else tuple(self.test)
        object.__setattr__(self, "test", names)
        for what, value in (("size", self.size), ("workers", 1 if self.workers is None else self.workers)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise EnvariantError(f"{self.base}: {what} must be a whole number from 1; got {value!r}")

    @property
    def name(self) -> str:
        changed = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.compare and f.name != "root" and getattr(self, f.name) != f.default
        }
        return str(specs.Spec(self.base, (self.root,), changed))

    def identity(self) -> str:
        if not self._identity:
            self._identity.append(self._content())
        return self._identity[0]

    def _content(self) -> str:
        """Return a digest of settings, environments, classes, and the relative names and sizes of files.

        File times and the folder do not count, so that a copy elsewhere has the same identity.
        """
        listing = self.listing()
        settings = (self.size, self.normalize, self.test or listing.test, listing.validation, listing.classes)
        digest = hashlib.blake2b(repr(settings).encode("utf-8", "surrogateescape"), digest_size=16)
        for group in listing.groups:
            digest.update(f"\0{group.name}\0".encode("utf-8", "surrogateescape"))
            for (file, state), target in zip(
                _states(Path(self.root), group.files), group.targets, strict=True
            ):
                digest.update(f"{file}\0{state.st_size} {target}\0".encode("utf-8", "surrogateescape"))
        return f"images({digest.hexdigest()})"

    @abstractmethod
    def listing(self) -> Listing:
        """Which images there are.

        Raises:
            EnvariantError: the folder does not hold what it should; the message says what it wants.
        """

    def preprocessing_log(self) -> list[str]:
        """What was found, a line each: environments, classes that are missing in them, what was skipped.

        Raises:
            EnvariantError: the folder does not hold what it should.
        """
        found = self.listing()
        images = sum(len(group.files) for group in found.groups)
        lines = [
            f"{self.root}: {len(found.groups)} environments, {len(found.classes)} classes, {images:,} images"
        ]
        for group in found.groups:
            absent = sorted(set(range(len(found.classes))) - set(group.targets))
            none = f"; none of {some([found.classes[k] for k in absent])}" if absent else ""
            lines.append(f"{shown(group.name)}: {len(group.files):,} images{none}")
        return [*lines, *found.remarks]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their numbers.

        Raises:
            EnvariantError: the folder does not hold what it should.
        """
        return self.listing().classes

    def sample(self, seed: int) -> EnvironmentSet:
        """All images, whatever the seed.

        Raises:
            EnvariantError: a folder or a file is not as it should be, or memory is too small.
        """
        del seed
        return self._drawn.get(self._draw)

    def default_settings(self, algorithm: str) -> DefaultSettings:
        del algorithm
        return DefaultSettings(
            model="mnist-cnn",
            steps=1000,
            batch_size=32,
            source="a small network from nothing, on 32 images of each environment a step, as DomainBed has "
            "them; not tuned. Where timm is installed, timm(resnet18, pretrained=true) knows more",
        )

    def _draw(self) -> EnvironmentSet:
        found = self.listing()
        files = [file for group in found.groups for file in group.files]
        task = Binary() if len(found.classes) == 2 else Multiclass(len(found.classes))
        test = self.test or found.test

        def environments(rows: Callable[[ReplicaStack], tuple[Tensor, Tensor]]) -> EnvironmentSet:
            made = tuple(Environment(group.name, *rows(group)) for group in found.groups)
            return EnvironmentSet(
                self.name, made, task, test, validation=found.validation, classes=found.classes
            )

        # What is wrong with a name is said before an hour of reading, not after it.
        environments(lambda _: (torch.zeros(1, 1), torch.zeros(1)))
        check_memory(self.base, len(files), self.size)
        pixels = read(Path(self.root), files, self.size, workers=self.workers, cache=self.cache)
        ends = dict(zip(found.groups, accumulate(len(group.files) for group in found.groups), strict=True))

        def rows(group: ReplicaStack) -> tuple[Tensor, Tensor]:
            end = ends[group]
            inputs = real(pixels[end - len(group.files) : end], normalize=self.normalize)
            return inputs, torch.tensor(group.targets)

        return environments(rows)


def read(
    root: Path,
    files: Sequence[str],
    size: int,
    *,
    workers: int | None = None,
    cache: str | Path | None = None,
) -> Pixels:
    """Images as bytes, `[rows, 3, size, size]`: from the cache, or read now and kept there.

    Args:
        root: the folder.
        files: paths relative to it.
        size: the side of an image, in pixels.
        workers: threads; None is one for each processor this process may use.
        cache: the folder for what was read; None means the variable `ENVARIANT_CACHE`, else the system's.

    Raises:
        EnvariantError: a file is missing or no image, or the cache cannot be written.
    """
    key = _key(root, files, size)
    if not (kept := cache or os.environ.get(CACHE_VARIABLE)):
        import pooch

        kept = pooch.os_cache("envariant")
    path = Path(kept).expanduser() / "images" / f"{key}.npy"
    shape = (len(files), 3, size, size)
    if (found := _kept(path, shape)) is not None:
        return found
    from filelock import FileLock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Of several processes that want the same images one reads them, and the others wait for it.
        with FileLock(path.with_suffix(".lock")):
            if (found := _kept(path, shape)) is None:
                with contextlib.closing(_decoded(root, files, size, workers)) as images:
                    _keep(path, shape, images)
                found = _kept(path, shape)
    except OSError as error:
        raise EnvariantError(
            f"images: cannot be kept in {path.parent} ({error.strerror or error}); name a folder with room "
            f"for {_amount(math.prod(shape))} as cache or in the variable {CACHE_VARIABLE}"
        ) from None
    if found is None:
        raise EnvariantError(f"images: what was just written to {path} cannot be read; name another cache")
    return found


def real(pixels: Pixels, *, normalize: bool) -> Float[Tensor, "rows 3 size size"]:
    """Bytes as float32: divided by 255, then less ImageNet's mean and by its deviation if `normalize`."""
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    out = torch.empty(pixels.shape)
    for start in range(0, len(pixels), _BLOCK):
        block = out[start : start + _BLOCK]
        # A copy, because PyTorch does not care for arrays that must not be written.
        block.copy_(torch.from_numpy(np.array(pixels[start : start + _BLOCK]))).div_(255)
        if normalize:
            block.sub_(mean).div_(deviation)
    return out


def check_memory(where: str, rows: int, size: int) -> None:
    """Refuses images that will not fit into memory as float32.

    Raises:
        EnvariantError: they need more than is free; the message names a size that would do.
    """
    need, free = rows * 3 * size**2 * 4, free_memory()
    if need <= free:
        return
    # Training lays the rows end to end, for which it needs them up to three times.
    most = math.isqrt(free // (3 * 12 * rows))
    most -= most % 8 if most >= 16 else 0
    mend = f"take size={most}" if most >= 8 else "take fewer images"
    raise EnvariantError(
        f"{where}: {rows:,} images of {size}×{size} need {_amount(need)} of memory and {_amount(free)} are "
        f"free; {mend}"
    )


def free_memory() -> int:
    """Bytes that this process may still have, as far as the system says; copies of files count as free."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    with contextlib.suppress(OSError, KeyError, ValueError):
        free = _numbers(Path("/proc/meminfo"))["MemAvailable:"] * 1024
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, KeyError, ValueError):
        most, used = (int((group / f"memory.{what}").read_text("ascii")) for what in ("max", "current"))
        free = min(free, most - used + _numbers(group / "memory.stat")["inactive_file"])
    return max(free, 0)


def _numbers(path: Path) -> dict[str, int]:
    lines = [line.split() for line in path.read_text("ascii").splitlines()]
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}


def shown(name: str) -> str:
    """A name as it may be written on a line."""
    return name if name.isprintable() else repr(name)


def some(names: Sequence[str], most: int = 10) -> str:
    """Names for a line: all of a few, else the first and how many more."""
    listed = ", ".join(shown(name) for name in names[:most])
    return listed + (f" and {len(names) - most:,} more" if len(names) > most else "")


def _key(root: Path, files: Sequence[str], size: int) -> str:
    """A digest that changes when any file does; the folder may be moved."""
    digest = hashlib.blake2b(f"{_WAY_OF_READING} {size}".encode(), digest_size=16)
    for file, state in _states(root, files):
        digest.update(f"\0{file}\0{state.st_size} {state.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _states(root: Path, files: Sequence[str]) -> list[tuple[str, os.stat_result]]:
    """Return every file with its size and times.

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
    if missing:
        raise EnvariantError(
            f"{root}: {len(missing):,} of {len(files):,} images are missing: {some(missing, 3)}"
        )
    return states


def _kept(path: Path, shape: tuple[int, ...]) -> Pixels | None:
    """What lies in the cache, if it can be used; it stays on disk until it is looked at."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = isinstance(found, np.ndarray) and found.shape == shape and found.dtype == np.uint8
    return found if fits else None


def _keep(path: Path, shape: tuple[int, ...], images: Iterable[np.ndarray]) -> None:
    """Writes the file whole or not at all, whoever else writes or reads it meanwhile."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    try:
        with part.open("wb") as file:
            # Written and not mapped: a full disk is then an error, and not the end of the process.
            np.lib.format.write_array_header_1_0(cast("BinaryIO", file), header)
            for image in images:
                file.write(image.tobytes())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _decoded(root: Path, files: Sequence[str], size: int, workers: int | None) -> Generator[np.ndarray]:
    """Images in order, `[3, size, size]` each, read by threads: decoding leaves Python's lock alone."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    _pillow()
    count = workers or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(4))
    columns = (
        TextColumn("reading images"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    bars = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
    with bars, ThreadPoolExecutor(count) as pool:
        task = bars.add_task("", total=len(files))
        for start in range(0, len(files), _AT_A_TIME):
            paths = [root / file for file in files[start : start + _AT_A_TIME]]
            yield from pool.map(partial(_image, size=size), paths)
            bars.advance(task, len(paths))


def _image(path: Path, size: int) -> UInt8[np.ndarray, "3 size size"]:
    pillow = _pillow()
    try:
        with pillow.open(path) as image:
            # Only a JPEG can be read at a reduced scale; a good deal faster, and never below twice the size.
            image.draft(None, (2 * size, 2 * size))
            square = _rgb(image).resize((size, size), pillow.Resampling.BILINEAR)
            return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's readers let through whatever a broken file makes them stumble over.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].replace(str(path), "it")
        raise EnvariantError(
            f"{shown(str(path))}: cannot be read as an image ({reason}); replace the file or take it out"
        ) from None


def _rgb(image: Any) -> Any:
    if image.mode.startswith("I"):
        # 16 bits a pixel, which Pillow would cut off at 255.
        levels = np.asarray(image).astype(np.int64).clip(0, 2**16 - 1) >> 8
        return _pillow().fromarray(levels.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are real numbers of no known range")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise EnvariantError("images: reading them needs pillow; pip install 'envariant[vision]'") from None
    return Image


def _amount(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
