"""RandAugment (Cubuk et al. 2019, arXiv 1909.13719): `n` random operations of equal magnitude per image."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from envariant.core import specs
from envariant.training.augmentation import color
from envariant.training.augmentation.base import Augmentation, check_images

Images = Float[Tensor, "rows channels height width"]

BINS = 31
"""Number of different magnitudes, from 0 to `BINS` − 1."""


@final
@dataclass(frozen=True)
class RandAugment(Augmentation):
    """Random operations on each image, such as rotation, posterization or equalization, as in torchvision.

    Each operation is chosen independently from 14 operations with equal probability, so that one may occur
    several times. The direction of a change, such as a rotation, is random for each operation and image.
    Geometric operations use nearest-neighbor interpolation, and points outside the image become black.

    Attributes:
        n: Number of operations per image.
        m: Magnitude of the operations, from 0 to 30.
    """

    base: ClassVar[str] = "rand-augment"
    n: Annotated[int, Field(ge=1)] = 2
    m: Annotated[int, Field(ge=0, lt=BINS)] = 9

    def __post_init__(self) -> None:
        specs.validate(self, self.base)

    @property
    def unit_range(self) -> bool:
        return True

    @property
    def numbers(self) -> int:
        return 2 * self.n

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        check_images(images, self.base, (1, 3))
        # Operations work on the 256 levels of a byte.
        images = (images * 255).round() / 255
        for choice, sign in uniforms.view(self.n, 2, -1):
            numbers = (choice * len(OPERATIONS)).long()
            signs = torch.where(sign < 0.5, -1.0, 1.0)
            for number, operation in enumerate(OPERATIONS.values()):
                rows = (numbers == number).nonzero().flatten()
                if len(rows):
                    images[rows] = operation(images[rows], self.m / (BINS - 1), signs[rows])
        return images


def _moved(images: Images, matrix: Tensor) -> Images:
    """Resample images at positions given by affine maps; points outside an image are black.

    Args:
        images: Images.
        matrix: Affine maps `[rows, 2, 3]`, in pixels, from a position in the result to one in the image.
    """
    height, width = images.shape[2:]
    ratio = torch.tensor([[1.0, height / width, 2 / width], [width / height, 1.0, 2 / height]])
    grid = F.affine_grid(matrix * ratio.to(matrix), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="nearest", align_corners=False)


def _matrix(values: Tensor, row: int, column: int) -> Tensor:
    matrix = torch.eye(2, 3, device=values.device).repeat(len(values), 1, 1)
    matrix[:, row, column] = values
    return matrix


def _shear_x(images: Images, size: float, sign: Tensor) -> Images:
    # torchvision shears about the top left corner.
    lean = 0.3 * size * sign
    matrix = _matrix(lean, 0, 1)
    matrix[:, 0, 2] = lean * images.shape[2] / 2
    return _moved(images, matrix)


def _shear_y(images: Images, size: float, sign: Tensor) -> Images:
    lean = 0.3 * size * sign
    matrix = _matrix(lean, 1, 0)
    matrix[:, 1, 2] = lean * images.shape[3] / 2
    return _moved(images, matrix)


def _translate_x(images: Images, size: float, sign: Tensor) -> Images:
    return _moved(images, _matrix(-sign * int(150 / 331 * images.shape[3] * size), 0, 2))


def _translate_y(images: Images, size: float, sign: Tensor) -> Images:
    return _moved(images, _matrix(-sign * int(150 / 331 * images.shape[2] * size), 1, 2))


def _rotate(images: Images, size: float, sign: Tensor) -> Images:
    angle = math.radians(30 * size) * sign
    first = torch.stack([angle.cos(), -angle.sin(), torch.zeros_like(angle)], dim=1)
    second = torch.stack([angle.sin(), angle.cos(), torch.zeros_like(angle)], dim=1)
    return _moved(images, torch.stack([first, second], dim=1))


def _sharpness(images: Images, size: float, sign: Tensor) -> Images:
    channels = images.shape[1]
    kernel = torch.ones(3, 3, device=images.device)
    kernel[1, 1] = 5
    smooth = images.clone()
    inner = F.conv2d(images, (kernel / kernel.sum()).expand(channels, 1, 3, 3), groups=channels)
    smooth[:, :, 1:-1, 1:-1] = (inner * 255).round() / 255
    return color.blended(images, smooth, 1 + 0.9 * size * sign)


def _posterize(images: Images, size: float, sign: Tensor) -> Images:
    del sign
    bits = 8 - round(size * (BINS - 1) / ((BINS - 1) / 4))
    step = 2 ** (8 - bits)
    return (images * 255).round().div(step).floor() * step / 255


def _solarize(images: Images, size: float, sign: Tensor) -> Images:
    del sign
    # The threshold is shifted to a value between two byte levels, so that rounding does not matter.
    return torch.where(images * 255 + 0.01 >= 255 * (1 - size), 1 - images, images)


def _autocontrast(images: Images, size: float, sign: Tensor) -> Images:
    del size, sign
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    flat = low == high
    low, span = torch.where(flat, 0.0, low), torch.where(flat, 1.0, high - low)
    return ((images - low) / span).clamp(0, 1)


def _equalize(images: Images, size: float, sign: Tensor) -> Images:
    """Equalize the histogram of each channel, so that all gray levels are about equally frequent."""
    del size, sign
    levels = (images * 255).round().long().flatten(2)
    counts = torch.zeros(*levels.shape[:2], 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, levels, torch.ones_like(levels))
    used = (counts > 0).long()
    last = (used * torch.arange(256, device=images.device)).argmax(dim=2, keepdim=True)
    step = (counts.sum(dim=2, keepdim=True) - counts.gather(2, last)) // 255
    table = (counts.cumsum(dim=2) + step // 2) // step.clamp(min=1)
    table = F.pad(table, (1, 0))[:, :, :-1].clamp(0, 255)
    equal = torch.where(step == 0, levels, table.gather(2, levels))
    return (equal / 255).view_as(images)


def _by_factor(change: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, float, Tensor], Tensor]:
    return lambda images, size, sign: change(images, 1 + 0.9 * size * sign)


OPERATIONS: dict[str, Callable[[Tensor, float, Tensor], Tensor]] = {
    "identity": lambda images, size, sign: images,
    "shear x": _shear_x,
    "shear y": _shear_y,
    "translate x": _translate_x,
    "translate y": _translate_y,
    "rotate": _rotate,
    "brightness": _by_factor(color.brightened),
    "color": _by_factor(color.saturated),
    "contrast": _by_factor(color.contrasted),
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}
"""Operations by name. Each is a function of images, a relative magnitude in [0, 1], and a sign per image that
sets the direction of the change."""
