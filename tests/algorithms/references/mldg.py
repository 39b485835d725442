"""MLDG: inner steps by PyTorch's Adam."""

from torch import Tensor

from algorithms.enrolment import L2, SHIFT, Enrolled, torch_adam
from algorithms.problems import Differentiate, Params, Problem
from envariant.core.step_context import START


def risk_of_first(problem: Problem, params: Params, e: int, rows: int) -> Tensor:
    return problem.losses(params, e)[:rows].mean()


def reference(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    order, sizes = START.permutation(3, like=problem.batch.inputs).tolist(), problem.batch.sizes
    total = {name: 2 * L2 * value for name, value in problem.params.items()}
    j = order[2]
    for i in order[:2]:
        rows = min(sizes[i], sizes[j])
        own = differentiate(lambda p, i=i, n=rows: risk_of_first(problem, p, i, n), problem.params)
        after = torch_adam(problem.params, own)
        other = differentiate(lambda p, n=rows: risk_of_first(problem, p, j, n), after)
        total = {name: g + (own[name] + 0.5 * other[name]) / 3 for name, g in total.items()}
    return total


ENROLLED = {
    "mldg": Enrolled({"beta": 0.5, "meta_test_environments": 1, "l2": L2}, reference, frozenset({SHIFT})),
}
