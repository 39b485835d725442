"""Base class of model descriptions, and `FeaturizerAndHead`, a module with a featurizer and a head.

Any `torch.nn.Module` can be trained. If it has the submodules `featurizer` and `head`, penalties on features
use the output of the featurizer; otherwise they use the output of the module. A `ModelConfig` builds a module
for given shapes and can be written as a string such as `mlp(hidden=390)`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from envariant.core import specs


@final
class FeaturizerAndHead(nn.Module):
    """Module that computes `head(featurizer(inputs))`.

    Args:
        featurizer: Module that maps inputs `[rows, *input_shape]` to features `[rows, width]`.
        head: Module that maps features to raw outputs `[rows, outputs]`.
    """

    def __init__(self, featurizer: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.featurizer = featurizer
        self.head = head

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.featurizer(inputs))


class ModelConfig(ABC):
    """Base class of model descriptions, which build networks for given input and output shapes.

    A subclass is a frozen dataclass. Its fields, all with defaults, are the settings of the model. Types and
    bounds of the fields, such as `Annotated[int, Field(ge=1)]`, are checked at construction.
    """

    name: ClassVar[str]
    """Registered name of the model."""

    def __post_init__(self) -> None:
        specs.validate(self, self.name)

    def __str__(self) -> str:
        return specs.describe(self.name, self)

    @abstractmethod
    def build(self, input_shape: Sequence[int], outputs: int) -> nn.Module:
        """Build a network with newly initialized weights.

        Args:
            input_shape: Shape of the inputs of one row.
            outputs: Number of outputs per row.

        Raises:
            EnvariantError: If the network does not accept inputs of this shape.
        """

    def size(self, input_shape: Sequence[int], outputs: int) -> float:
        """Return the total number of values in parameters and buffers, without allocating memory for them.

        Args:
            input_shape: Shape of the inputs of one row.
            outputs: Number of outputs per row.

        Returns:
            Number of values; infinity if a tensor is too large for PyTorch.

        Raises:
            EnvariantError: If the network does not accept inputs of this shape.
        """
        try:
            with torch.device("meta"):
                module = self.build(input_shape, outputs)
        except (RuntimeError, TypeError) as error:
            if "overflow" in str(error).lower():
                return math.inf
            raise
        return sum(tensor.numel() for tensor in (*module.parameters(), *module.buffers()))


def xavier(layer: nn.Linear) -> nn.Linear:
    """Initialize a layer with Xavier-uniform weights and zero biases, as in the IRM and REx code."""
    with torch.no_grad():
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return layer
