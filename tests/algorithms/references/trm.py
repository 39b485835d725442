"""TRM: the Hessian of a head as a matrix, and the inner descent by autograd."""

import torch
from torch import Tensor

from algorithms.enrolment import L2, ORDER_OF_ROWS, SHIFT, Enrolled, moved, part_of, torch_adam
from algorithms.problems import Differentiate, Params, Problem


def reference(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    """With the Hessian of a head as a matrix and the inner descent as autograd makes it."""
    task, start = problem.task, problem.params
    names = [f"trm-head-{q}" for q in range(3)]
    targets = [y for _, y in problem.environments()]
    fixed = [h.detach() for h in problem.features(start)]

    def risk(weight: Tensor, bias: Tensor, h: Tensor, i: int) -> Tensor:
        return task.losses(task.logits(h @ weight.T + bias), targets[i]).mean()

    heads = []
    for q, name in enumerate(names):
        head = [start[f"{name}.weight"], start[f"{name}.bias"]]
        for _ in range(2):
            leaves = [value.clone().requires_grad_() for value in head]
            slopes = torch.autograd.grad(risk(*leaves, fixed[q], q), leaves)
            head = [v - 0.1 * g for v, g in zip(head, slopes, strict=True)]
        heads.append([value.detach() for value in head])

    responses = []
    for q, (weight, bias) in enumerate(heads):
        leaf = weight.clone().requires_grad_()
        away = sum(risk(leaf, bias, fixed[i], i) for i in range(3) if i != q) / 2
        direction = torch.autograd.grad(away, [leaf])[0].flatten()
        hessian = torch.autograd.functional.hessian(
            lambda w, q=q, b=bias: risk(w.reshape(task.outputs, 4), b, fixed[q], q), weight.flatten()
        )
        step = torch.eye(len(hessian), dtype=hessian.dtype) - hessian
        total = torch.zeros_like(direction)
        for k in range(11):
            total = total + torch.linalg.matrix_power(step, k) @ direction
            # For squared errors the series diverges, and is cut off.
            if k >= 1 and float(total.abs().max()) > 10:
                break
        responses.append(total.reshape(weight.shape))

    def loss(p: Params) -> Tensor:
        every = {**start, **p}
        h = problem.features(every)
        total = problem.risks(every).mean()
        for q, (weight, bias) in enumerate(heads):
            leaf = weight.clone().requires_grad_()
            slope = torch.autograd.grad(risk(leaf, bias, h[q], q), [leaf], create_graph=True)[0]
            away = sum(risk(weight, bias, h[i], i) for i in range(3) if i != q) / 2
            total = total + (away - 0.01 * (responses[q] * slope).sum()) / 3
        return total

    gradient = differentiate(loss, part_of(start, "featurizer", "head"))
    # The heads are fitted without l2.
    after = torch_adam(start, gradient, l2=L2)
    for name, (weight, bias) in zip(names, heads, strict=True):
        after |= {f"{name}.weight": weight, f"{name}.bias": bias}
    return moved(start, after)


ENROLLED = {
    "trm": Enrolled(
        {"warm_up": 0, "inner_steps": 2, "weight": 0.01, "l2": L2},
        reference,
        frozenset({ORDER_OF_ROWS, SHIFT}),
    ),
}
