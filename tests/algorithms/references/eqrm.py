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


def weights_after(
    rows: list[tuple[Tensor, Tensor]],
    start: Params,
    alpha: float,
    burn_in: int,
    rates: tuple[float, float],
    steps: int,
) -> list[Tensor]:
    """Weight and bias of a linear model trained as in the released code: a new Adam, at its own rate, at burn-in."""
    leaves = [start[name].double().clone().requires_grad_() for name in ("weight", "bias")]
    optimizer = torch.optim.Adam(leaves, lr=rates[0])
    for step in range(steps):
        if step == burn_in:
            optimizer = torch.optim.Adam(leaves, lr=rates[1])
        risks = [
            torch.nn.functional.binary_cross_entropy_with_logits((x @ leaves[0].T + leaves[1])[:, 0], y)
            for x, y in rows
        ]
        slopes = [1 / len(risks)] * len(risks)
        if step >= burn_in:
            slopes = slopes_of_quantile([risk.item() for risk in risks], alpha)
        optimizer.zero_grad()
        sum(s * risk for s, risk in zip(slopes, risks, strict=True)).backward()
        optimizer.step()
    return [leaf.detach() for leaf in leaves]


ENROLLED = {
    "eqrm": Enrolled(
        {"quantile": 0.7, "burn_in": 0, "slope": "exact", "l2": L2}, reference, USUAL | {ONE_IS_ERM}
    ),
}
