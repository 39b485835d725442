"""Fish: inner steps by PyTorch's Adam."""

import torch
from torch import Tensor

from algorithms.enrolment import L2, ORDER_OF_ROWS, RATE, SHIFT, Enrolled
from algorithms.problems import Differentiate, Problem


def reference(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    leaves = {name: value.clone().requires_grad_() for name, value in problem.params.items()}
    optimizer = torch.optim.Adam(leaves.values(), lr=RATE, weight_decay=2 * L2)
    for e in range(3):
        combined = differentiate(lambda p, e=e: problem.environment_risk(p, e), leaves)
        for name, leaf in leaves.items():
            leaf.grad = combined[name].detach()
        optimizer.step()
    return {name: 0.5 * (value - leaves[name].detach()) for name, value in problem.params.items()}


ENROLLED = {
    "fish": Enrolled({"meta_rate": 0.5, "l2": L2}, reference, frozenset({ORDER_OF_ROWS, SHIFT})),
}
