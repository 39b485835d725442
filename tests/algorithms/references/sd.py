"""Spectral decoupling: the mean squared logit, environment by environment."""

from torch import Tensor

from algorithms.enrolment import ORDERS, mean_and, penalized
from algorithms.problems import Params, Problem


def penalty(problem: Problem, p: Params) -> Tensor:
    return sum((problem(p, x)[1] ** 2).mean() for x, _ in problem.environments()) / 3


ENROLLED = {
    "sd": penalized(mean_and(penalty), ORDERS),
}
