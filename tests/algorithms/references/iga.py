"""IGA: squared differences over all pairs of environments."""

import torch
from torch import Tensor

from algorithms.enrolment import IDENTICAL, L2, LAMBDA, ONE_IS_ERM, USUAL, penalized, square_norm
from algorithms.problems import Differentiate, Params, Problem


def reference(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    def loss(p: Params) -> Tensor:
        leaves = {k: v if v.requires_grad else v.clone().requires_grad_() for k, v in p.items()}
        each = [
            torch.cat([
                g.flatten()
                for g in torch.autograd.grad(
                    problem.environment_risk(leaves, e), list(leaves.values()), create_graph=True
                )
            ])
            for e in range(3)
        ]  # fmt: skip
        # The sum of squared distances from the mean is that of all pairs, divided by their number.
        pairs = sum(((each[e] - each[f]) ** 2).sum() for e in range(3) for f in range(e)) / 3
        return problem.risks(leaves).sum() / 3 + L2 * square_norm(leaves) + LAMBDA * pairs

    return differentiate(loss, problem.params)


ENROLLED = {
    "iga": penalized(reference, USUAL | {IDENTICAL, ONE_IS_ERM}),
}
