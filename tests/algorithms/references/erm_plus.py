"""ERM++ during the warm-up of the head."""

from torch import Tensor

from algorithms.enrolment import L2, USUAL, Enrolled, moved, part_of, torch_adam
from algorithms.problems import Differentiate, Params, Problem


def reference(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    """While the head warms up."""

    def loss(p: Params) -> Tensor:
        return problem.risks({**problem.params, **p}).mean()

    gradient = differentiate(loss, part_of(problem.params, "head"))
    # At twice the run's rate Adam goes twice as far.
    update = moved(problem.params, torch_adam(problem.params, gradient, l2=L2))
    return {name: 2 * far for name, far in update.items()}


ENROLLED = {
    "erm++": Enrolled({"head_rate": 2.0, "l2": L2}, reference, USUAL),
}
