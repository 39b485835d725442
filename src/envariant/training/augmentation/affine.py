"""Random rotation, shear and scaling of each image."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from envariant.core import specs
from envariant.training.augmentation.base import Augmentation, check_images


@final
@dataclass(frozen=True)
class RandomAffine(Augmentation):
    """Random rotation, shear and scaling of each image about its center.

    Interpolation is bilinear. Points outside the image get the value of the image's top left pixel.

    Attributes:
        rotation: Maximum rotation in degrees, in both directions; in [0, 180].
        shear: Maximum shear angle along x in degrees, in both directions; in [0, 90).
        scale: Maximum relative change of size, in [0, 1). For example, 0.2 gives factors from 0.8 to 1.2.
    """

    base: ClassVar[str] = "affine"
    rotation: Annotated[float, Field(ge=0, le=180)] = 15.0
    shear: Annotated[float, Field(ge=0, lt=90)] = 10.0
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.2

    def __post_init__(self) -> None:
        specs.validate(self, self.base)

    @property
    def numbers(self) -> int:
        return 3

    def __call__(
        self, images: Float[Tensor, "rows channels height width"], uniforms: Float[Tensor, "3 rows"]
    ) -> Float[Tensor, "rows channels height width"]:
        # In this order: for the angle, the shear and the size of each image.
        check_images(images, self.base)
        uniforms = 2 * uniforms - 1
        return warp(
            images,
            uniforms[0] * math.radians(self.rotation),
            uniforms[1] * math.radians(self.shear),
            1 + uniforms[2] * self.scale,
        )


def warp(
    images: Float[Tensor, "rows channels height width"],
    angle: Float[Tensor, " rows"],
    shear: Float[Tensor, " rows"],
    scale: Float[Tensor, " rows"],
) -> Float[Tensor, "rows channels height width"]:
    """Scale, shear (along x) and rotate images about their centers, each image by its own amounts.

    Interpolation is bilinear. Points outside the image get the value of the channel's top left pixel.

    Args:
        images: Images to transform; height and width may differ.
        angle: Angles in radians, counter-clockwise.
        shear: Shear angles in radians; positive angles move the top to the right.
        scale: Scale factors; 2 doubles the size.
    """
    cos, sin, lean, zero = angle.cos(), angle.sin(), torch.tan(shear), torch.zeros_like(angle)
    # The grid holds the source of each output pixel, so it is the inverse map: rotate back, shear back,
    # scale back. Rows of an image count downwards, hence the signs.
    first = torch.stack([cos + lean * sin, lean * cos - sin, zero], dim=1)
    second = torch.stack([sin, cos, zero], dim=1)
    inverse = torch.stack([first, second], dim=1) / scale[:, None, None]
    height, width = images.shape[2:]
    # The grid's unit is half the image, of the width along x and of the height along y.
    ratio = torch.tensor([[1.0, height / width, 1.0], [width / height, 1.0, 1.0]], device=images.device)
    grid = F.affine_grid(inverse * ratio, list(images.shape), align_corners=False)
    # Standardized images have a background other than 0: shift it to 0, sample, shift it back.
    corner = images[:, :, :1, :1].float()
    return F.grid_sample(images.float() - corner, grid, align_corners=False) + corner
