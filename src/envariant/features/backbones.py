"""Frozen backbones, which map inputs to features: networks for images and other arrays, and text encoders."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from envariant.core import specs
from envariant.core.counter_rng import private_random_numbers
from envariant.core.errors import EnvariantError, first_line
from envariant.models import ModelConfig


class TextEncoder(ABC):
    """Base class of frozen text encoders, which map texts to features.

    A subclass is a frozen dataclass; its fields, all with defaults, are the settings.
    """

    name: ClassVar[str]
    """Registered name of the encoder."""

    def __post_init__(self) -> None:
        specs.validate(self, self.name)

    def __str__(self) -> str:
        return specs.describe(self.name, self)

    @property
    @abstractmethod
    def width(self) -> int:
        """Number of features."""

    @abstractmethod
    def identity(self) -> str:
        """Return a string that identifies the weights and the preprocessing, for the cache key."""

    @abstractmethod
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return the features of texts, float32 `[texts, width]`.

        Args:
            texts: Texts; missing values are empty strings.
        """


@final
@dataclass(frozen=True, eq=False)
class Extractor:
    """Network in evaluation mode that maps inputs to features.

    Attributes:
        module: Network from inputs `[rows, *shape]` to features `[rows, width]`.
        width: Number of features.
        mean: Mean that the network expects to be subtracted from each channel, for pixels in [0, 1]; None if
            unknown.
        deviation: Standard deviation by which the network expects each channel to be divided; None if
            unknown.
    """

    module: nn.Module
    width: int
    mean: tuple[float, ...] | None
    deviation: tuple[float, ...] | None

    @cached_property
    def identity(self) -> str:
        """Digest of architecture, weights, and expected mean and standard deviation of the pixels."""
        digest = hashlib.blake2b(repr((self.module, self.mean, self.deviation)).encode(), digest_size=16)
        for name, value in self.module.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def extractor(backbone: ModelConfig | nn.Module, shape: Sequence[int]) -> Extractor:
    """Freeze a network and return its featurizer, or the whole network if it has no featurizer.

    Random initial weights are generated with a fixed seed, so they are the same in every process.

    Args:
        backbone: Model configuration from which the network is built, or a network, which is used unchanged.
        shape: Shape of one row of inputs.

    Raises:
        EnvariantError: If the network does not accept the inputs, or does not return a vector for each row.
    """
    if isinstance(backbone, nn.Module):
        module = backbone
    else:
        with private_random_numbers(0, torch.device("cpu")):
            module = backbone.build(shape, 1)
    part: Any = getattr(module, "featurizer", module)
    network = part.eval().requires_grad_(False)
    try:
        with torch.inference_mode():
            features: Any = network(torch.zeros(2, *shape))
    except Exception as error:
        raise EnvariantError(
            f"features: {name_of(backbone)} cannot take inputs of shape {tuple(shape)} ({first_line(error)})"
        ) from None
    if not isinstance(features, Tensor) or features.dim() < 2 or len(features) != 2:
        got = f"shape {tuple(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
        raise EnvariantError(
            f"features: {name_of(backbone)} must return a tensor with one row per input; for 2 inputs, it "
            f"returns {got}"
        )
    # Networks of timm have the pixels of their training in `pretrained_cfg`.
    known: Any = getattr(part, "pretrained_cfg", {})
    mean, deviation = (
        getattr(part, own, known.get(key))
        for own, key in (("pixel_mean", "mean"), ("pixel_deviation", "std"))
    )
    return Extractor(network, features.flatten(1).shape[1], mean, deviation)


def name_of(backbone: object) -> str:
    """Return the name and settings of a backbone; for a PyTorch module, the name of its class."""
    return type(backbone).__name__ if isinstance(backbone, nn.Module) else str(backbone)
