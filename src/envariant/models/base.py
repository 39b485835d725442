"""The interface of a model description, and modules made of a featurizer and a head.

Any `torch.nn.Module` can be trained. If it has the parts `featurizer` and `head`, penalties on features use
the featurizer's output; otherwise they use the module's output. A `ModelConfig` is a frozen description,
writable as a string such as `mlp(hidden=390)`, that builds a module for given shapes.
"""

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
        featurizer: Module from inputs `[rows, *input_shape]` to features `[rows, width]`.
        head: Module from features to raw outputs `[rows, outputs]`.
    """

    def __init__(self, featurizer: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.featurizer = featurizer
        self.head = head

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.featurizer(inputs))


class ModelConfig(ABC):
    """Frozen description of a network that adapts to input and output shapes.

    A subclass is a frozen dataclass; its fields, all with defaults, are the settings.
    """

    name: ClassVar[str]
    """Name under which the model is registered."""

    def __str__(self) -> str:
        return specs.describe(self.name, self)

    @abstractmethod
    def build(self, input_shape: Sequence[int], outputs: int) -> nn.Module:
        """Build a network with newly initialized weights.

        Args:
            input_shape: Shape of one row of inputs.
            outputs: Number of outputs per row.

        Raises:
            EnvariantError: If the network cannot take inputs of that shape.
        """


def xavier(layer: nn.Linear) -> nn.Linear:
    """Return the layer with Xavier-uniform weights and zero biases, as in the IRM and REx code."""
    with torch.no_grad():
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return layer
