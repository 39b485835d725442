"""Data augmentation on whole batches of images: random rotation, shear and scaling, one draw a row."""

import math
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from envariant.core import specs
from envariant.core.errors import EnvariantError


@final
@dataclass(frozen=True)
class RandomAffine:
    """Each image is rotated, sheared and scaled about its center, bilinear, filled with its corner pixel.

    Attributes:
        rotation: largest angle, degrees, either way.
        shear: largest shear angle along x, degrees, either way.
        scale: largest relative change of size: 0.2 gives factors from 0.8 to 1.2.
    """

    rotation: float = 15.0
    shear: float = 10.0
    scale: float = 0.2

    def __post_init__(self) -> None:
        if not (0 <= self.rotation <= 180 and 0 <= self.shear < 90 and 0 <= self.scale < 1):
            raise EnvariantError(
                "affine: rotation must lie in [0, 180], shear in [0, 90), scale in [0, 1); "
                f"got {self.rotation:g}, {self.shear:g}, {self.scale:g}"
            )

    def __call__(
        self, images: Float[Tensor, "rows channels height width"], uniforms: Float[Tensor, "3 rows"]
    ) -> Float[Tensor, "rows channels height width"]:
        """Augmented copies.

        Args:
            images: to be augmented.
            uniforms: three random numbers in [0, 1) for each image: for its angle, shear and size.
        """
        if images.dim() != 4:
            raise EnvariantError(
                f"affine: needs images, channels first; got inputs of shape {tuple(images.shape[1:])}"
            )
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
    """Images scaled, sheared along x and then rotated about their center, each by its own amount.

    Args:
        images: square or not; bilinear interpolation, filled with each channel's first pixel.
        angle: radians, counter-clockwise.
        shear: radians; positive leans the top to the right.
        scale: factors; 2 doubles the size.
    """
    cos, sin, lean, zero = angle.cos(), angle.sin(), torch.tan(shear), torch.zeros_like(angle)
    # The grid says where an output pixel is read from, so it is the inverse map: turn back, lean back,
    # shrink. Rows of the image count downwards, hence the signs.
    first = torch.stack([cos + lean * sin, lean * cos - sin, zero], dim=1)
    second = torch.stack([sin, cos, zero], dim=1)
    inverse = torch.stack([first, second], dim=1) / scale[:, None, None]
    height, width = images.shape[2:]
    # The grid's unit is half the image, of the width along x and of the height along y.
    ratio = torch.tensor([[1.0, height / width, 1.0], [width / height, 1.0, 1.0]], device=images.device)
    grid = F.affine_grid(inverse * ratio, list(images.shape), align_corners=False)
    # Standardised images have a background other than 0: move it to 0, sample, move it back.
    corner = images[:, :, :1, :1].float()
    return F.grid_sample(images.float() - corner, grid, align_corners=False) + corner


def augmentation(text: str | None) -> RandomAffine | None:
    """The augmentation that a string such as `affine(rotation=15)` names; none for None.

    Raises:
        EnvariantError: there is no such augmentation, or it has no such setting.
    """
    return None if text is None else specs.build("augmentation", text, {"affine": RandomAffine})
