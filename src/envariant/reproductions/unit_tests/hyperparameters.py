"""Hyperparameters and initial weights of the linear unit tests, by model seed.

Python's generator, seeded with the model seed + 1000, draws the hyperparameters; PyTorch's generator with the
same seed draws the initial layer. Model seed 0 has default hyperparameters.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from jaxtyping import Float

Method = Literal["ERM", "IRMv1", "ANDMask", "IGA", "Oracle"]
METHODS: tuple[Method, ...] = ("ERM", "IRMv1", "ANDMask", "IGA", "Oracle")
MODEL_SEEDS = range(20)
_OFFSET = 1000


@final
@dataclass(frozen=True)
class Hyperparameters:
    """Hyperparameters of one run.

    Attributes:
        learning_rate: Learning rate.
        weight_decay: L2 coefficient, added to the gradient.
        strength: Penalty weight λ in [0, 1] for IRMv1, penalty coefficient for IGA, agreement threshold τ for
            ANDMask, and 0 for ERM and the oracle.
    """

    learning_rate: float
    weight_decay: float
    strength: float = 0.0


_DEFAULTS: dict[Method, float] = {"IRMv1": 0.9, "ANDMask": 0.9, "IGA": 1000.0}


def hyperparameters(method: Method, seed: int) -> Hyperparameters:
    """Return the hyperparameters that the released program uses for a method and a model seed.

    Args:
        method: Name of the method.
        seed: Model seed; 0 for the defaults.
    """
    if seed == 0:
        return Hyperparameters(1e-3, 0.0, _DEFAULTS.get(method, 0.0))
    generator = random.Random(seed + _OFFSET)
    steep = method == "ANDMask"
    rate = 10 ** generator.uniform(-4, 0 if steep else -2)
    decay = 10 ** generator.uniform(-5, 0) if steep else 10 ** generator.uniform(-6, -2)
    match method:
        case "IRMv1":
            return Hyperparameters(rate, decay, 1 - 10 ** generator.uniform(-3, -0.3))
        case "ANDMask":
            return Hyperparameters(rate, decay, generator.uniform(0.8, 1))
        case "IGA":
            return Hyperparameters(rate, decay, 10 ** generator.uniform(1, 5))
        case _:
            return Hyperparameters(rate, decay)


def initial_weights(seeds: Sequence[int], inputs: int) -> Float[np.ndarray, "seeds inputs_and_bias"]:
    """Return the weights with which PyTorch initializes a linear layer of one output, for each model seed.

    Args:
        seeds: Model seeds.
        inputs: Number of inputs.

    Returns:
        Weights, and the bias as the last column, float32.
    """
    bound, layers = 1 / math.sqrt(inputs), []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed + _OFFSET)
        parts = (torch.empty(n).uniform_(-bound, bound, generator=generator) for n in (inputs, 1))
        layers.append(torch.cat(tuple(parts)).numpy())
    return np.stack(layers)
