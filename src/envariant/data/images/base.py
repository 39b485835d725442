"""`ImageSource`, the base class of image sources, whose subclasses list the files of each environment.

Reading images takes minutes, so the names of files, classes and environments are checked before any image is
read.
"""

import hashlib
import os
import warnings
import weakref
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import ClassVar, Literal, Self, final

import numpy as np
import torch
from torch import Tensor

from envariant.core import specs
from envariant.core.conversion import MOST_GROUPS, look_alikes, several
from envariant.core.environments import DefaultSettings, Environment, EnvironmentSet
from envariant.core.errors import EnvariantError, EnvariantWarning
from envariant.core.input_store import InputStore
from envariant.core.paths import check_name
from envariant.core.tasks import Binary, Multiclass
from envariant.data.base import SpecSource
from envariant.data.images import reading
from envariant.data.images.decoding import Preprocessing, shown, some
from envariant.data.images.pixels import Pixels
from envariant.data.images.store import ImageStore

HIDDEN = "skipped, hidden"
"""Beginning of the remark on hidden files, for which no warning is issued."""


@final
@dataclass(frozen=True, eq=False)
class ImageGroup:
    """Image files of one environment: paths relative to the root folder, and class indices."""

    name: str
    files: Sequence[str]
    targets: Sequence[int]


@final
@dataclass(frozen=True, eq=False)
class Listing:
    """List of the image files of a source, grouped by environment.

    Attributes:
        groups: Image files of each environment.
        classes: Names of the classes, in the order of their indices.
        test: Names of the default test environments.
        validation: Names of the validation environments.
        remarks: Entries for the preprocessing log, about skipped files, empty folders and merged classes.
    """

    groups: tuple[ImageGroup, ...]
    classes: tuple[str, ...]
    test: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def notable(self) -> list[str]:
        """Return the remarks that require a warning, such as skipped files or names that look alike."""
        names = (("class", self.classes), ("environment", [group.name for group in self.groups]))
        lines = [
            f"{what} names {sentence}, and are treated as different; if they mean the same, rename the "
            f"folders"
            for what, labels in names
            for sentence in look_alikes(labels)[:MOST_GROUPS]
        ]
        return [*(remark for remark in self.remarks if not remark.startswith(HIDDEN)), *lines]


@final
class _Shared:
    """Weak reference to the last sample, so that all replicas share one copy of the rows."""

    def __init__(self) -> None:
        self._last: weakref.ref[EnvironmentSet] | None = None

    def get(self, make: Callable[[], EnvironmentSet]) -> EnvironmentSet:
        environments = None if self._last is None else self._last()
        if environments is None:
            environments = make()
            self._last = weakref.ref(environments)
        return environments

    def __reduce__(self) -> tuple[type["_Shared"], tuple[()]]:
        # Every process reads the images separately.
        return _Shared, ()


@dataclass(frozen=True)
class ImageSource(SpecSource):
    """Base class of image sources. As a string, a source is written `NAME('folder', size=64, …)`.

    Images are converted to RGB and resized bilinearly to a square. JPEG images that are much larger than
    `size` are first decoded at a reduced scale that is still at least twice `size`. The alpha channel is
    discarded, and 16-bit values are converted to 8 bits. As in DomainBed, EXIF orientation is ignored; set
    `exif` to apply it.

    Attributes:
        root: Folder of the images; stored as an absolute path.
        size: Side of an image in pixels.
        test: Names of the default test environments.
        normalize: Whether to standardize each channel with its mean and standard deviation in ImageNet;
            otherwise pixels lie in [0, 1].
        resize: "square" resizes both sides, as DomainBed does; "center-crop" resizes the shorter side to
            size / 0.875 and cuts out the center, as is usual for ImageNet.
        exif: Whether to apply the EXIF orientation, which cameras store with the image.
        storage: "memory" keeps all decoded images in memory. "disk" decodes all images once, stores them in
            the cache folder, and reads batches from there. "files" decodes the image files whenever they are
            used. Results are identical. Default: "memory" if the images need at most a quarter of the free
            memory; otherwise "disk" if there is enough disk space, and "files" if not.
        workers: Number of threads for decoding images. Default: one per available processor.
        cache: Cache folder. Default: `ENVARIANT_CACHE` (environment variable), else the system's cache
            folder.
    """

    positional: ClassVar[tuple[str, ...]] = ("root",)
    root: str | Path
    size: int = 64
    test: tuple[str, ...] = ()
    normalize: bool = True
    resize: Literal["square", "center-crop"] = "square"
    exif: bool = False
    storage: reading.Storage | None = field(default=None, compare=False)
    workers: int | None = field(default=None, compare=False)
    cache: str | Path | None = field(default=None, compare=False)
    _shared: _Shared = field(default_factory=_Shared, init=False, repr=False, compare=False)
    _identity: list[str] = field(default_factory=list[str], init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.root, str | Path) or not str(self.root):
            raise EnvariantError(f"{self.base}: root must be the path of a folder; got {self.root!r}")
        check_name(self.root)
        # The name must identify the same folder from any working directory.
        object.__setattr__(self, "root", os.path.abspath(os.path.expanduser(self.root)))  # noqa: PTH100, PTH111
        object.__setattr__(self, "test", several(self.test, f"{self.base}: test"))
        specs.validate(self, self.base, only=("normalize", "resize", "exif", "storage"))
        for key, value in (("size", self.size), ("workers", 1 if self.workers is None else self.workers)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise EnvariantError(
                    f"{self.base}: {key} must be a whole number of at least 1; got {value!r}"
                )

    @classmethod
    def from_spec(cls, spec: specs.Spec, folder: Path | None = None) -> Self:
        # A single name is written as a word, several as a tuple; a year is a name here, not a number.
        test = spec.keywords.get("test", ())
        names = tuple(map(str, test if isinstance(test, tuple) else (test,)))
        return super().from_spec(specs.Spec(spec.name, spec.positional, {**spec.keywords, "test": names}))

    def identity(self) -> str:
        if not self._identity:
            self._identity.append(self._content())
        return self._identity[0]

    def _content(self) -> str:
        # The folder and file times are ignored, so that a copied folder has the same identity.
        listing = self.listing()
        pixels = (self.preprocessing, self.normalize)
        settings = (*pixels, self.test or listing.test, listing.validation, listing.classes)
        digest = hashlib.blake2b(repr(settings).encode("utf-8", "surrogateescape"), digest_size=16)
        for group in listing.groups:
            digest.update(f"\0{group.name}\0".encode("utf-8", "surrogateescape"))
            for file, target in zip(group.files, group.targets, strict=True):
                digest.update(f"{file}\0{target}\0".encode("utf-8", "surrogateescape"))
        files = [file for group in listing.groups for file in group.files]
        content = reading.content_digest(Path(self.root), files, workers=self.workers, cache=self.cache)
        digest.update(content.encode())
        return f"images({digest.hexdigest()})"

    @property
    def preprocessing(self) -> Preprocessing:
        """Conversion of images to squares."""
        return Preprocessing(self.size, self.resize, self.exif)

    @abstractmethod
    def listing(self) -> Listing:
        """List the image files of every environment.

        Raises:
            EnvariantError: If the folder does not have the expected layout.
        """

    def preprocessing_log(self) -> list[str]:
        """Return the preprocessing log, with entries about the folder, the environments and skipped files."""
        listing = self.listing()
        images = sum(len(group.files) for group in listing.groups)
        counts = f"{len(listing.groups)} environments, {len(listing.classes)} classes, {images:,} images"
        lines = [f"{self.root}: {counts}"]
        for group in listing.groups:
            absent = sorted(set(range(len(listing.classes))) - set(group.targets))
            none = f"; no images of {some([listing.classes[k] for k in absent])}" if absent else ""
            lines.append(f"{shown(group.name)}: {len(group.files):,} images{none}")
        hidden = [remark for remark in listing.remarks if remark.startswith(HIDDEN)]
        return [*lines, *hidden, *listing.notable()]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their indices."""
        return self.listing().classes

    def sample(self, seed: int) -> EnvironmentSet:
        """Return the environments with all images; the seed is ignored.

        Raises:
            EnvariantError: If the layout is wrong, a file cannot be read, or memory is insufficient.

        Warns:
            EnvariantWarning: If files are skipped, names of classes or environments look alike, or images
                lose information.
        """
        return self._shared.get(self._read)

    def default_settings(self, algorithm: str) -> DefaultSettings:
        return DefaultSettings(
            model="mnist-cnn",
            steps=1000,
            batch_size=32,
            source="a small untrained network and DomainBed's batch size; not tuned. If timm is installed, "
            "timm(resnet18, pretrained=true) is usually better",
        )

    def _read(self) -> EnvironmentSet:
        listing = self.listing()
        files = [file for group in listing.groups for file in group.files]
        task = Binary() if len(listing.classes) == 2 else Multiclass(len(listing.classes))
        test = self.test or listing.test

        def environments(
            rows_of: Callable[[ImageGroup], tuple[InputStore | Tensor, Tensor]],
        ) -> EnvironmentSet:
            members = tuple(Environment(group.name, *rows_of(group)) for group in listing.groups)
            return EnvironmentSet(
                self.name, members, task, test, validation=listing.validation, classes=listing.classes
            )

        # Names are checked with placeholders first, because reading may take an hour.
        environments(lambda _: (torch.zeros(1, 1), torch.zeros(1)))
        for remark in listing.notable():
            warnings.warn(f"{shown(str(self.root))}: {remark}", EnvariantWarning, stacklevel=2)
        if self._identity and self._content() != self._identity[0]:
            raise EnvariantError(
                f"{self.base}: the images in {self.root} have changed since they were first used; restore "
                f"them, or create the data source again and store its runs in a new folder"
            )
        pixels = self._pixels(files)
        scale = (reading.MEAN, reading.DEVIATION) if self.normalize else (None, None)
        ends = dict(zip(listing.groups, accumulate(len(g.files) for g in listing.groups), strict=True))

        def rows_of(group: ImageGroup) -> tuple[InputStore, Tensor]:
            numbers = np.arange(ends[group] - len(group.files), ends[group])
            return ImageStore(pixels, numbers, *scale), torch.tensor(group.targets)

        return environments(rows_of)

    def _pixels(self, files: Sequence[str]) -> Pixels:
        arguments, storage = (Path(self.root), files, self.preprocessing), self.storage
        if storage is None:
            cached = reading.cache_path(*arguments, self.cache)
            storage, reason = reading.storage_for(len(files), self.size, cached)
            if reason:
                warnings.warn(f"{shown(str(self.root))}: {reason}", EnvariantWarning, stacklevel=2)
        if storage == "files":
            return reading.from_files(*arguments, workers=self.workers)
        if storage == "disk":
            return reading.open_cache(*arguments, workers=self.workers, cache=self.cache)
        reading.check_memory(self.base, len(files), self.size)
        return reading.in_memory(*arguments, workers=self.workers, cache=self.cache)
