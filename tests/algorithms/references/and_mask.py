"""AND-mask: entry by entry in plain Python."""

import torch
from torch import Tensor

from algorithms.enrolment import L2, ONE_IS_ERM, USUAL, Enrolled
from algorithms.problems import Differentiate, Problem


def reference(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    each = [differentiate(lambda p, e=e: problem.environment_risk(p, e), problem.params) for e in range(3)]
    combined: dict[str, Tensor] = {}
    for name, value in problem.params.items():
        entries = list(zip(*(g[name].flatten().tolist() for g in each), strict=True))
        kept = [all(x > 0 for x in g) or all(x < 0 for x in g) for g in entries]
        share = 1e-10 + sum(kept) / len(kept)
        masked = [sum(g) / 3 / share if keep else 0.0 for g, keep in zip(entries, kept, strict=True)]
        combined[name] = torch.tensor(masked, dtype=value.dtype).reshape(value.shape) + 2 * L2 * value
    return combined


ENROLLED = {
    "and-mask": Enrolled(
        {"threshold": 1.0, "l2": L2},
        reference,
        USUAL | {ONE_IS_ERM},
        plain={"inverse_sparsity": False},
    ),
}
