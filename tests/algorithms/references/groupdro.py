"""GroupDRO: weights by plain exponentials."""

import math

from torch import Tensor

from algorithms.enrolment import L2, ONE_IS_ERM, USUAL, Enrolled, square_norm
from algorithms.problems import Differentiate, Params, Problem


def reference(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    grown = [math.exp(0.5 * float(r)) for r in problem.risks(problem.params)]
    shares = [g / sum(grown) for g in grown]

    def loss(p: Params) -> Tensor:
        return sum(q * r for q, r in zip(shares, problem.risks(p), strict=True)) + L2 * square_norm(p)

    return differentiate(loss, problem.params)


ENROLLED = {
    "groupdro": Enrolled({"rate": 0.5, "l2": L2}, reference, USUAL | {ONE_IS_ERM}),
}
