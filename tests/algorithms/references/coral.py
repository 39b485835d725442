"""CORAL: pairs of environments one by one."""

from collections.abc import Callable
from itertools import combinations

from torch import Tensor

from algorithms.enrolment import IDENTICAL, ONE_IS_ERM, USUAL, Reference, mean_and, penalized


def covariance(h: Tensor) -> Tensor:
    centered = h - h.mean(dim=0)
    return centered.T @ centered / (len(h) - 1)


def coral_distance(x: Tensor, y: Tensor) -> Tensor:
    means = ((x.mean(dim=0) - y.mean(dim=0)) ** 2).mean()
    return means + ((covariance(x) - covariance(y)) ** 2).mean()


def over_pairs(distance: Callable[[Tensor, Tensor], Tensor]) -> Reference:
    return mean_and(
        lambda problem, p: sum(distance(x, y) for x, y in combinations(problem.features(p), 2)) / 3
    )


ENROLLED = {
    "coral": penalized(over_pairs(coral_distance), USUAL | {IDENTICAL, ONE_IS_ERM}),
}
