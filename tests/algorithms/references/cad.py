"""CAD and CondCAD: rows one by one."""

import torch
from torch import Tensor

from algorithms.enrolment import ONE_IS_ERM, USUAL, Reference, mean_and, penalized
from algorithms.problems import Params, Problem


def reference_of(conditional: bool) -> Reference:
    def penalty(problem: Problem, p: Params) -> Tensor:
        h, targets = problem(p, problem.batch.inputs)[0], problem.batch.targets.tolist()
        owners = [e for e, size in enumerate(problem.batch.sizes) for _ in range(size)]
        values = []
        for i in range(len(h)):
            others = [k for k in range(len(h)) if k != i]
            alike = [k for k in others if targets[k] == targets[i]]
            among = alike if conditional else others
            wanted = [k for k in among if owners[k] != owners[i]]
            if alike and wanted:
                up, all_ = (sum(torch.exp(h[i] @ h[k] / 0.1) for k in some) for some in (wanted, among))
                values.append(-0.1 / 0.07 * torch.log(up / all_))
        return sum(values) / len(values) if values else torch.zeros((), dtype=torch.float64)

    return mean_and(penalty)


ENROLLED = {
    "cad": penalized(reference_of(conditional=False), USUAL | {ONE_IS_ERM}),
    "condcad": penalized(reference_of(conditional=True), USUAL | {ONE_IS_ERM}),
}
