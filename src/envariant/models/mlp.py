"""Multilayer perceptron; the default is the network of the IRM paper for Colored MNIST."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, final

import torch
from pydantic import Field
from torch import nn

from envariant.core.errors import EnvariantError
from envariant.models.base import FeaturizerAndHead, ModelConfig, xavier
from envariant.models.dropout import Dropout

# Building takes a millisecond per layer.
_DEEPEST = 1000
_ACTIVATIONS = {"relu": nn.ReLU, "leaky-relu": nn.LeakyReLU, "tanh": nn.Tanh}


@final
@dataclass(frozen=True)
class MLP(ModelConfig):
    """Multilayer perceptron; the hidden layers are the featurizer, and the head is linear.

    Inputs are flattened. Arjovsky et al. 2019 use hidden=390 and depth=2.

    Attributes:
        hidden: Width of every hidden layer, or a tuple with the width of each.
        depth: Number of hidden layers; ignored if `hidden` is a tuple.
        batch_norm: Whether to normalize the inputs of every activation with the mean and variance of the
            rows that pass together (Ioffe & Szegedy 2015), and in evaluation with running means of both.
            Algorithms with a gradient per environment pass each environment separately.
        activation: Activation of the hidden layers: "relu", "leaky-relu" (slope 0.01) or "tanh".
        dropout: Probability that a hidden activation is set to zero in training.
        dropout_position: Whether dropout comes "after" or "before" the activation.
        init: Initial weights: "xavier" for Xavier-uniform weights and zero biases, or "kaiming-normal" for
            normal weights with variance 2 / inputs (He et al. 2015) and biases of 0.01.
    """

    name: ClassVar[str] = "mlp"
    hidden: int | tuple[int, ...] = 390
    depth: Annotated[int, Field(ge=1, le=_DEEPEST)] = 2
    batch_norm: bool = field(default=False, kw_only=True)
    activation: Literal["relu", "leaky-relu", "tanh"] = field(default="relu", kw_only=True)
    dropout: Annotated[float, Field(ge=0, lt=1)] = field(default=0.0, kw_only=True)
    dropout_position: Literal["after", "before"] = field(default="after", kw_only=True)
    init: Literal["xavier", "kaiming-normal"] = field(default="xavier", kw_only=True)

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
            layers += [self._layer(wide, narrow), *self._between(narrow)]
        return FeaturizerAndHead(nn.Sequential(*layers), self._layer(widths[-1], outputs))

    def _layer(self, inputs: int, outputs: int) -> nn.Linear:
        layer = nn.Linear(inputs, outputs)
        if self.init == "xavier":
            return xavier(layer)
        with torch.no_grad():
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.constant_(layer.bias, 0.01)
        return layer

    def _between(self, width: int) -> list[nn.Module]:
        parts: list[nn.Module] = [_ACTIVATIONS[self.activation]()]
        if self.dropout:
            parts.insert(self.dropout_position == "after", Dropout(self.dropout))
        return [nn.BatchNorm1d(width), *parts] if self.batch_norm else parts
