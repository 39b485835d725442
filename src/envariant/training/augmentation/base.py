"""Base class of augmentations of training images."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor

from envariant.core.errors import EnvariantError


class Augmentation(ABC):
    """Base class of augmentations: functions of a batch of images and uniform random numbers.

    The random numbers are a function of the replica's seed and the step (see `core.counter_rng`).
    Augmentation is therefore the same whether a run is resumed or not, and whether a replica trains alone or
    in a stack.
    """

    base: ClassVar[str]
    """Registered name of the augmentation."""

    @property
    def unit_range(self) -> bool:
        """Whether pixels must be in [0, 1]. If so, standardization is applied after the augmentation."""
        return False

    @property
    @abstractmethod
    def numbers(self) -> int:
        """Number of random numbers, uniform in [0, 1), that the augmentation needs for each image."""

    @abstractmethod
    def __call__(
        self, images: Float[Tensor, "rows channels height width"], uniforms: Float[Tensor, "numbers rows"]
    ) -> Float[Tensor, "rows channels height width"]:
        """Return augmented copies of images.

        Args:
            images: Images to augment.
            uniforms: Random numbers in [0, 1); each image uses `numbers` of them.

        Raises:
            EnvariantError: If the inputs are not images that can be augmented.
        """


@final
@dataclass(frozen=True)
class Composed(Augmentation):
    """Several augmentations, applied one after another.

    Attributes:
        parts: Augmentations, in the order in which they are applied.
    """

    base: ClassVar[str] = "+"
    parts: tuple[Augmentation, ...]

    @property
    def unit_range(self) -> bool:
        return any(part.unit_range for part in self.parts)

    @property
    def numbers(self) -> int:
        return sum(part.numbers for part in self.parts)

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        for part, own in zip(self.parts, uniforms.split([p.numbers for p in self.parts]), strict=True):
            images = part(images, own)
        return images


def check_images(images: Tensor, name: str, channels: Collection[int] = ()) -> None:
    """Check that inputs are images with shape `[rows, channels, height, width]`.

    Args:
        images: Inputs `[rows, …]`.
        name: Name of the augmentation, for the error message.
        channels: Allowed numbers of channels. Default: any number.

    Raises:
        EnvariantError: If the inputs do not have this shape, or the number of channels is not allowed.
    """
    if images.dim() != 4 or (channels and images.shape[1] not in channels):
        kind = f"images of {' or '.join(map(str, channels))} channels" if channels else "images"
        raise EnvariantError(
            f"{name}: requires channels-first {kind}; got inputs of shape {tuple(images.shape[1:])}"
        )


def check_unit_range(images: Tensor, augmentation: Augmentation) -> None:
    """Check that pixels are in [0, 1].

    Args:
        images: Images.
        augmentation: Augmentation that requires this range, for the error message.

    Raises:
        EnvariantError: If a pixel value is outside this range.
    """
    low, high = (float(value) for value in images.aminmax())
    if low < -1e-3 or high > 1 + 1e-3:
        raise EnvariantError(
            f"{augmentation.base if augmentation.base != '+' else 'augmentation'}: changes of color need "
            f"pixels in [0, 1], got {low:.3g} to {high:.3g}; give images as bytes or in [0, 1]"
        )
