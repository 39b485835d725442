"""Fishr: per-row gradients by PyTorch."""

import torch
from torch import Tensor

from algorithms.enrolment import IDENTICAL, L2, LAMBDA, ONE_IS_ERM, UNDIVIDED, USUAL, penalized, square_norm
from algorithms.problems import Differentiate, Params, Problem


def reference(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    def row_gradients(p: Params, e: int) -> Tensor:
        """Of the head, row by row, as PyTorch finds them."""
        inputs, targets = problem.environments()[e]
        features = problem(p, inputs)[0]

        def loss(head: tuple[Tensor, Tensor], h: Tensor, y: Tensor) -> Tensor:
            z = problem.task.logits(h[None] @ head[0].T + head[1])
            return problem.task.losses(z, y[None])[0]

        rows = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(
            (p["head.weight"], p["head.bias"]), features, targets
        )
        return torch.cat([g.flatten(1) for g in rows], dim=1)

    def penalty(p: Params) -> Tensor:
        v = torch.stack([row_gradients(p, e).var(dim=0, correction=0) for e in range(3)])
        return ((v - v.mean(dim=0)) ** 2).mean()

    def loss(p: Params) -> Tensor:
        return (problem.risks(p).sum() / 3 + L2 * square_norm(p) + LAMBDA * penalty(p)) / LAMBDA

    return differentiate(loss, problem.params)


ENROLLED = {
    "fishr": penalized(reference, USUAL | {IDENTICAL, ONE_IS_ERM}, plain=UNDIVIDED),
}
