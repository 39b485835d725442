"""Multilayer perceptron; the default is the network of the IRM paper for Colored MNIST."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar, final

from pydantic import Field
from torch import nn

from envariant.core.errors import EnvariantError
from envariant.models.base import FeaturizerAndHead, ModelConfig, xavier

# Building takes a millisecond per layer.
_DEEPEST = 1000


@final
@dataclass(frozen=True)
class MLP(ModelConfig):
    """Multilayer perceptron with ReLU; the hidden layers are the featurizer, and the head is linear.

    Inputs are flattened. Initial weights are Xavier-uniform, and initial biases are zero. Arjovsky et al.
    2019 use hidden=390 and depth=2.

    Attributes:
        hidden: Width of every hidden layer, or a tuple with the width of each.
        depth: Number of hidden layers; ignored if `hidden` is a tuple.
    """

    name: ClassVar[str] = "mlp"
    hidden: int | tuple[int, ...] = 390
    depth: Annotated[int, Field(ge=1, le=_DEEPEST)] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.widths or any(w < 1 for w in self.widths):
            raise EnvariantError(f"mlp: hidden widths must be whole numbers of at least 1; got {self.hidden}")
        if len(self.widths) > _DEEPEST:
            raise EnvariantError(f"mlp: hidden must have at most {_DEEPEST} widths; got {len(self.widths):,}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each hidden layer."""
        return self.hidden if isinstance(self.hidden, tuple) else (self.hidden,) * self.depth

    def build(self, input_shape: Sequence[int], outputs: int) -> nn.Module:
        widths = (math.prod(input_shape), *self.widths)
        layers: list[nn.Module] = [nn.Flatten()]
        for wide, narrow in pairwise(widths):
            layers += [xavier(nn.Linear(wide, narrow)), nn.ReLU()]
        return FeaturizerAndHead(nn.Sequential(*layers), xavier(nn.Linear(widths[-1], outputs)))
