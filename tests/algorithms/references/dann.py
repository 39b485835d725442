"""DANN and CDANN: the discriminator's loss row by row."""

import torch
from torch import Tensor

from algorithms.enrolment import (
    L2,
    ORDER_OF_ROWS,
    SHIFT,
    Enrolled,
    Reference,
    mean_of_means,
    moved,
    part_of,
    torch_adam,
)
from algorithms.problems import Differentiate, Params, Problem


def reference_of(conditional: bool) -> Reference:
    """The model's turn: it comes first, and the discriminator stays as it is."""

    def reference(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
        rest = part_of(problem.params, "featurizer", "head")
        targets = problem.batch.targets
        owners = torch.tensor([e for e, size in enumerate(problem.batch.sizes) for _ in range(size)])

        def loss(p: Params) -> Tensor:
            every = {**problem.params, **p}
            h, z = problem(every, problem.batch.inputs)
            if not h.requires_grad:
                h = h.requires_grad_()
            shares = [1 / (3 * size) for size in problem.batch.sizes for _ in range(size)]
            weights, u = shares, h
            if conditional:
                u = h + every["dann-embedding.weight"][targets.long()]
                labels = [int(y) for y in targets]
                of_class = [
                    sum(s for s, other in zip(shares, labels, strict=True) if other == y) for y in labels
                ]
                weights = [s / (c * (max(labels) + 1)) for s, c in zip(shares, of_class, strict=True)]
            scores = problem.network("dann-discriminator", every, u)
            each = -scores.log_softmax(dim=1)[range(len(u)), owners]
            slopes = torch.autograd.grad(each.sum(), [u], create_graph=True)[0]
            own = (torch.tensor(weights, dtype=torch.float64) * each).sum()
            own = own + 0.3 * mean_of_means(problem, (slopes**2).sum(dim=1))
            return mean_of_means(problem, problem.task.losses(z, targets)) - 2.0 * own

        gradient = differentiate(loss, rest)
        return moved(problem.params, torch_adam(problem.params, gradient, l2=L2, betas=(0.5, 0.9)))

    return reference


SETTINGS = {"weight": 2.0, "gradient_penalty": 0.3, "width": 8, "l2": L2}

ENROLLED = {
    "dann": Enrolled(SETTINGS, reference_of(conditional=False), frozenset({ORDER_OF_ROWS, SHIFT})),
    "cdann": Enrolled(
        SETTINGS,
        reference_of(conditional=True),
        frozenset({ORDER_OF_ROWS, SHIFT}),
        problems=("binary", "multiclass"),
    ),
}
