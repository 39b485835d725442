"""`StepContext`: step number, learning rate and random numbers of the current step.

In a replica stack, these values are tensors instead of Python numbers. Random numbers depend only on this
context, so an algorithm is a pure function: a second call uses the same random numbers.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from envariant.core import counter_rng
from envariant.core.errors import EnvariantError

# Streams of random numbers within a step: the engine's two, then `_DRAWS` for each part of an algorithm.
ROWS, AUGMENTATION = 0, 1
_PARTS, _DRAWS = 16, 16


@final
@dataclass(frozen=True, eq=False)
class StepContext:
    """Step number, learning rate and random-number key of one step of one replica.

    Attributes:
        step: Number of completed updates; 0 in the first step.
        learning_rate: Learning rate of the run's optimizer at this step.
        key: Key of the step's random numbers; None for algorithms that are not `stochastic`.
        part: Index of the current part of the algorithm; every part has separate random numbers.
        weight_decay: Twice the algorithm's L2 coefficient `l2`. A training step that updates the parameters
            without the optimizer adds this multiple of each parameter to the parameter's gradient.
    """

    step: Any = 0
    learning_rate: Any = 1e-3
    key: Tensor | None = None
    part: int = 0
    weight_decay: Any = 0.0

    @classmethod
    def at(cls, step: int, seed: int = 0, learning_rate: float = 1e-3) -> "StepContext":
        """Create a context for calling a part of an algorithm outside of a run.

        Args:
            step: Number of completed updates.
            seed: Seed of the random numbers.
            learning_rate: Learning rate of the step.
        """
        keys = counter_rng.step_keys([seed], step, 1, torch.device("cpu"))
        return cls(step, learning_rate, keys[0, 0])

    def of_part(self, part: int) -> "StepContext":
        """Return the context of this step for another part of the algorithm.

        Args:
            part: Index of the part.
        """
        return replace(self, part=part)

    def uniform(self, *shape: int, draw: int = 0, like: Tensor) -> Tensor:
        """Return random numbers that are uniformly distributed in [0, 1).

        Args:
            shape: Shape of the result; empty for a single number.
            draw: Index of the random sample within the part, 0 to 15. Calls with the same index give the same
                numbers.
            like: Tensor that determines data type and device of the result.

        Raises:
            EnvariantError: If `key` is None because the algorithm is not declared stochastic.
        """
        if self.key is None:
            raise EnvariantError(
                "algorithm: draws random numbers but is not declared stochastic; set stochastic = True in "
                "the part that draws them"
            )
        stream = _PARTS + self.part * _DRAWS + draw
        return (
            counter_rng.uniforms(self.key.to(like.device), stream, math.prod(shape))
            .reshape(shape)
            .to(like.dtype)
        )

    def normal(self, *shape: int, draw: int = 0, like: Tensor) -> Tensor:
        """Return standard normal random numbers, each computed from two uniform ones (Box & Muller 1958).

        Args:
            shape: Shape of the result; empty for a single number.
            draw: Index of the random sample within the part, 0 to 15. Calls with the same index give the same
                numbers.
            like: Tensor that determines data type and device of the result.
        """
        # 1 − u lies in (0, 1], so that its logarithm is finite.
        size, angle = self.uniform(2, *shape, draw=draw, like=like)
        return (-2 * torch.log1p(-size)).sqrt() * torch.cos(2 * math.pi * angle)

    def permutation(self, count: int, *, draw: int = 0, like: Tensor) -> Tensor:
        """Return a random permutation of the integers from 0 to `count` − 1.

        Args:
            count: Length of the permutation.
            draw: Index of the random sample within the part, 0 to 15. Calls with the same index give the same
                numbers.
            like: Tensor that determines the device of the result.
        """
        return self.uniform(count, draw=draw, like=like).argsort()

    def symmetric_beta(self, alpha: Any, *shape: int, draw: int = 0, like: Tensor) -> Tensor:
        """Return Beta(α, α) random numbers; each is computed from two uniform numbers (Ulrich 1984).

        Args:
            alpha: Parameter α of the distribution.
            shape: Shape of the result; empty for a single number.
            draw: Index of the random sample within the part, 0 to 15. Calls with the same index give the same
                numbers.
            like: Tensor that determines data type and device of the result.
        """
        size, angle = self.uniform(2, *shape, draw=draw, like=like)
        cosine = torch.cos(2 * math.pi * angle)
        # As t² = ν(u^(−2/ν) − 1)·cos², written so that no power overflows if α is small.
        s = (1 - size).pow(1 / alpha)
        return 0.5 * (1 + (1 - s).sqrt() * cosine / (s + (1 - s) * cosine.square()).sqrt())


START = StepContext(key=torch.zeros((), dtype=torch.int64))
"""Context of the first step with key 0, for calling a part of an algorithm outside of a run."""
