"""MTL: the head's input environment by environment."""

import torch
from torch import Tensor

from algorithms.enrolment import L2, USUAL, Enrolled, affine, square_norm
from algorithms.problems import Differentiate, Params, Problem


def reference(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    def loss(p: Params) -> Tensor:
        total = L2 * square_norm(p)
        for x, y in problem.environments():
            h = torch.tanh(affine(p, "featurizer", x))
            # The first moving mean: what was after before is 0.
            context = 0.8 * h.sum(dim=0, keepdim=True).repeat(len(h), 1) / len(h)
            z = problem.task.logits(affine(p, "head.linear", torch.cat([h, context], dim=1)))
            total = total + problem.task.losses(z, y).mean()
        return total

    return differentiate(loss, problem.params)


ENROLLED = {
    "mtl": Enrolled({"memory": 0.8, "l2": L2}, reference, USUAL),
}
