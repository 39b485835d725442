"""Stacks of multilayer perceptrons with optional dropout, which the caller can also use in evaluation.

The released programs of the REx paper never put a network into evaluation mode. Dropout is therefore an
argument of each pass here, not a mode of the network.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

Activation = Callable[[Tensor], Tensor]


def initial(widths: Sequence[int], runs: int, rng: np.random.Generator) -> list[Tensor]:
    """Return the initial parameters of several networks: Xavier-uniform weights and zero biases.

    Args:
        widths: Number of inputs, width of each hidden layer, and number of outputs.
        runs: Number of networks.
        rng: Random number generator.

    Returns:
        For each layer, weights `[runs, inputs, outputs]` and biases `[runs, 1, outputs]`.
    """
    params: list[Tensor] = []
    for inputs, outputs in pairwise(widths):
        bound = math.sqrt(6 / (inputs + outputs))
        weights = rng.uniform(-bound, bound, (runs, inputs, outputs)).astype(np.float32)
        params += [torch.from_numpy(weights), torch.zeros(runs, 1, outputs)]
    return [param.requires_grad_() for param in params]


def logits(
    params: Sequence[Tensor], inputs: Tensor, activation: Activation, dropout: np.random.Generator | None
) -> Tensor:
    """Return the logit of every row in every network, `[runs, rows]`.

    Args:
        params: Parameters as returned by `initial`, for one output.
        inputs: Inputs `[rows, features]`, the same for all networks.
        activation: Activation of the hidden layers.
        dropout: Random number generator of dropout masks, which are applied after each activation with
            probability 0.5; None for no dropout.
    """
    hidden = inputs.expand(len(params[0]), *inputs.shape)
    for weights, biases in zip(params[:-2:2], params[1:-2:2], strict=True):
        hidden = activation(torch.baddbmm(biases, hidden, weights))
        if dropout is not None:
            hidden = hidden * dropout_mask(hidden.shape, dropout)
    return torch.baddbmm(params[-1], hidden, params[-2]).squeeze(2)


def dropout_mask(shape: Sequence[int], rng: np.random.Generator) -> Tensor:
    """Return a mask for dropout with probability 0.5: every entry is 0 or 2, stored as an unsigned byte.

    Args:
        shape: Shape of the mask.
        rng: Random number generator. One random bit per entry is used, which is faster than a random float.
    """
    count = math.prod(shape)
    bits = np.unpackbits(np.frombuffer(rng.bytes(-(-count // 8)), np.uint8), count=count)
    return torch.from_numpy(bits).mul_(2).view(*shape)
