"""PCGrad: the paper's loop with a condition."""

import torch
from torch import Tensor

from algorithms.enrolment import L2, ONE_IS_ERM, ORDER_OF_ROWS, SHIFT, Enrolled, environment_gradients
from algorithms.problems import Differentiate, Problem
from envariant.core.step_context import START


def reference(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    each = environment_gradients(problem, differentiate)
    flat = [torch.cat([g.flatten() for g in share.values()]) for share in each]
    order = START.of_part(1).permutation(3, like=flat[0]).tolist()
    kept = []
    for e in range(3):
        own = flat[e].clone()
        for f in order:
            if f != e and float(own @ flat[f]) < 0:
                own -= (own @ flat[f]) / (flat[f] @ flat[f]) * flat[f]
        kept.append(own)
    parts = (sum(kept) / 3).split([value.numel() for value in problem.params.values()])
    return {
        name: part.reshape(value.shape) + 2 * L2 * value
        for (name, value), part in zip(problem.params.items(), parts, strict=True)
    }


ENROLLED = {
    "pcgrad": Enrolled({"l2": L2}, reference, frozenset({ORDER_OF_ROWS, SHIFT, ONE_IS_ERM})),
}
