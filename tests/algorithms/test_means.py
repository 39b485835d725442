"""The plain aggregators: mean over environments, mean over all rows, sum, and mean gradient."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from algorithms.problems import PROBLEMS, assert_same, assert_same_bits, autograd, train_context
from algorithms.spec_values import predicted, vector
from envariant.algorithms import (
    RECIPES,
    Composition,
    GroupDRO,
    MeanGradient,
    MeanRisk,
    PooledMean,
    SumRisk,
    recipe,
)
from envariant.core.environments import EnvironmentBatch
from envariant.core.errors import EnvariantError
from envariant.core.step_context import START
from envariant.core.tasks import Regression
from envariant.testing import update


def risk(part, residuals, sizes, training_sizes=None):
    """The aggregated risk of a batch with squared residuals as losses."""
    batch = predicted(Regression(), residuals, torch.zeros_like(residuals), sizes)
    state = part.init({"w": residuals}, train_context(training_sizes or sizes, Regression()))
    return part.risk(batch, state)[0]


def test_mean_risk_ignores_sizes_and_pooled_mean_weights_by_rows():
    """Squared errors 1 | 4, 4, 4: risks 1 and 4."""
    residuals = vector(1, 2, 2, 2)
    assert float(risk(MeanRisk(), residuals, (1, 3))) == pytest.approx(2.5)
    assert float(risk(PooledMean(), residuals, (1, 3))) == pytest.approx(13 / 4)
    assert float(risk(SumRisk(), residuals, (1, 3))) == pytest.approx(5)


def test_both_means_are_equal_for_equal_sizes():
    residuals = vector(1, 2, 3, 4, 5, 6)
    assert float(risk(MeanRisk(), residuals, (2, 2, 2))) == pytest.approx(
        float(risk(PooledMean(), residuals, (2, 2, 2)))
    )


def test_pooled_mean_of_a_minibatch_weights_environments_by_their_training_rows():
    """Risks 1 and 4 in a batch of two rows each; the environments have 900 and 100 rows."""
    residuals = vector(1, 1, 2, 2)
    assert float(risk(PooledMean(), residuals, (2, 2), (900, 100))) == pytest.approx(0.9 * 1 + 0.1 * 4)
    assert float(risk(PooledMean(), residuals, (1, 3), (900, 100))) == pytest.approx(0.9 * 1 + 0.1 * 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [(3, 40_001), (7, 1, 12_345), (2**20, 3)])
def test_pooled_mean_of_a_full_batch_is_bit_identical_to_the_mean_of_all_losses(sizes, dtype):
    generator = torch.Generator().manual_seed(0)
    residuals = torch.randn(sum(sizes), generator=generator, dtype=dtype).requires_grad_()
    pooled = risk(PooledMean(), residuals, sizes)
    plain = residuals.square().mean()
    assert torch.equal(pooled, plain)
    assert torch.equal(*(torch.autograd.grad(value, residuals)[0] for value in (pooled, plain)))


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_pooled_mean_is_the_risk_of_the_pooled_data(problem):
    inputs, targets = problem.batch.inputs, problem.batch.targets
    pooled = problem.with_batch([(inputs, targets)])
    expected = autograd(lambda p: pooled.environment_risk(p, 0), problem.params)
    assert_same(update(Composition(PooledMean()), problem), expected, 1e-12)
    assert_same(update(Composition(), pooled), expected, 1e-12)


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_sum_risk_is_the_mean_times_the_number_of_environments(problem):
    mean, total = (update(Composition(aggregator), problem) for aggregator in (MeanRisk(), SumRisk()))
    assert_same(total, {name: 3 * g for name, g in mean.items()}, 1e-13)


STEPS = [name for name, known in RECIPES.items() if known.default.training_step is not None]
WITH_RISK = ["sagnet", "rsc", "dann", "cdann", "transfer", "arm", "trm", "adrmx", "erm++", "urm", "miro"]


@pytest.mark.parametrize("name", STEPS)
def test_training_steps_with_one_risk_take_the_choice_of_its_aggregator(name):
    settings = {h.name: h.default for h in recipe(name).hyperparameters}
    assert settings.get("risk_aggregator") == ("mean" if name in WITH_RISK else None)
    if name not in WITH_RISK:
        with pytest.raises(EnvariantError, match=f"{name}: risk_aggregator must be one of mean, got pooled"):
            replace(recipe(name).default, risk_aggregator=PooledMean())
    with pytest.raises(EnvariantError, match="risk_aggregator must be one of mean.* got groupdro"):
        replace(recipe(name).default, risk_aggregator=GroupDRO())


@pytest.mark.parametrize("name", [name for name in WITH_RISK if name not in ("sagnet", "rsc")])
def test_training_steps_report_the_risk_of_their_aggregator(name):
    """The others report a risk on masked or mixed features."""
    algorithm = recipe(name).build({"risk_aggregator": "mean"})
    problem = PROBLEMS["binary"].with_networks_of(algorithm)
    # ARM's and ADRMX's models are not the problem's.
    inputs, targets = problem.batch.inputs, problem.batch.targets
    if name == "arm":
        logits = torch.cat([problem(problem.params, x)[1] for x, _ in problem.environments()])
    else:
        logits = problem(problem.params, inputs)[1]
    losses = F.softplus(logits) - targets * logits
    risks = torch.stack([part.mean() for part in losses.split(problem.batch.sizes)])
    expected = {
        "mean": risks.mean(),
        "pooled": losses.mean(),
        "sum": risks.sum(),
        "worst-case": risks.max(),
    }
    for word, value in expected.items():
        _, _, metrics = problem.step(recipe(name).build({"risk_aggregator": word}))
        torch.testing.assert_close(metrics["risk"], value.detach(), rtol=1e-12, atol=0)


def test_pooled_weights_a_training_step_by_training_rows_in_minibatches_too():
    algorithm = recipe("erm++").build({"risk_aggregator": "pooled"})
    problem = PROBLEMS["binary"].first(2)
    problem = problem.with_batch([(x[:4], y[:4]) for x, y in problem.environments()])
    context = train_context((900, 100), problem.task, features=4)
    state = algorithm.init(problem.params, context)
    metrics = algorithm.gradients(problem, problem.params, problem.batch, state, START)[2]
    first, second = problem.risks(problem.params)
    torch.testing.assert_close(metrics["risk"], 0.9 * first + 0.1 * second, rtol=1e-12, atol=0)


def test_the_mean_of_equal_sizes_is_bit_identical_to_the_mean_of_all_rows():
    values = torch.randn(3000, generator=torch.Generator().manual_seed(0))
    batch = EnvironmentBatch(values[:, None], values, (1000,) * 3, Regression())
    assert torch.equal(batch.mean(values), values.mean())
    assert torch.equal(batch.risk(values), values.mean())


def test_the_mean_over_environments_ignores_sizes():
    values = vector(1, 4, 4, 4)
    batch = EnvironmentBatch(values[:, None], values, (1, 3), Regression())
    assert float(batch.mean(values)) == 2.5
    assert (batch.row_weights(values) / 6).tolist() == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6])
    assert float(batch.mean(values[:, None].expand(4, 2))) == 2.5


def test_mean_gradient_is_the_mean_of_gradients():
    combined, _, _ = MeanGradient().combine({"w": torch.stack([vector(1, -2), vector(3, 6)])}, {}, START)
    assert_same_bits(combined, {"w": vector(2, 2)})
