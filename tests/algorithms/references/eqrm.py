"""EQRM: the quantile by root finding and its slopes by the implicit function theorem."""

import math

import torch
from scipy.optimize import brentq
from scipy.stats import norm
from torch import Tensor

from algorithms.enrolment import L2, ONE_IS_ERM, USUAL, Enrolled, square_norm
from algorithms.problems import Differentiate, Params, Problem
from algorithms.spec_values import vector


def smooth_quantile(risks: list[float], alpha: float) -> float:
    """The α-quantile of the Gaussian kernel density estimate with EQRM's bandwidth, by root finding."""
    mean = sum(risks) / len(risks)
    sd = math.sqrt(sum((r - mean) ** 2 for r in risks) / (len(risks) - 1))
    b = 1.06 * sd * len(risks) ** -0.2

    def above(k: float) -> float:
        return sum(norm.cdf((k - r) / b) for r in risks) / len(risks) - alpha

    return brentq(above, min(risks) - 10 * b, max(risks) + 10 * b, xtol=1e-14)


def slopes_of_quantile(risks: list[float], alpha: float) -> list[float]:
    """∂k/∂R_e where F(k, R) = α stays: −(∂F/∂R_e)/(∂F/∂k), by autograd."""
    k, r = vector(smooth_quantile(risks, alpha)).requires_grad_(), vector(*risks).requires_grad_()
    b = 1.06 * r.std() * len(risks) ** -0.2
    by_k, by_r = torch.autograd.grad(torch.special.ndtr((k - r) / b).mean(), [k, r])
    return (-by_r / by_k).tolist()


def reference(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    slopes = slopes_of_quantile(problem.risks(problem.params).tolist(), 0.7)

    def loss(p: Params) -> Tensor:
        return sum(s * r for s, r in zip(slopes, problem.risks(p), strict=True)) + L2 * square_norm(p)

    return differentiate(loss, problem.params)


ENROLLED = {
    "eqrm": Enrolled(
        {"quantile": 0.7, "burn_in": 0, "slope": "exact", "l2": L2}, reference, USUAL | {ONE_IS_ERM}
    ),
}
