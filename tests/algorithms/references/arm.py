"""ARM: the networks as products of matrices."""

import torch
from torch import Tensor

from algorithms.enrolment import L2, USUAL, Enrolled, affine, square_norm
from algorithms.problems import Differentiate, Params, Problem


def reference(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    def loss(p: Params) -> Tensor:
        each = []
        for x, y in problem.environments():
            hidden = x
            for layer in (1, 3):
                hidden = affine(p, f"context.{layer}", hidden).relu()
            context = affine(p, "context.5", hidden).mean() * torch.ones(len(x), 1, dtype=x.dtype)
            h = torch.tanh(affine(p, "model.featurizer", torch.cat([x, context], dim=1)))
            each.append(problem.task.losses(problem.task.logits(affine(p, "model.head", h)), y))
        return sum(losses.mean() for losses in each) / 3 + L2 * square_norm(p)

    return differentiate(loss, problem.params)


ENROLLED = {
    "arm": Enrolled({"width": 4, "l2": L2}, reference, USUAL),
}
