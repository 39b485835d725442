"""MM-REx: the paper's form with the smallest weight λ_min."""

from torch import Tensor

from algorithms.enrolment import L2, LAMBDA, ONE_IS_ERM, UNDIVIDED, USUAL, penalized, square_norm
from algorithms.problems import Differentiate, Params, Problem


def reference(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    least = (1 - LAMBDA) / 3  # λ_min, from κ = 1 − E·λ_min

    def loss(p: Params) -> Tensor:
        r = problem.risks(p)
        return ((1 - 3 * least) * r.max() + least * r.sum() + L2 * square_norm(p)) / LAMBDA

    return differentiate(loss, problem.params)


ENROLLED = {
    "mm-rex": penalized(reference, USUAL | {ONE_IS_ERM}, plain=UNDIVIDED),
}
