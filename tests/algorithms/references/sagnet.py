"""SagNet: the three steps by PyTorch's Adam."""

import torch
from torch import Tensor

from algorithms.enrolment import L2, SHIFT, Enrolled, mean_of_means, moved, part_of, torch_adam
from algorithms.problems import Differentiate, Params, Problem
from envariant.core.step_context import START


def reference(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    batch, task = problem.batch, problem.task
    rows = len(batch.targets)

    def parted(h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        m, v = h.mean(dim=1, keepdim=True), h.var(dim=1, keepdim=True)
        return (h - m) / (v + 1e-5) ** 0.5, m, v

    def order(turn: int) -> Tensor:
        return START.permutation(rows, draw=2 * turn, like=batch.inputs)

    def content(p: Params) -> Tensor:
        n, m, v = parted(problem(p, batch.inputs)[0])
        a, other = START.uniform(rows, 1, draw=1, like=batch.inputs), order(0)
        mixed = n * (a * v + (1 - a) * v[other] + 1e-5) ** 0.5 + a * m + (1 - a) * m[other]
        return mean_of_means(problem, task.losses(problem.head(p, mixed), batch.targets))

    def style(p: Params, turn: int) -> Tensor:
        h = problem(p, batch.inputs)[0]
        _, m, v = parted(h)
        fixed = parted(problem({k: t.detach() for k, t in start.items()}, batch.inputs)[0])[0].detach()
        return task.logits(problem.network("sagnet-style", p, fixed[order(turn)] * (v + 1e-5) ** 0.5 + m))

    def flat(p: Params) -> Tensor:
        z = style(p, 2)
        two = torch.stack([torch.zeros_like(z), z], dim=1) if z.dim() == 1 else z
        return -0.4 * mean_of_means(problem, two.log_softmax(dim=1))

    start = dict(problem.params)
    first = differentiate(content, part_of(start, "featurizer", "head"))
    after = torch_adam(start, first, l2=L2)
    start = after
    second = differentiate(
        lambda p: mean_of_means(problem, task.losses(style({**after, **p}, 1), batch.targets)),
        part_of(after, "sagnet-style"),
    )
    after = torch_adam(after, second, l2=L2)
    third = differentiate(lambda p: flat({**after, **p}), part_of(after, "featurizer"))
    both = torch_adam(problem.params, part_of(first, "featurizer"), third, l2=L2)
    return moved(problem.params, {**after, **part_of(both, "featurizer")})


ENROLLED = {
    "sagnet": Enrolled(
        {"weight": 0.4, "l2": L2}, reference, frozenset({SHIFT}), problems=("binary", "multiclass")
    ),
}
