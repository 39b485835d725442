"""MNIST_CNN, the network DomainBed uses for Colored and Rotated MNIST."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor, nn

from envariant.errors import EnvariantError
from envariant.models.contract import FeaturizerAndHead, ModelFamily


@final
class _ChannelsLast(nn.Module):
    """The same numbers with the channels side by side in memory, as fast convolutions want them.

    Here and not at the input: of two input channels nothing is gained, and the first norm is slow so.
    """

    def forward(self, images: Tensor) -> Tensor:
        return images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


@final
class _ChannelMeans(nn.Module):
    """The mean of every channel over an image, taken and differentiated in the order of memory."""

    def forward(self, images: Tensor) -> Tensor:
        return images.permute(0, 2, 3, 1).flatten(1, 2).mean(1)


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
            layers += [
                nn.Conv2d(channels, width, 3, stride=stride, padding=1),
                nn.ReLU(),
                nn.GroupNorm(8, width),
            ]
            if number == 0:
                layers.append(_ChannelsLast())
            channels = width
        featurizer = nn.Sequential(*layers, _ChannelMeans())
        return FeaturizerAndHead(featurizer, nn.Linear(channels, outputs))
