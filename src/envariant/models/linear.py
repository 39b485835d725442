"""A linear model: the featurizer only flattens, the head is everything."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from envariant.models.base import FeaturizerAndHead, ModelConfig, xavier


@final
class _Linear(nn.Linear):
    """W x + b, written with the weights first.

    Many such models on the same rows are then one matrix product under `vmap`, and not one each; for that
    their weights have to lie side by side, hence the copy.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        products = self.weight.clone(memory_format=torch.contiguous_format) @ input.T + self.bias[:, None]
        # One row becomes a column by its shape, not by its strides, which would part the gradients' product.
        return products.T if len(products) > 1 else products.reshape(-1, 1)


@final
@dataclass(frozen=True)
class Linear(ModelConfig):
    """W x + b on the flattened inputs; Xavier-uniform weights, zero biases."""

    name: ClassVar[str] = "linear"

    def build(self, input_shape: Sequence[int], outputs: int) -> nn.Module:
        return FeaturizerAndHead(nn.Flatten(), xavier(_Linear(math.prod(input_shape), outputs)))
