"""Random color changes: brightness, contrast, saturation and hue; random conversion to grayscale.

The formulas are those of torchvision's `ColorJitter` and `RandomGrayscale` for pixels in [0, 1].
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from envariant.core import specs
from envariant.training.augmentation.base import Augmentation, check_images

Images = Float[Tensor, "rows channels height width"]
Factors = Float[Tensor, " rows"]

_CHANNELS = (1, 3)


@final
@dataclass(frozen=True)
class ColorJitter(Augmentation):
    """Random changes of the brightness, contrast, saturation and hue of each image, in random order.

    Brightness, contrast and saturation are multiplied by factors that are uniform in [max(0, 1 − x), 1 + x],
    where x is the value of the attribute. The hue is shifted by an amount that is uniform in [−x, x], where 1
    is the whole color circle.

    Attributes:
        brightness: Maximum relative change of the brightness.
        contrast: Maximum relative change of the contrast.
        saturation: Maximum relative change of the saturation.
        hue: Maximum shift of the hue, at most 0.5.
    """

    base: ClassVar[str] = "color-jitter"
    brightness: Annotated[float, Field(ge=0)] = 0.3
    contrast: Annotated[float, Field(ge=0)] = 0.3
    saturation: Annotated[float, Field(ge=0)] = 0.3
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.3

    def __post_init__(self) -> None:
        specs.validate(self, self.base)

    @property
    def unit_range(self) -> bool:
        return True

    @property
    def numbers(self) -> int:
        return 8

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        check_images(images, self.base, _CHANNELS)
        order, amounts = uniforms[:4].argsort(dim=0), uniforms[4:]
        changes: list[tuple[Callable[[Tensor, Tensor], Tensor], Tensor]] = []
        sizes = self.brightness, self.contrast, self.saturation
        for change, size, amount in zip((brightened, contrasted, saturated), sizes, amounts[:3], strict=True):
            low = max(0.0, 1 - size)
            changes.append((change, low + (1 + size - low) * amount))
        changes.append((hue_shifted, self.hue * (2 * amounts[3] - 1)))
        images = images.clone()
        for place in order:
            for number, (change, factor) in enumerate(changes):
                rows = (place == number).nonzero().flatten()
                if len(rows):
                    images[rows] = change(images[rows], factor[rows])
        return images


@final
@dataclass(frozen=True)
class Grayscale(Augmentation):
    """Random conversion of images to grayscale.

    Attributes:
        p: Probability with which an image is converted.
    """

    base: ClassVar[str] = "random-grayscale"
    p: Annotated[float, Field(ge=0, le=1)] = 0.1

    def __post_init__(self) -> None:
        specs.validate(self, self.base)

    @property
    def unit_range(self) -> bool:
        return True

    @property
    def numbers(self) -> int:
        return 1

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        check_images(images, self.base, _CHANNELS)
        return torch.where((uniforms[0] < self.p)[:, None, None, None], gray(images), images)


def gray(images: Images) -> Images:
    """Convert images to gray values 0.2989 R + 0.587 G + 0.114 B, repeated in all channels.

    Args:
        images: Images of one or three channels.
    """
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue)[:, None].expand_as(images)


def blended(images: Images, other: Tensor, factor: Factors) -> Images:
    """Return factor · images + (1 − factor) · other, clipped to [0, 1].

    Args:
        images: Images.
        other: Images or pixel values to blend with.
        factor: Weight of each image; it may be above 1.
    """
    weight = factor[:, None, None, None]
    return (weight * images + (1 - weight) * other).clamp(0, 1)


def brightened(images: Images, factor: Factors) -> Images:
    """Multiply pixels by a factor; the factor 0 gives a black image.

    Args:
        images: Images.
        factor: Factor of each image.
    """
    return blended(images, torch.zeros((), device=images.device), factor)


def contrasted(images: Images, factor: Factors) -> Images:
    """Scale each pixel's difference from the image's mean gray value by a factor; 0 gives uniform gray.

    Args:
        images: Images.
        factor: Factor of each image.
    """
    # In two steps, so that the order of additions does not depend on the number of images.
    mean = gray(images)[:, :1].mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)
    return blended(images, mean, factor)


def saturated(images: Images, factor: Factors) -> Images:
    """Scale each pixel's difference from its own gray value by a factor; 0 gives a grayscale image.

    Args:
        images: Images.
        factor: Factor of each image.
    """
    return blended(images, gray(images), factor) if images.shape[1] == 3 else images


def hue_shifted(images: Images, shift: Factors) -> Images:
    """Shift the hue of every pixel in HSV color space; saturation and value stay unchanged.

    Args:
        images: Images.
        shift: Hue shift of each image, in [−0.5, 0.5]; 1 is the whole color circle.
    """
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    value, least = images.amax(dim=1), images.amin(dim=1)
    chroma = value - least
    divisor = torch.where(chroma == 0, 1.0, chroma)
    # Distance of each channel from the largest: the largest channel gives the sector of the hue.
    to_red, to_green, to_blue = (value - red) / divisor, (value - green) / divisor, (value - blue) / divisor
    hue = torch.where(
        value == red,
        to_blue - to_green,
        torch.where(value == green, 2 + to_red - to_blue, 4 + to_green - to_red),
    )
    hue = torch.where(chroma == 0, 0.0, hue)
    hue = (hue / 6 + 1 + shift[:, None, None]) % 1
    # Each channel is value − chroma · max(0, min(k, 4 − k, 1)) with k = (n + 6 · hue) mod 6, n = 5, 3, 1.
    channels = [
        value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)
        for k in ((offset + 6 * hue) % 6 for offset in (5, 3, 1))
    ]
    return torch.stack(channels, dim=1).clamp(0, 1)
