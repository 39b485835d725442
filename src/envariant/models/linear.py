"""A linear model: the featurizer only flattens, the head is everything."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from torch import nn

from envariant.models.contract import FeaturizerAndHead, ModelFamily, xavier_linear


@final
@dataclass(frozen=True)
class Linear(ModelFamily):
    """W x + b on the flattened inputs; Xavier-uniform weights, zero biases."""

    name: ClassVar[str] = "linear"

    def build(self, input_shape: Sequence[int], outputs: int) -> nn.Module:
        return FeaturizerAndHead(nn.Flatten(), xavier_linear(math.prod(input_shape), outputs))
