"""The plain parts: mean over environments or rows, their sum, and the mean gradient."""

import pytest
import torch

from envariant.algorithms import Composition, Mean, MeanGradient, SumRisk
from envariant.core.errors import EnvariantError
from envariant.core.step_context import START
from envariant.core.tasks import Regression
from helpers import PROBLEMS, assert_same, autograd, predicted, update, vector


def risk(part, residuals, sizes):
    return float(part.risk(predicted(Regression(), residuals, torch.zeros_like(residuals), sizes), {})[0])


def test_environments_weigh_the_same_or_by_their_rows():
    """Squared errors 1 | 4, 4, 4: risks 1 and 4."""
    residuals = vector(1, 2, 2, 2)
    assert risk(Mean(), residuals, (1, 3)) == pytest.approx(2.5)
    assert risk(Mean("rows"), residuals, (1, 3)) == pytest.approx(13 / 4)
    assert risk(SumRisk(), residuals, (1, 3)) == pytest.approx(5)


def test_with_equal_sizes_both_means_are_one():
    residuals = vector(1, 2, 3, 4, 5, 6)
    assert risk(Mean(), residuals, (2, 2, 2)) == pytest.approx(risk(Mean("rows"), residuals, (2, 2, 2)))


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_the_mean_over_rows_is_the_risk_of_the_pooled_data(problem):
    inputs, targets = problem.batch.inputs, problem.batch.targets
    pooled = problem.with_batch([(inputs, targets)])
    expected = autograd(lambda p: pooled.environment_risk(p, 0), problem.params)
    assert_same(update(Composition(Mean("rows")), problem), expected, 1e-12)
    assert_same(update(Composition(), pooled), expected, 1e-12)


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_the_sum_is_the_mean_times_the_number_of_environments(problem):
    mean, total = (update(Composition(risk_aggregator), problem) for risk_aggregator in (Mean(), SumRisk()))
    assert_same(total, {name: 3 * g for name, g in mean.items()}, 1e-13)


def test_the_mean_gradient_is_the_mean_of_gradients():
    found, _, _ = MeanGradient().combine({"w": torch.stack([vector(1, -2), vector(3, 6)])}, {}, START)
    assert found["w"].tolist() == [2.0, 2.0]


def test_an_unknown_mean_is_refused():
    with pytest.raises(EnvariantError, match="Mean: over must be environments or rows; got pixels"):
        Mean("pixels")
