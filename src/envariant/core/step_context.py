"""What an algorithm is told of the step at hand: how many were made, the learning rate, and random numbers.

In a stack of replicas each of these is a tensor that stands for every replica's own. Random numbers come
by counting, so an algorithm stays a pure function: asked again, it draws the same.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from envariant.core import counter_rng
from envariant.core.errors import EnvariantError

# Streams of random numbers within a step: the engine's own, then so many for each part of an algorithm.
ROWS, AUGMENTATION = 0, 1
_PARTS, _DRAWS = 16, 16


@final
@dataclass(frozen=True, eq=False)
class StepContext:
    """One step of one replica.

    Attributes:
        step: updates already made; the first step has 0.
        learning_rate: of the run's optimizer.
        key: from which the step's random numbers follow; None for those who do not say that they draw.
        part: the number of the part that asks, so that no two draw the same numbers.
    """

    step: Any = 0
    learning_rate: Any = 1e-3
    key: Tensor | None = None
    part: int = 0

    @classmethod
    def at(cls, step: int, seed: int = 0, learning_rate: float = 1e-3) -> "StepContext":
        """A step by hand, outside of any run."""
        keys = counter_rng.step_keys([seed], step, 1, torch.device("cpu"))
        return cls(step, learning_rate, keys[0, 0])

    def of_part(self, part: int) -> "StepContext":
        """The same step as that part is to see it."""
        return replace(self, part=part)

    def uniform(self, *shape: int, draw: int = 0, like: Tensor) -> Tensor:
        """Numbers in [0, 1) of that shape, in the type and on the device of `like`.

        Args:
            shape: empty for a single number.
            draw: which of the part's draws, 0 to 15; the same draw gives the same numbers.
            like: whose type and device to take.

        Raises:
            EnvariantError: the algorithm does not say that it draws, so that it was given no key.
        """
        if self.key is None:
            raise EnvariantError("algorithm: draws random numbers; say so in the part, as draws = True")
        stream = _PARTS + self.part * _DRAWS + draw
        return (
            counter_rng.uniforms(self.key.to(like.device), stream, math.prod(shape))
            .reshape(shape)
            .to(like.dtype)
        )

    def normal(self, *shape: int, draw: int = 0, like: Tensor) -> Tensor:
        """Standard normal numbers, from two uniform ones each (Box & Muller 1958)."""
        # 1 − u lies in (0, 1], so that its logarithm is finite.
        size, angle = self.uniform(2, *shape, draw=draw, like=like)
        return (-2 * torch.log1p(-size)).sqrt() * torch.cos(2 * math.pi * angle)

    def permutation(self, count: int, *, draw: int = 0, like: Tensor) -> Tensor:
        """The numbers 0 … count − 1 in random order."""
        return self.uniform(count, draw=draw, like=like).argsort()

    def symmetric_beta(self, alpha: Any, *shape: int, draw: int = 0, like: Tensor) -> Tensor:
        """Numbers from Beta(α, α), from two uniform ones each (Ulrich 1984, by way of Student's t)."""
        size, angle = self.uniform(2, *shape, draw=draw, like=like)
        cosine = torch.cos(2 * math.pi * angle)
        # As t² = ν(u^(−2/ν) − 1)·cos², written so that no power overflows where α is small.
        s = (1 - size).pow(1 / alpha)
        return 0.5 * (1 + (1 - s).sqrt() * cosine / (s + (1 - s) * cosine.square()).sqrt())


START = StepContext(key=torch.zeros((), dtype=torch.int64))
"""The first step, with a key of 0: for calling a part by hand."""
