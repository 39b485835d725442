"""RDM: both terms from lists of losses."""

import torch
from torch import Tensor

from algorithms.enrolment import L2, LAMBDA, USUAL, Enrolled, square_norm
from algorithms.problems import Differentiate, Params, Problem
from algorithms.references.mmd import mmd_distance
from envariant.algorithms import Composition


def reference(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    worst = int(problem.risks(problem.params).argmax())

    def loss(p: Params) -> Tensor:
        each = [problem.losses(p, e) for e in range(3)]
        own, pooled = each[worst], torch.cat(each)
        match = mmd_distance(own[:, None], pooled[:, None], lowest=-4)
        whole = problem.risks(p).sum() / 3 + L2 * square_norm(p)
        return whole + LAMBDA * match + 0.5 * (own.var() + pooled.var())

    return differentiate(loss, problem.params)


ENROLLED = {
    "rdm": Enrolled(
        {"rdm_coefficient": LAMBDA, "variance_coefficient": 0.5, "l2": L2},
        reference,
        USUAL,
        at_zero=Composition(),
        zero={"rdm_coefficient": 0.0, "variance_coefficient": 0.0},
    ),
}
