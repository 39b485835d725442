"""What the engine asks of a model: nothing but to be a `torch.nn.Module`.

If a module has the parts `featurizer` and `head`, penalties on features see what passes between them;
otherwise its output is taken for both. A model *family* is a frozen description, writable as a string
such as `mlp(hidden=390)`, that builds such a module for given shapes.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from envariant.core import specs


@final
class FeaturizerAndHead(nn.Module):
    """`head(featurizer(inputs))`.

    Args:
        featurizer: inputs `[rows, *input_shape]` to features `[rows, width]`.
        head: features to raw outputs `[rows, outputs]`.
    """

    def __init__(self, featurizer: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.featurizer = featurizer
        self.head = head

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.featurizer(inputs))


class ModelConfig(ABC):
    """A frozen description of a network that fits itself to the shapes it is given."""

    name: ClassVar[str]

    def __str__(self) -> str:
        return specs.describe(self.name, self, type(self)())

    @abstractmethod
    def build(self, input_shape: Sequence[int], outputs: int) -> nn.Module:
        """A new network with freshly drawn weights.

        Args:
            input_shape: of one row.
            outputs: numbers per row.

        Raises:
            EnvariantError: the network cannot take inputs of that shape.
        """


def xavier(layer: nn.Linear) -> nn.Linear:
    """The layer with Xavier-uniform weights and zero biases, as in the IRM and REx code."""
    with torch.no_grad():
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return layer
