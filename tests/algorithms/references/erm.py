"""ERM: R̄ + l2·‖θ‖²."""

from torch import Tensor

from algorithms.enrolment import L2, ONE_IS_ERM, USUAL, Enrolled, square_norm
from algorithms.problems import Differentiate, Problem


def reference(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    return differentiate(lambda p: problem.risks(p).sum() / 3 + L2 * square_norm(p), problem.params)


ENROLLED = {
    "erm": Enrolled({"l2": L2}, reference, USUAL | {ONE_IS_ERM}),
}
