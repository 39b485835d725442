"""URM: the networks as products of matrices."""

import torch
import torch.nn.functional as F
from torch import Tensor

from algorithms.enrolment import L2, SHIFT, Enrolled, affine, mean_of_means, moved, part_of, torch_adam
from algorithms.problems import Differentiate, Params, Problem
from envariant.core.step_context import START


def reference(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    batch, task, like = problem.batch, problem.task, problem.batch.inputs
    rows, start, name = len(like), problem.params, "urm-discriminator"

    def features(p: Params) -> Tensor:
        return torch.tanh(torch.tanh(affine(p, "featurizer.0", like)))

    def answers(p: Params, values: Tensor) -> Tensor:
        hidden = F.leaky_relu(affine(p, f"{name}.0", values))
        return affine(p, f"{name}.4", F.leaky_relu(affine(p, f"{name}.2", hidden))).flatten()

    def entropy(z: Tensor, target: Tensor) -> Tensor:
        return mean_of_means(problem, F.softplus(z) - target * z)

    def blur(draw: int) -> Tensor:
        return 0.2 * START.uniform(rows, draw=draw, like=like)

    def model(p: Params) -> Tensor:
        h = features(p)
        risk = mean_of_means(problem, task.losses(task.logits(affine(p, "head", h)), batch.targets))
        return risk + 0.3 * entropy(answers({**start, **p}, h), 1 - blur(0))

    def discriminator(p: Params) -> Tensor:
        noise = 2 * START.uniform(rows, 4, draw=1, like=like) - 1
        own = entropy(answers(p, noise), 1 - blur(2))
        return own + 0.3 * entropy(answers(p, features(start)), blur(3))

    after = torch_adam(start, differentiate(model, part_of(start, "featurizer", "head")), l2=L2)
    learned = torch_adam(start, differentiate(discriminator, part_of(start, name)), l2=L2)
    return moved(start, {**after, **part_of(learned, name)})


ENROLLED = {
    "urm": Enrolled({"weight": 0.3, "width": 6, "smoothing": 0.2, "l2": L2}, reference, frozenset({SHIFT})),
}
