"""Random crops, resized to the original image size, and random horizontal flips."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from envariant.core import specs
from envariant.core.errors import EnvariantError
from envariant.training.augmentation.base import Augmentation, check_images

# Number of attempts to sample a crop that fits into the image. If all fail, the largest central crop is used.
_ATTEMPTS = 10


@final
@dataclass(frozen=True)
class RandomResizedCrop(Augmentation):
    """Crop of random area, shape and position, resized bilinearly to the size of the image.

    The relative area of the crop is uniform in `scale`, and its ratio of width to height is log-uniform in
    `ratio`, as in torchvision (Szegedy et al. 2014, arXiv 1409.4842, Section 6).

    Attributes:
        scale: Smallest and largest area of a crop, relative to the image. A single number is the smallest
            area; the largest is then 1.
        ratio: Smallest and largest ratio of width to height.
    """

    base: ClassVar[str] = "random-resized-crop"
    scale: float | tuple[float, float] = (0.7, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        specs.validate(self, self.base)
        low, high = self.scales
        if not 0 < low <= high <= 1:
            raise EnvariantError(f"{self.base}: scale must be in (0, 1], ascending; got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise EnvariantError(f"{self.base}: ratio must be positive, ascending; got {self.ratio}")

    @property
    def scales(self) -> tuple[float, float]:
        """Smallest and largest area of a crop, relative to the image."""
        return self.scale if isinstance(self.scale, tuple) else (self.scale, 1.0)

    @property
    def numbers(self) -> int:
        return 2 * _ATTEMPTS + 2

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        check_images(images, self.base)
        return cropped(images, *self.boxes(images.shape[2], images.shape[3], uniforms))

    def boxes(
        self, height: int, width: int, uniforms: Float[Tensor, "numbers rows"]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the top, left, height and width of each crop, in pixels.

        Args:
            height: Height of the images.
            width: Width of the images.
            uniforms: Random numbers in [0, 1).
        """
        low, high = self.scales
        areas, shapes, position = uniforms.split([_ATTEMPTS, _ATTEMPTS, 2])
        area = height * width * (low + (high - low) * areas)
        first, last = (math.log(value) for value in self.ratio)
        shape = (first + (last - first) * shapes).exp()
        wide, high_ = (area * shape).sqrt().round(), (area / shape).sqrt().round()
        fits = (wide > 0) & (wide <= width) & (high_ > 0) & (high_ <= height)
        attempt = fits.float().argmax(dim=0, keepdim=True)
        # The largest crop in the center with an allowed shape.
        rough = width / height
        bound = min(max(rough, self.ratio[0]), self.ratio[1])
        center = (
            (round(width / bound) if rough < bound else height),
            (round(height * bound) if rough > bound else width),
        )
        found = fits.any(dim=0)
        h = torch.where(found, high_.gather(0, attempt)[0], float(center[0]))
        w = torch.where(found, wide.gather(0, attempt)[0], float(center[1]))
        top, left = (position[0] * (height - h + 1)).floor(), (position[1] * (width - w + 1)).floor()
        middle = ((height - h) / 2).floor(), ((width - w) / 2).floor()
        return torch.where(found, top, middle[0]), torch.where(found, left, middle[1]), h, w


def cropped(
    images: Float[Tensor, "rows channels height width"],
    top: Float[Tensor, " rows"],
    left: Float[Tensor, " rows"],
    height: Float[Tensor, " rows"],
    width: Float[Tensor, " rows"],
) -> Float[Tensor, "rows channels height width"]:
    """Cut a rectangle out of each image, and resize it bilinearly to the size of the image.

    Args:
        images: Images.
        top: First row of each rectangle.
        left: First column of each rectangle.
        height: Height of each rectangle in pixels.
        width: Width of each rectangle in pixels.
    """
    rows = _sources(top, height, images.shape[2], images)
    columns = _sources(left, width, images.shape[3], images)
    return _interpolated(_interpolated(images, rows, 2), columns, 3)


def _sources(start: Tensor, length: Tensor, size: int, images: Tensor) -> Tensor:
    """Return the image position of each output pixel along one axis, `[rows, size]`."""
    pixels = torch.arange(size, device=images.device, dtype=torch.float32) + 0.5
    inside = pixels * (length / size)[:, None] - 0.5
    # Positions outside the crop are clamped to its edge, so pixels outside the crop are not used.
    return start[:, None] + torch.minimum(inside.clamp(min=0), (length - 1)[:, None])


def _interpolated(images: Tensor, sources: Tensor, dim: int) -> Tensor:
    """Interpolate linearly between neighboring pixels along one axis."""
    lower = sources.floor()
    share = (sources - lower).view(len(images), 1, *((-1, 1) if dim == 2 else (1, -1)))
    first = lower.long()
    second = (first + 1).clamp(max=images.shape[dim] - 1)

    def taken(index: Tensor) -> Tensor:
        shape = [len(images), images.shape[1], images.shape[2], images.shape[3]]
        shape[dim] = index.shape[1]
        return images.gather(
            dim, index.view(len(images), 1, *((-1, 1) if dim == 2 else (1, -1))).expand(shape)
        )

    return taken(first).lerp(taken(second), share)


@final
@dataclass(frozen=True)
class HorizontalFlip(Augmentation):
    """Random horizontal reflection of images.

    Attributes:
        p: Probability with which an image is reflected.
    """

    base: ClassVar[str] = "horizontal-flip"
    p: Annotated[float, Field(ge=0, le=1)] = 0.5

    def __post_init__(self) -> None:
        specs.validate(self, self.base)

    @property
    def numbers(self) -> int:
        return 1

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        check_images(images, self.base)
        return torch.where((uniforms[0] < self.p)[:, None, None, None], images.flip(3), images)
