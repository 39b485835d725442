"""MNIST_CNN, the network of DomainBed for Colored and Rotated MNIST."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from envariant.core.errors import EnvariantError
from envariant.models.base import FeaturizerAndHead, ModelConfig


@final
class _FromFewChannels(nn.Conv2d):
    """3×3 convolution of one to three channels, computed as a matrix product of weights and patches.

    With so few channels, PyTorch's convolution is slow. The result of the product also has the memory layout
    that group norm requires, so that neither outputs nor gradients are copied.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels, width, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in nn.Conv2d
        rows, _, height, width = input.shape
        padded = functional.pad(input, (1, 1, 1, 1))
        shifted = [padded[..., i : i + height, j : j + width] for i in range(3) for j in range(3)]
        # The bias is the weight of an extra channel of ones, which saves a pass over outputs and gradients.
        patches = torch.cat([*shifted, torch.ones_like(input[:, :1])], dim=1).flatten(2)
        assert self.bias is not None
        weight = torch.cat([self.weight.permute(0, 2, 3, 1).flatten(1), self.bias[:, None]], dim=1)
        return torch.bmm(weight.expand(rows, -1, -1), patches).unflatten(2, (height, width))


@final
class _ChannelsLast(nn.Module):
    """Layer that converts its inputs to the channels-last memory layout, in which convolutions are faster.

    It follows the first norm layer, because group norm of full-size maps is slow in that layout.
    """

    def forward(self, images: Tensor) -> Tensor:
        return images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


@final
class _ChannelMeans(nn.Module):
    """Layer that averages each channel over the image, reading values in memory order."""

    def forward(self, images: Tensor) -> Tensor:
        return images.permute(0, 2, 3, 1).flatten(1, 2).mean(1)


@final
@dataclass(frozen=True)
class MNISTCNN(ModelConfig):
    """CNN with four 3×3 convolutions (64, 128 with stride 2, 128, 128 channels), with ReLU and group norm.

    The features are the spatial means of the 128 channels; the head is linear. Gulrajani & Lopez-Paz 2020
    (arXiv 2007.01434), table 7. Group norm has no running statistics, so evaluation does not depend on
    training batches.
    """

    name: ClassVar[str] = "mnist-cnn"

    def build(self, input_shape: Sequence[int], outputs: int) -> nn.Module:
        if len(input_shape) != 3:
            raise EnvariantError(
                f"mnist-cnn: requires channels-first images [channels, height, width]; got inputs of shape "
                f"{tuple(input_shape)}"
            )
        layers: list[nn.Module] = []
        channels = input_shape[0]
        for number, (width, stride) in enumerate(((64, 1), (128, 2), (128, 1), (128, 1))):
            if channels <= 3:
                layers.append(_FromFewChannels(channels, width))
            else:
                layers.append(nn.Conv2d(channels, width, 3, stride=stride, padding=1))
            layers += [nn.ReLU(), nn.GroupNorm(8, width)]
            if number == 0:
                layers.append(_ChannelsLast())
            channels = width
        featurizer = nn.Sequential(*layers, _ChannelMeans())
        return FeaturizerAndHead(featurizer, nn.Linear(channels, outputs))
