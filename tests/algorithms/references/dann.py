"""DANN and CDANN: the discriminator's loss row by row."""

import torch
from torch import Tensor

from algorithms.enrolment import ORDER_OF_ROWS, SHIFT, Enrolled, Reference, moved, part_of, torch_adam
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
            weights = [1 / len(h)] * len(h)
            u = h
            if conditional:
                u = h + every["dann-embedding.weight"][targets.long()]
                labels = [int(y) for y in targets]
                weights = [1 / (labels.count(y) * (max(labels) + 1)) for y in labels]
            scores = problem.network("dann-discriminator", every, u)
            each = -scores.log_softmax(dim=1)[range(len(u)), owners]
            slopes = torch.autograd.grad(each.sum(), [u], create_graph=True)[0]
            own = (torch.tensor(weights, dtype=torch.float64) * each).sum()
            own = own + 0.3 * (slopes**2).sum() / len(u)
            return problem.task.losses(z, targets).mean() - 2.0 * own

        gradient = differentiate(loss, rest)
        return moved(problem.params, torch_adam(problem.params, gradient, betas=(0.5, 0.9)))

    return reference


SETTINGS = {"weight": 2.0, "gradient_penalty": 0.3, "width": 8}

ENROLLED = {
    "dann": Enrolled(SETTINGS, reference_of(conditional=False), frozenset({ORDER_OF_ROWS, SHIFT})),
    "cdann": Enrolled(
        SETTINGS,
        reference_of(conditional=True),
        frozenset({ORDER_OF_ROWS, SHIFT}),
        problems=("binary", "multiclass"),
    ),
}
