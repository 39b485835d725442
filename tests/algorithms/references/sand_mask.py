"""SAND-mask: entry by entry in plain Python."""

import math

import torch
from torch import Tensor

from algorithms.enrolment import L2, USUAL, Enrolled, environment_gradients
from algorithms.problems import Differentiate, Problem


def reference(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    each = environment_gradients(problem, differentiate)
    combined: dict[str, Tensor] = {}
    for name, value in problem.params.items():
        entries = list(zip(*(g[name].flatten().tolist() for g in each), strict=True))
        masks = []
        for g in entries:
            agreement = abs(sum((x > 0) - (x < 0) for x in g)) / 3
            mean = sum(g) / 3
            variance = sum((x - mean) ** 2 for x in g) / 2
            masks.append(max(0.0, math.tanh(0.4 / variance * (agreement - 0.5))))
        share = 1e-10 + sum(masks) / len(masks)
        masked = [m * sum(g) / 3 / share for m, g in zip(masks, entries, strict=True)]
        combined[name] = torch.tensor(masked, dtype=value.dtype).reshape(value.shape) + 2 * L2 * value
    return combined


ENROLLED = {
    "sand-mask": Enrolled({"threshold": 0.5, "steepness": 0.4, "l2": L2}, reference, USUAL),
}
