"""RSC: masks from the head's weights in plain Python."""

import torch
from torch import Tensor

from algorithms.enrolment import L2, USUAL, Enrolled, mean_of_means, square_norm
from algorithms.problems import Differentiate, Params, Problem
from envariant.core.tasks import Binary


def percentile(values: list[float], share: float) -> float:
    """Linear between order statistics."""
    ordered, place = sorted(values), share * (len(values) - 1)
    low = min(int(place), len(values) - 2)
    return ordered[low] + (place - low) * (ordered[low + 1] - ordered[low])


def reference(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    params, task = problem.params, problem.task
    targets, weight = problem.batch.targets, params["head.weight"]
    features, logits = problem(params, problem.batch.inputs)
    # The slope of the true class's logit is its row of the weight; of the only one, with the class's sign.
    slopes = (2 * targets - 1)[:, None] * weight if isinstance(task, Binary) else weight[targets]
    muted = torch.tensor([[x < percentile(row, 0.5) for x in row] for row in slopes.tolist()]).double()
    before = torch.exp(-task.losses(logits, targets))
    after = torch.exp(-task.losses(problem.head(params, features * muted), targets))
    lost = (before - after).tolist()
    stays = [x < percentile(lost, 0.6) for x in lost]
    mask = torch.stack([torch.ones_like(m) if free else m for m, free in zip(muted, stays, strict=True)])

    def loss(p: Params) -> Tensor:
        h = problem(p, problem.batch.inputs)[0]
        losses = task.losses(problem.head(p, h * mask), targets)
        return mean_of_means(problem, losses) + L2 * square_norm(p)

    return differentiate(loss, params)


ENROLLED = {
    "rsc": Enrolled(
        {"features": 0.5, "rows": 0.4, "l2": L2}, reference, USUAL, problems=("binary", "multiclass")
    ),
}
