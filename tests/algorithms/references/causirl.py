"""CausIRL: the groups as lists of slices."""

from collections.abc import Callable

import torch
from torch import Tensor

from algorithms.enrolment import SHIFT, Reference, mean_and, penalized
from algorithms.problems import Params, Problem
from algorithms.references.coral import coral_distance
from algorithms.references.mmd import mmd_distance
from envariant.core.step_context import START


def over_splits(distance: Callable[[Tensor, Tensor], Tensor]) -> Reference:
    def penalty(problem: Problem, p: Params) -> Tensor:
        # The only penalty of its composition, hence part 1.
        stochastic = START.of_part(1).uniform(3, like=problem.batch.inputs).tolist()
        cuts = [int(u * size) for u, size in zip(stochastic, problem.batch.sizes, strict=True)]
        halves = [(h[:s], h[s:]) for h, s in zip(problem.features(p), cuts, strict=True)]
        return distance(*(torch.cat(part) for part in zip(*halves, strict=True)))

    return mean_and(penalty)


ENROLLED = {
    "causirl-coral": penalized(over_splits(coral_distance), {SHIFT}),
    "causirl-mmd": penalized(over_splits(mmd_distance), {SHIFT}),
}
