"""MIRO: the penalty channel by channel, with exponentials and logarithms."""

import torch
from torch import Tensor

from algorithms.enrolment import L2, USUAL, Enrolled, square_norm
from algorithms.problems import Differentiate, Params, Problem


def reference(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    before = problem(problem.params, problem.batch.inputs)[0].detach()

    def loss(p: Params) -> Tensor:
        h = problem(p, problem.batch.inputs)[0]
        variance = torch.log(1 + torch.exp(7 * p["miro-noise.raw.0"])) + 1e-5
        channels = [
            ((h[:, k] - before[:, k]) ** 2 / variance[k]).mean() + torch.log(variance[k])
            for k in range(h.shape[1])
        ]
        return problem.risks(p).sum() / 3 + 0.3 * torch.stack(channels).mean() / 2 + L2 * square_norm(p)

    return differentiate(loss, problem.params)


ENROLLED = {"miro": Enrolled({"weight": 0.3, "noise_rate": 7.0, "l2": L2}, reference, USUAL)}
