"""Information bottleneck: the diagonal of each covariance."""

import torch
from torch import Tensor

from algorithms.enrolment import USUAL, mean_and, penalized
from algorithms.problems import Params, Problem
from algorithms.references.coral import covariance


def penalty(problem: Problem, p: Params) -> Tensor:
    return sum(torch.diag(covariance(h)).mean() for h in problem.features(p)) / 3


ENROLLED = {
    "ib-erm": penalized(mean_and(penalty), USUAL),
}
