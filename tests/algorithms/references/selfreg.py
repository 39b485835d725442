"""SelfReg: partners by class from plain lists."""

from torch import Tensor

from algorithms.enrolment import L2, LAMBDA, mean_of_means, penalized, square_norm
from algorithms.problems import Differentiate, Params, Problem
from envariant.core.step_context import START


def reference(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    context, like = START.of_part(1), problem.batch.inputs
    rows = len(like)
    share = context.symmetric_beta(0.5, draw=2, like=like)
    targets = problem.batch.targets.tolist()
    partners = []
    for draw in (0, 1):
        order = context.permutation(rows, draw=draw, like=like).tolist()
        partner = {}
        for value in set(targets):
            own = [i for i in range(rows) if targets[i] == value]
            partner |= dict(zip(own, [i for i in order if targets[i] == value], strict=True))
        partners.append([partner[i] for i in range(rows)])
    held = min(1.0, float(problem.risks(problem.params).mean()))

    def loss(p: Params) -> Tensor:
        h, o = problem(p, problem.batch.inputs)
        q = problem.network("selfreg-projection", p, h)
        first, second = partners

        def mix(v: Tensor) -> Tensor:
            return share * v[first] + (1 - share) * v[second]

        def mean(v: Tensor) -> Tensor:
            return mean_of_means(problem, v)

        alone = mean((o - o[first]) ** 2) + 0.3 * mean((h - q[first]) ** 2)
        together = mean((o - mix(o)) ** 2) + 0.3 * mean((h - mix(q)) ** 2)
        penalty = held * (share * alone + (1 - share) * together)
        return problem.risks(p).sum() / 3 + L2 * square_norm(p) + LAMBDA * penalty

    return differentiate(loss, problem.params)


ENROLLED = {
    "selfreg": penalized(reference, set()),
}
