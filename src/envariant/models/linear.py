"""Linear model: the featurizer flattens the inputs, and the head is a linear layer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from envariant.models.base import FeaturizerAndHead, ModelConfig, xavier


@final
class LinearLayer(nn.Linear):
    """Linear layer W x + b, computed as a matrix product with the weights as its first factor.

    Under `vmap`, many models with the same inputs then need a single matrix product. The weights are copied,
    because the product requires contiguous weights.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        products = self.weight.clone(memory_format=torch.contiguous_format) @ input.T + self.bias[:, None]
        # The strides of a transposed single row would split the matrix product for the gradients.
        return products.T if len(products) > 1 else products.reshape(-1, 1)


@final
@dataclass(frozen=True)
class Linear(ModelConfig):
    """Linear model W x + b on flattened inputs, initialized with Xavier-uniform weights and zero biases."""

    name: ClassVar[str] = "linear"

    def build(self, input_shape: Sequence[int], outputs: int) -> nn.Module:
        return FeaturizerAndHead(nn.Flatten(), xavier(LinearLayer(math.prod(input_shape), outputs)))
