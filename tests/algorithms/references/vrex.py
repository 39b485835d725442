"""V-REx: the variance as mean square less squared mean."""

from torch import Tensor

from algorithms.enrolment import IDENTICAL, L2, LAMBDA, ONE_IS_ERM, UNDIVIDED, USUAL, penalized, square_norm
from algorithms.problems import Differentiate, Params, Problem


def reference(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    def loss(p: Params) -> Tensor:
        r = problem.risks(p)
        variance = (r**2).sum() / 3 - (r.sum() / 3) ** 2
        return (r.sum() / 3 + L2 * square_norm(p) + LAMBDA * variance) / LAMBDA

    return differentiate(loss, problem.params)


ENROLLED = {
    "vrex": penalized(reference, USUAL | {IDENTICAL, ONE_IS_ERM}, plain=UNDIVIDED),
}
