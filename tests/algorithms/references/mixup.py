"""Mixup: pairs cut to the smaller environment."""

import torch
from torch import Tensor

from algorithms.enrolment import L2, ONE_IS_ERM, SHIFT, Enrolled, square_norm
from algorithms.problems import Differentiate, Params, Problem
from envariant.core.step_context import START


def reference(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    like, sizes = problem.batch.inputs, problem.batch.sizes
    order = START.permutation(3, like=like).tolist()
    shares = START.symmetric_beta(0.7, 3, draw=1, like=like)

    def loss(p: Params) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for k, share in enumerate(shares):
            i, j = order[k], order[(k + 1) % 3]
            rows = min(sizes[i], sizes[j])
            (x, y), (other, also) = (problem.environments()[e] for e in (i, j))
            mixed = problem(p, share * x[:rows] + (1 - share) * other[:rows])[1]
            for weight, targets in ((share, y), (1 - share, also)):
                total = total + weight * problem.task.losses(mixed, targets[:rows]).mean() / 3
        return total + L2 * square_norm(p)

    return differentiate(loss, problem.params)


ENROLLED = {
    "mixup": Enrolled({"alpha": 0.7, "l2": L2}, reference, frozenset({SHIFT, ONE_IS_ERM})),
}
