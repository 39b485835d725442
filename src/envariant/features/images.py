"""Extract features from images and other arrays: preprocessing, batches, cache and progress."""

import hashlib
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from envariant.core.console import SafeConsole
from envariant.core.environments import EnvironmentSet, EnvironmentSource
from envariant.core.errors import EnvariantError, EnvariantWarning
from envariant.core.input_store import InputStore
from envariant.data.cache import CACHE_VARIABLE
from envariant.data.images.base import ImageSource
from envariant.data.images.reading import DEVIATION, MEAN
from envariant.features.backbones import Extractor
from envariant.features.feature_file import DType, features_in, rows_done
from envariant.features.on_ray import BlocksOf, Extractable

# Part of the cache key; must be increased when the extraction changes.
_VERSION = "1"
# Number of rows that are inspected to decide whether pixels lie in [0, 1].
_ROWS_SEEN = 256


@final
@dataclass(frozen=True)
class Extraction:
    """Counts of the rows whose features were computed or found in the cache, and the duration.

    Attributes:
        rows: Number of rows whose features were computed.
        stored: Number of rows whose features were in the cache.
        seconds: Duration of the computation in seconds.
    """

    rows: int
    stored: int
    seconds: float

    @property
    def rate(self) -> float:
        """Rows per second; 0 if nothing was computed."""
        return self.rows / self.seconds if self.rows else 0.0

    def __str__(self) -> str:
        stored = f"{self.stored:,} rows from the cache"
        done = f"features: {self.rows:,} rows in {self.seconds:.1f} s ({self.rate:,.0f} rows per second)"
        return f"{done}; {stored}" if self.rows else f"features: {stored}"


@final
class Preprocessing(nn.Module):
    """Preprocessing of decoded inputs for a backbone: number of channels, image size and pixel normalization.

    Args:
        channels: Number of copies of the channel of a grayscale image; None to keep one channel.
        size: Side in pixels of the square to which images are resized; None for no resizing.
        given: Mean and standard deviation with which the pixels of the inputs were already standardized; None
            for pixels in [0, 1].
        expected: Mean and standard deviation with which pixels were standardized in the training of the
            backbone; None to leave pixels as they are.
    """

    def __init__(
        self,
        channels: int | None,
        size: int | None,
        given: tuple[Sequence[float], Sequence[float]] | None,
        expected: tuple[Sequence[float], Sequence[float]] | None,
    ) -> None:
        super().__init__()
        self.channels, self.size, self.given, self.expected = channels, size, given, expected

    def extra_repr(self) -> str:
        """Return the settings, which are part of the cache key."""
        return f"{self.channels} {self.size} {self.given} {self.expected}"

    def forward(self, inputs: Tensor) -> Tensor:
        """Return preprocessed inputs, `[rows, *shape]`."""
        if self.channels is not None and inputs.shape[1] == 1:
            inputs = inputs.expand(-1, self.channels, -1, -1)
        if self.size is not None:
            inputs = functional.interpolate(
                inputs, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False
            )
        if self.expected is not None and self.given != self.expected:
            if self.given is not None:
                mean, deviation = (_by_channel(values, inputs) for values in self.given)
                inputs = inputs * deviation + mean
            mean, deviation = (_by_channel(values, inputs) for values in self.expected)
            inputs = (inputs - mean) / deviation
        return inputs


def preprocessing(
    source: EnvironmentSource, sample: EnvironmentSet, backbone: Extractor, size: int | None, *, rgb: bool
) -> Preprocessing:
    """Return the preprocessing of a source's inputs for a backbone.

    Args:
        source: Data source.
        sample: Environments of the source.
        backbone: Backbone, with the mean and standard deviation of pixels that it expects.
        size: Side in pixels to which images are resized; None for no resizing.
        rgb: Whether to convert grayscale images to three equal channels.

    Warns:
        EnvariantWarning: If the pixels cannot be normalized as the backbone expects, because their range is
            unknown.
    """
    given = (MEAN, DEVIATION) if isinstance(source, ImageSource) and source.normalize else None
    expected = None
    if backbone.mean is not None and backbone.deviation is not None:
        expected = backbone.mean, backbone.deviation
        first = sample.environments[0].rows(torch.arange(min(_ROWS_SEEN, len(sample.environments[0]))))[0]
        if given is None and not 0 <= float(first.min()) <= float(first.max()) <= 1:
            warnings.warn(
                f"features: inputs of {source.name} lie outside [0, 1], so they are not normalized as the "
                f"backbone expects (mean {backbone.mean}, standard deviation {backbone.deviation})",
                EnvariantWarning,
                stacklevel=2,
            )
            expected = None
    return Preprocessing(3 if rgb else None, size, given, expected)


def features_of(
    sample: EnvironmentSet,
    blocks: BlocksOf,
    key: str,
    width: int,
    dtype: DType,
    folder: Path,
) -> tuple[list[Tensor], Extraction]:
    """Return the features of every environment from the cache; compute and store them first if necessary.

    Args:
        sample: Environments.
        blocks: Function that, given an environment index and a row index, computes the features of that row
            and of all later rows of the environment, in blocks.
        key: String that identifies the preprocessing, architecture and weights.
        width: Number of features.
        dtype: Data type of the stored features.
        folder: Folder of the feature files.

    Raises:
        EnvariantError: If the cache cannot be written.
    """
    stores = [environment.input_store for environment in sample.environments]
    paths = [folder / f"{content_key(_VERSION, key, dtype, store)}.npy" for store in stores]
    shapes = [(len(store), width) for store in stores]
    done = [rows_done(path, shape, dtype) for path, shape in zip(paths, shapes, strict=True)]
    start, total, stored = time.perf_counter(), sum(map(len, stores)), sum(done)
    size = f"{total * width * (4 if dtype == 'float32' else 2) / 2**20:,.0f} MiB"
    remedy = (
        f"set the option cache, or the environment variable {CACHE_VARIABLE}, to a folder with "
        f"{size} of free space"
    )
    with _Progress(total, stored) as progress:

        def counted(environment: int, first: int) -> Iterator[Tensor]:
            for block in blocks(environment, first):
                if wrong := int((~torch.isfinite(block).all(dim=1)).sum()):
                    raise EnvariantError(
                        f"features: the backbone returns NaN or infinity for {wrong} of {len(block)} rows"
                    )
                yield block
                progress.advance(len(block))

        tensors = [
            features_in(path, shape, dtype, lambda first, k=k: counted(k, first), remedy)
            for k, (path, shape) in enumerate(zip(paths, shapes, strict=True))
        ]
    extraction = Extraction(progress.rows, total - progress.rows, time.perf_counter() - start)
    if extraction.rows:
        SafeConsole(stderr=True).print(str(extraction))
    return tensors, extraction


def batches(
    store: InputStore, network: nn.Module, batch_size: int, first: int, last: int
) -> Iterator[Tensor]:
    """Yield the features of the rows from `first` to `last` − 1, one batch at a time.

    Args:
        store: Inputs of an environment.
        network: Preprocessing and backbone, from decoded inputs to features.
        batch_size: Rows per forward pass.
        first: First row.
        last: Index after the last row.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device)
    try:
        for begin in range(first, last, batch_size):
            index = torch.arange(begin, min(begin + batch_size, last))
            with torch.inference_mode():
                rows = store.decode(store.gather(index).to(device))
                features = network(rows).flatten(1).float().cpu()
            yield features
    finally:
        network.to("cpu")


@final
@dataclass(frozen=True, eq=False)
class SourceRows(Extractable):
    """Rows of a data source, whose features workers compute.

    Each worker reads the source itself, after checking that it has the same identity as in the calling
    process.

    Attributes:
        source: Data source.
        identity: Identity of the source in the calling process.
        seed: Seed of the data draw.
        network: Preprocessing and backbone, from decoded inputs to features.
        batch_size: Rows per forward pass.
    """

    source: EnvironmentSource
    identity: str
    seed: int
    network: nn.Module
    batch_size: int

    @cached_property
    def _sample(self) -> EnvironmentSet:
        source: Any = self.source
        if isinstance(source, ImageSource):
            # A worker decodes only its own rows, instead of keeping all images in memory.
            source = replace(source, storage="files", workers=1)
        if source.identity() != self.identity:
            raise EnvariantError(
                f"features: a worker of the Ray cluster finds different data at {source.name}; give every "
                f"node the same files under the same path"
            )
        return source.sample(self.seed)

    def features(self, environment: int, first: int, last: int) -> Tensor:
        store = self._sample.environments[environment].input_store
        return torch.cat(list(batches(store, self.network, self.batch_size, first, last)))


def content_key(*parts: object) -> str:
    """Return a digest of strings and input stores, including the content of the stores."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(b"\0")
        for chunk in part.chunks() if isinstance(part, InputStore) else (str(part).encode(),):
            digest.update(chunk)
        if isinstance(part, InputStore):
            digest.update(repr((tuple(part.shape), part.dtype)).encode())
    return digest.hexdigest()


@final
class _Progress:
    """Progress bar on a terminal, and the number of rows computed."""

    def __init__(self, total: int, stored: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = TextColumn("extracting features"), BarColumn(24), MofNCompleteColumn()
        disable = not sys.stderr.isatty() or stored >= total
        console = SafeConsole(stderr=True)
        self._bars = Progress(*columns, TimeRemainingColumn(), console=console, disable=disable)
        self._task = self._bars.add_task("", total=total, completed=stored)
        self.rows = 0

    def __enter__(self) -> "_Progress":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def advance(self, rows: int) -> None:
        """Add to the number of computed rows, and advance the progress bar."""
        self.rows += rows
        self._bars.advance(self._task, rows)


def _by_channel(values: Sequence[float], inputs: Tensor) -> Tensor:
    return torch.tensor(values, dtype=inputs.dtype, device=inputs.device).view(-1, 1, 1)
