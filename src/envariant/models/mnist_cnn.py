"""MNIST_CNN, the network DomainBed uses for Colored and Rotated MNIST."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from torch import nn

from envariant.errors import EnvariantError
from envariant.models.contract import FeaturizerAndHead, ModelFamily


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
        for width, stride in ((64, 1), (128, 2), (128, 1), (128, 1)):
            layers += [
                nn.Conv2d(channels, width, 3, stride=stride, padding=1),
                nn.ReLU(),
                nn.GroupNorm(8, width),
            ]
            channels = width
        featurizer = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return FeaturizerAndHead(featurizer, nn.Linear(channels, outputs))
