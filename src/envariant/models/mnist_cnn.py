"""MNIST_CNN, the network DomainBed uses for Colored and Rotated MNIST."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from envariant.errors import EnvariantError
from envariant.models.contract import FeaturizerAndHead, ModelFamily


@final
class _FromFewChannels(nn.Conv2d):
    """A 3×3 convolution of one to three channels, as a product of matrices: weights times patches.

    So few numbers a pixel are less than convolutions are tuned for; and a product leaves its numbers in the
    order in which the norm is fast, so that nothing is copied on the way there or back.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - so named in nn.Conv2d
        rows, _, height, width = input.shape
        padded = functional.pad(input, (1, 1, 1, 1))
        shifted = [padded[..., i : i + height, j : j + width] for i in range(3) for j in range(3)]
        patches = torch.stack(shifted, dim=2).reshape(rows, -1, height * width)
        # The bias is the weight of a row of ones; to add it would be a pass over everything, both ways.
        patches = functional.pad(patches, (0, 0, 0, 1), value=1.0)
        assert self.bias is not None
        weight = torch.cat([self.weight.flatten(1), self.bias[:, None]], dim=1)
        return torch.bmm(weight.expand(rows, -1, -1), patches).unflatten(2, (height, width))


@final
class _ChannelsLast(nn.Module):
    """The same numbers with the channels side by side in memory, as fast convolutions want them.

    After the first norm and not before: with a map as large as an image it is slow so.
    """

    def forward(self, images: Tensor) -> Tensor:
        return images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


@final
class _ChannelMeans(nn.Module):
    """The mean of every channel over an image, taken and differentiated in the order of memory."""

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.permute(0, 2, 3, 1).flatten(1, 2)
        # `mean` would first copy what has half precision to float32; `sum` adds it up in float32 as it is.
        return pixels.sum(1) / pixels.shape[1]


@final
@dataclass(frozen=True)
class MNISTCNN(ModelFamily):
    """Four 3×3 convolutions (64, 128 with stride 2, 128, 128), each with ReLU and group norm, then the mean.

    Features are the 128 channel means; the head is linear. Gulrajani & Lopez-Paz 2020 (arXiv
    2007.01434), table 7. Group norm keeps no running statistics, so batches do not leak into evaluation.
    """

    name: ClassVar[str] = "mnist-cnn"

    def build(self, input_shape: Sequence[int], outputs: int) -> nn.Module:
        if len(input_shape) != 3:
            raise EnvariantError(
                f"mnist-cnn: needs images, channels first; got inputs of shape {tuple(input_shape)}"
            )
        layers: list[nn.Module] = []
        channels = input_shape[0]
        for number, (width, stride) in enumerate(((64, 1), (128, 2), (128, 1), (128, 1))):
            convolution = _FromFewChannels if channels <= 3 else nn.Conv2d
            layers += [
                convolution(channels, width, 3, stride=stride, padding=1),
                nn.ReLU(),
                nn.GroupNorm(8, width),
            ]
            if number == 0:
                layers.append(_ChannelsLast())
            channels = width
        featurizer = nn.Sequential(*layers, _ChannelMeans())
        return FeaturizerAndHead(featurizer, nn.Linear(channels, outputs))
