"""Risk interpolation: the largest risk."""

from torch import Tensor

from algorithms.enrolment import L2, ONE_IS_ERM, USUAL, Enrolled, square_norm
from algorithms.problems import Differentiate, Problem


def reference(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    return differentiate(lambda p: problem.risks(p).max() + L2 * square_norm(p), problem.params)


ENROLLED = {
    "risk-interpolation": Enrolled({"l2": L2}, reference, USUAL | {ONE_IS_ERM}),
}
