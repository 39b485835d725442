"""CORAL, MMD and CausIRL: the spec's numbers, and rows drawn where there are many."""

import pytest
import torch

from algorithms.spec_values import A, B, close, predicted, two_environments, vector
from envariant.algorithms import CORAL, MMD, CausIRL
from envariant.algorithms.penalties import distances
from envariant.core.step_context import StepContext
from envariant.core.tasks import Regression

ROWS = torch.cat([A, B])
FIRST, SECOND = vector(1, 1, 1, 0, 0, 0), vector(0, 0, 0, 1, 1, 1)


def test_values_of_the_specification_for_coral():
    first, second = (distances.Moments.of(ROWS, chosen) for chosen in (FIRST, SECOND))
    close(first.covariance, 1, -1, -1, 4)
    close(second.covariance, 1, -1.5, -1.5, 3)
    close(distances.coral(first, second), 2.875)
    close(distances.coral(first, second, means=False), 0.09375)
    close(CORAL(1.0).penalty(two_environments(), {})[0], 2.875)
    close(CORAL(1.0, means=False).penalty(two_environments(), {})[0], 0.09375)


def test_values_of_the_specification_for_kernels():
    kernels = distances.kernel(ROWS)
    close(kernels[:3, :3].mean(), 3.87418)
    close(kernels[3:, 3:].mean(), 4.03608)
    close(kernels[:3, 3:].mean(), 2.40840)
    close(distances.squared_mmd(kernels, FIRST, SECOND), 3.09346)
    close(distances.squared_mmd(kernels, FIRST, FIRST), 0.0)
    close(MMD(1.0).penalty(two_environments(), {})[0], 3.09346)


@pytest.mark.parametrize(("distance", "expected"), [("coral", 21.9861), ("mmd", 3.59052)])
def test_values_of_the_specification_for_causirl(distance, expected):
    seen, part = two_environments(), CausIRL(1.0, distance=distance)
    close(seen.risks.mean(), 0.872490)
    close(part.at(seen, torch.tensor([1, 2])), expected)
    assert float(part.at(seen, torch.tensor([0, 0]))) == 0.0
    assert float(part.at(seen, torch.tensor([1, 0]))) == 0.0, "one row is too few"


def test_split_positions_are_uniform_and_never_the_whole_environment():
    seen, cuts = two_environments(), set()
    for step in range(200):
        drawn = (StepContext.at(step).uniform(2, like=A) * 3).long()
        cuts.add(tuple(drawn.tolist()))
    assert cuts == {(i, j) for i in range(3) for j in range(3)}
    values = {
        round(float(CausIRL(1.0).penalty(two_environments(context=StepContext.at(s)), {})[0]), 6)
        for s in range(50)
    }
    assert len(values) > 3
    assert 0.0 in values
    assert seen.context.step == 0


def many(context):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(90, 2, generator=generator, dtype=torch.float64)
    zeros = torch.zeros(90, dtype=torch.float64)
    return predicted(Regression(), zeros, zeros, (50, 10, 30), features, context)


def test_subsamples_are_new_at_each_step_and_without_replacement():
    drawn = []
    for step in (0, 1):
        index, sizes = distances.subsample(many(StepContext.at(step)), 20)
        assert sizes == (20, 10, 20)
        assert len(set(index.tolist())) == 50
        parts = index.split(sizes)
        for part, (low, high) in zip(parts, [(0, 50), (50, 60), (60, 90)], strict=True):
            assert low <= int(part.min())
            assert int(part.max()) < high
        drawn.append(index.tolist())
    assert drawn[0] != drawn[1]
    index, _ = distances.subsample(many(StepContext.at(0)), 50)
    assert index.tolist() == list(range(90))
