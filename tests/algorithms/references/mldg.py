"""MLDG: inner steps by PyTorch's Adam."""

from torch import Tensor

from algorithms.enrolment import L2, SHIFT, Enrolled, torch_adam
from algorithms.problems import Differentiate, Problem
from envariant.core.step_context import START


def reference(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    order = START.permutation(3, like=problem.batch.inputs).tolist()
    total = {name: 2 * L2 * value for name, value in problem.params.items()}
    j = order[2]
    for i in order[:2]:
        own = differentiate(lambda p, i=i: problem.environment_risk(p, i), problem.params)
        after = torch_adam(problem.params, own, l2=L2)
        other = differentiate(lambda p: problem.environment_risk(p, j), after)
        total = {name: g + (own[name] + 0.5 * other[name]) / 3 for name, g in total.items()}
    return total


ENROLLED = {
    "mldg": Enrolled({"beta": 0.5, "meta_test_environments": 1, "l2": L2}, reference, frozenset({SHIFT})),
}
