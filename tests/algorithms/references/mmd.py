"""MMD: every pair of rows by differences."""

import torch
from torch import Tensor

from algorithms.enrolment import IDENTICAL, ONE_IS_ERM, USUAL, penalized
from algorithms.references.coral import over_pairs


def mmd_distance(x: Tensor, y: Tensor, lowest: int = -3) -> Tensor:
    def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
        squared = ((a[:, None] - b[None]) ** 2).sum(dim=2)
        return sum(torch.exp(-(10.0**k) * squared) for k in range(lowest, 4)).mean()

    return mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)


ENROLLED = {
    "mmd": penalized(over_pairs(mmd_distance), USUAL | {IDENTICAL, ONE_IS_ERM}),
}
