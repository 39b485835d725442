"""Spectral decoupling: the mean squared logit."""

from torch import Tensor

from algorithms.enrolment import ORDERS, mean_and, penalized
from algorithms.problems import Params, Problem


def penalty(problem: Problem, p: Params) -> Tensor:
    return (problem(p, problem.batch.inputs)[1] ** 2).mean()


ENROLLED = {
    "sd": penalized(mean_and(penalty), ORDERS),
}
