"""IB-IRM: both penalties in one loss."""

from torch import Tensor

from algorithms.enrolment import L2, LAMBDA, USUAL, Enrolled, square_norm
from algorithms.problems import Differentiate, Params, Problem
from algorithms.references.ib_erm import penalty as bottleneck
from envariant.algorithms import Composition


def reference(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    def loss(p: Params) -> Tensor:
        slopes = sum(problem.slope(p, e) ** 2 for e in range(3)) / 3
        whole = problem.risks(p).sum() / 3 + L2 * square_norm(p)
        return (whole + LAMBDA * slopes + 0.5 * bottleneck(problem, p)) / LAMBDA

    return differentiate(loss, problem.params)


ENROLLED = {
    "ib-irm": Enrolled(
        {"irm_coefficient": LAMBDA, "ib_coefficient": 0.5, "l2": L2},
        reference,
        USUAL,
        at_zero=Composition(),
        zero={"irm_coefficient": 0.0, "ib_coefficient": 0.0},
    ),
}
