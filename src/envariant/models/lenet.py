"""LeNet as in the course report that `sjtu-2023` reproduces, with three convolutions and two dense layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from torch import nn

from envariant.core.errors import EnvariantError
from envariant.models.base import FeaturizerAndHead, ModelConfig


@final
@dataclass(frozen=True)
class LeNet(ModelConfig):
    """LeNet-5 (LeCun et al. 1998) with ReLU and max pooling.

    The layers are a 5×5 convolution with 6 channels, pooling, a 5×5 convolution with 16 channels, pooling, a
    convolution with 120 channels, a dense layer with 84 units, and the head. The kernel of the third
    convolution covers the whole remaining feature map; for 28×28 images, it is 5×5 as in the paper.
    """

    name: ClassVar[str] = "lenet"

    def build(self, input_shape: Sequence[int], outputs: int) -> nn.Module:
        if len(input_shape) != 3 or input_shape[1] != input_shape[2] or input_shape[1] < 12:
            raise EnvariantError(
                f"lenet: requires square, channels-first images [channels, height, width] of at least 12×12 "
                f"pixels; got inputs of shape {tuple(input_shape)} (mlp accepts any shape)"
            )
        left = (input_shape[1] // 2 - 4) // 2
        featurizer = nn.Sequential(
            nn.Conv2d(input_shape[0], 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 120, left), nn.ReLU(), nn.Flatten(),
            nn.Linear(120, 84), nn.ReLU(),
        )  # fmt: skip
        return FeaturizerAndHead(featurizer, nn.Linear(84, outputs))
