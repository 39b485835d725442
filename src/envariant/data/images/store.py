"""Input store of images, which reads bytes from `Pixels` and standardizes them in `decode`."""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from envariant.core import machine
from envariant.core.input_store import ByteStore, InputStore, standardized
from envariant.data.images.pixels import Pixels


@final
@dataclass(frozen=True, eq=False)
class ImageStore(InputStore):
    """Store of images in memory, in a cache file, or in image files.

    Attributes:
        pixels: Source of the decoded images.
        numbers: Indices of the images in `pixels`.
        mean: Mean of each channel after scaling to [0, 1]; None is equivalent to 0.
        deviation: Standard deviation of each channel after scaling to [0, 1]; None is equivalent to 1.
    """

    pixels: Pixels
    numbers: NDArray[np.int64]
    mean: tuple[float, ...] | None = None
    deviation: tuple[float, ...] | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self.pixels.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        return torch.uint8

    @property
    def encoding(self) -> Hashable:
        # Equal to the encoding of a `ByteStore`, which decodes in the same way.
        return torch.uint8, self.mean, self.deviation

    @property
    def streamed(self) -> bool:
        return self.pixels.streamed

    def gather(self, index: Int[Tensor, " selected"] | None = None) -> Tensor:
        numbers = self.numbers if index is None else self.numbers[index.cpu().numpy()]
        if self.streamed:
            needed = len(numbers) * self.shape.numel()
            remedy = "use smaller or fewer images, or an option that reads them in batches"
            machine.require_memory(needed, f"{len(numbers):,} images at once", remedy, machine.memory)
        return torch.from_numpy(self.pixels.read(numbers))

    def decode(self, rows: Tensor) -> Tensor:
        return self.standardize(self.unit(rows))

    def unit(self, rows: Tensor) -> Tensor:
        return rows.float() / 255

    def standardize(self, inputs: Tensor) -> Tensor:
        return standardized(inputs, self.mean, self.deviation)

    def with_rows(self, rows: Tensor) -> ByteStore:
        return ByteStore(rows, self.mean, self.deviation)

    def select(self, index: Int[Tensor, " selected"]) -> "ImageStore":
        return ImageStore(self.pixels, self.numbers[index.cpu().numpy()], self.mean, self.deviation)

    def chunks(self) -> Iterator[bytes]:
        yield repr((self.mean, self.deviation)).encode()
        yield from self.pixels.digests(self.numbers)
