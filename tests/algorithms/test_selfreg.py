"""SelfReg: the spec's loss for given partners, and how partners are drawn."""

from dataclasses import replace

import torch

from algorithms.spec_values import M_BIAS, M_WEIGHT, close, predicted, vector
from envariant.algorithms import SelfReg
from envariant.algorithms.penalties.selfreg import partner_of_same
from envariant.core.step_context import START, StepContext
from envariant.core.tasks import Multiclass, Regression

ROWS = torch.tensor([[1, 2], [0, 1], [2, 4], [3, 0], [1, 1]], dtype=torch.float64)
LABELS = torch.tensor([0, 0, 1, 1, 1])


def test_values_of_the_specification():
    seen = predicted(Multiclass(2), ROWS @ M_WEIGHT.T + M_BIAS, LABELS, (5,), ROWS)
    first, second = torch.tensor([1, 0, 4, 2, 3]), torch.tensor([0, 1, 3, 4, 2])
    penalty = SelfReg().at(seen, ROWS, vector(0.3)[0], first, second)
    close(seen.losses.mean(), 0.873431)
    close(seen.losses.mean() + penalty, 2.04191)


def test_in_a_regression_the_distance_to_the_own_projection_remains():
    seen = predicted(Regression(), ROWS[:, 0], vector(0.1, 0.2, 0.3, 0.4, 0.5), (2, 3), ROWS)
    seen = replace(seen, context=START, auxiliary_networks={"selfreg-projection": torch.sin})
    penalty, _ = SelfReg().penalty(seen, {})
    distances = (ROWS - ROWS.sin()) ** 2
    distance = (distances[:2].mean() + distances[2:].mean()) / 2
    close(penalty, 0.3 * min(1.0, float(seen.risks.mean())) * float(distance))


def test_partners_are_random_permutations_within_each_class():
    targets = torch.tensor([2, 0, 1, 0, 2, 2, 0])
    seen = set()
    for step in range(300):
        order = StepContext.at(step).permutation(7, like=vector(0))
        partner = partner_of_same(targets, order)
        assert torch.equal(targets[partner], targets)
        assert sorted(partner.tolist()) == list(range(7))
        seen.add(tuple(partner.tolist()))
    assert len(seen) == 36, "3! times 3! times 1!"
