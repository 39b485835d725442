"""ADRMX: rows and classes one by one."""

import torch
from torch import Tensor

from algorithms.enrolment import L2, SHIFT, Enrolled, affine, mean_of_means, moved, torch_adam
from algorithms.problems import Differentiate, Params, Problem
from envariant.core.step_context import START


def reference(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    """The model's turn, which is the first if the discriminator takes one of two."""
    batch, task, start = problem.batch, problem.task, problem.params
    x, targets = batch.inputs, batch.targets.long().tolist()
    owners = [e for e, size in enumerate(batch.sizes) for _ in range(size)]

    def deep(p: Params, name: str, h: Tensor) -> Tensor:
        for layer in (0, 2):
            h = affine(p, f"{name}.{layer}", h).relu()
        return affine(p, f"{name}.4", h)

    def entropy(z: Tensor, classes: list[int]) -> Tensor:
        return mean_of_means(problem, -z.log_softmax(dim=1)[range(len(z)), classes])

    def contrast(h: Tensor) -> Tensor:
        unit = h / h.norm(dim=1, keepdim=True)
        total, counted = torch.zeros((), dtype=h.dtype), 0
        for i in range(len(h)):
            e = torch.exp(unit @ unit[i] / 0.07) / 2
            below = sum(e[k] for k in range(len(h)) if k != i) + 1e-5
            alike = [k for k in range(len(h)) if k != i and targets[k] == targets[i]]
            if alike:
                counted += 1
                total = total - sum(torch.log(e[k] / below + 1e-5) for k in alike) / len(alike)
        return total / (counted + 1)

    numbers = START.uniform(len(x), like=x).tolist()

    def loss(p: Params) -> Tensor:
        every = {**start, **p}
        h = torch.tanh(affine(every, "featurizer", x))
        d = torch.tanh(affine(every, "adrmx-environment", x))
        c = h - d

        def losses(name: str, v: Tensor, y: Tensor) -> Tensor:
            return task.losses(task.logits(deep(every, name, v)), y)

        heads = (losses("head", h, batch.targets), losses("adrmx-difference-head", c, batch.targets))
        total = sum(mean_of_means(problem, each) for each in heads)
        total = total + 0.7 * entropy(deep(every, "adrmx-environment-head", d), owners)
        remixed = torch.zeros((), dtype=h.dtype)
        for y in range(max(2, task.outputs)):
            i, j = sorted((k for k in range(len(x)) if targets[k] == y), key=lambda k: numbers[k])[:2]
            remixed = remixed + losses("head", (c[i] + d[j])[None], batch.targets[i : i + 1]).sum()
        total = total + 0.4 * remixed / max(2, task.outputs)
        total = total + 0.6 * (contrast(h) + contrast(c))
        scores = problem.network("adrmx-discriminator", every, c)
        return total - 0.75 * entropy(scores, owners)

    rest = {k: v for k, v in start.items() if k.split(".")[0] != "adrmx-discriminator"}
    gradient = differentiate(loss, rest)
    return moved(start, torch_adam(start, gradient, l2=L2, betas=(0.5, 0.9)))


ENROLLED = {
    "adrmx": Enrolled(
        {"contrast": 0.6, "environment": 0.7, "remix": 0.4, "discriminator_steps": 1, "depth": 2, "width": 8}
        | {"l2": L2},
        reference,
        frozenset({SHIFT}),
        problems=("binary", "multiclass"),
    ),
}
