"""Transfer: both steps by PyTorch's Adam."""

import torch
from torch import Tensor

from algorithms.enrolment import L2, USUAL, Enrolled, moved, part_of, torch_adam
from algorithms.problems import Differentiate, Params, Problem


def reference(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    batch = problem.batch
    first = differentiate(lambda p: problem.risks(p).mean(), problem.params)
    after = torch_adam(problem.params, first, l2=L2)

    def gap(p: Params) -> Tensor:
        h = problem({**after, **p}, batch.inputs)[0]
        each = batch.split(problem.task.losses(problem.head(problem.params, h), batch.targets))
        risks = torch.stack([losses.mean() for losses in each])
        return 3.0 * (risks.max() - risks.min())

    second = differentiate(gap, part_of(after, "featurizer"))
    both = torch_adam(problem.params, part_of(first, "featurizer"), second, l2=L2)
    return moved(problem.params, {**after, **part_of(both, "featurizer")})


ENROLLED = {
    "transfer": Enrolled({"weight": 3.0, "l2": L2}, reference, USUAL),
}
