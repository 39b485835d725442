"""Discriminator of domain-adversarial training: a small network that predicts the environment."""

from itertools import pairwise

from torch import nn


def discriminator(inputs: int, outputs: int, width: int, depth: int, dropout: float = 0.0) -> nn.Sequential:
    """Build a network of linear layers and ReLUs, with dropout before each ReLU, as in DomainBed.

    Args:
        inputs: Number of inputs.
        outputs: Number of outputs.
        width: Width of the hidden layers.
        depth: Number of linear layers, at least 2.
        dropout: Dropout probability of hidden units.
    """
    widths = [inputs, *[width] * (depth - 1)]
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(widths):
        layers += [nn.Linear(wide, narrow), *([nn.Dropout(dropout)] if dropout else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))
