"""The discriminator of domain-adversarial training: a small network that tries to tell environments apart."""

from itertools import pairwise

from torch import nn


def discriminator(inputs: int, outputs: int, width: int, depth: int, dropout: float = 0.0) -> nn.Sequential:
    """`depth` linear layers with ReLU between them; dropout comes before each ReLU, as in DomainBed.

    Args:
        inputs: numbers in.
        outputs: numbers out.
        width: of the hidden layers.
        depth: linear layers, at least 2.
        dropout: share of hidden numbers dropped.
    """
    widths = [inputs, *[width] * (depth - 1)]
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(widths):
        layers += [nn.Linear(wide, narrow), *([nn.Dropout(dropout)] if dropout else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))
