"""IRMv1: the squared derivative of each risk in a multiplier, by double differentiation."""

from torch import Tensor

from algorithms.enrolment import L2, LAMBDA, USUAL, penalized, square_norm
from algorithms.problems import Differentiate, Params, Problem


def reference(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    def loss(p: Params) -> Tensor:
        penalty = sum(problem.slope(p, e) ** 2 for e in range(3)) / 3
        return (problem.risks(p).sum() / 3 + L2 * square_norm(p) + LAMBDA * penalty) / LAMBDA

    return differentiate(loss, problem.params)


ENROLLED = {
    "irm": penalized(reference, USUAL),
}
