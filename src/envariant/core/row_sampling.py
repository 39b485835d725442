"""Sample the rows of minibatches, as a pure function of random-number keys.

The rows of all environments are numbered in the order of the environments.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor

from envariant.core import counter_rng, step_context


def uniform_rows(
    keys: Int[Tensor, "*keys"], below: Int[Tensor, " count"], starts: Int[Tensor, " count"]
) -> Int[Tensor, "*keys count"]:
    """Return random row numbers; all rows of an environment are equally likely.

    Args:
        keys: Keys of the steps, as returned by `counter_rng.step_keys`.
        below: Number of rows of the environment of each sampled row.
        starts: Number of the first row of the environment of each sampled row.
    """
    return counter_rng.integers(keys, step_context.ROWS, below) + starts


def weight_bounds(weights: Sequence[Tensor]) -> Float[Tensor, " rows"]:
    """Return the cumulative weights of all rows; those of environment k increase from k to k + 1.

    Args:
        weights: Sampling weight of each row, `[rows]`, by environment.
    """
    sums = [each.double().cumsum(0) for each in weights]
    return torch.cat([k + (total / total[-1]) for k, total in enumerate(sums)])


def weighted_points(
    keys: Int[Tensor, "*keys"], owners: Int[Tensor, " count"]
) -> Float[Tensor, "*keys count"]:
    """Return random points between k and k + 1, to be located in the result of `weight_bounds`.

    Args:
        keys: Keys of the steps, as returned by `counter_rng.step_keys`.
        owners: Number k of the environment of each sampled row.
    """
    return counter_rng.uniforms(keys, step_context.ROWS, len(owners)).double() + owners


def first_rows(sizes: Sequence[int]) -> list[int]:
    """Return the number of the first row of each environment, given the environments' numbers of rows."""
    return [end - size for end, size in zip(accumulate(sizes), sizes, strict=True)]
