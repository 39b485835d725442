"""Parts combined: environments taken apart, the papers' whole objectives, parts of one's own."""

from dataclasses import dataclass

import pytest
import torch

from algorithms.problems import PROBLEMS, assert_same, autograd
from envariant.algorithms import (
    IGA,
    IRM,
    AndMask,
    Composition,
    MeanGradient,
    MeanRisk,
    MMREx,
    Penalty,
    PooledMean,
    RiskAggregator,
    SumRisk,
    VREx,
)
from envariant.core.errors import EnvariantError
from envariant.core.schedules import Schedule, Step
from envariant.core.step_context import START, StepContext
from envariant.testing import update

EVERYTHING_KEPT = AndMask(threshold=0.0, inverse_sparsity=False)
every_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


@every_problem
@pytest.mark.parametrize(
    "extras", [{}, {"l2": 0.3, "normalize_loss": True}], ids=["bare", "l2 and normalize_loss"]
)
@pytest.mark.parametrize("risk_aggregator", [MeanRisk(), PooledMean(), SumRisk(), MMREx(5.0)], ids=str)
@pytest.mark.parametrize(
    "penalties", [(), (VREx(7.0),), (IRM(7.0),), (VREx(2.0), IRM(9.0)), (IGA(0.5), VREx(2.0))], ids=str
)
def test_the_mean_of_environment_gradients_is_the_gradient_of_the_whole_loss(
    problem, risk_aggregator, penalties, extras
):
    apart, whole = (
        Composition(risk_aggregator, penalties, gradient_aggregator, **extras)
        for gradient_aggregator in (EVERYTHING_KEPT, MeanGradient())
    )
    assert_same(update(apart, problem), update(whole, problem), 1e-12)


def masked(each, params):
    """AND-mask with τ = 1 on gradients of environments, without scaling."""
    found = {}
    for name in params:
        stack = torch.stack([g[name] for g in each])
        agree = (stack > 0).all(dim=0) | (stack < 0).all(dim=0)
        found[name] = torch.where(agree, stack.mean(dim=0), 0.0)
    return found


UNSCALED = AndMask(threshold=1.0, inverse_sparsity=False)


@every_problem
def test_the_mask_receives_each_environments_term_of_the_vrex_gradient(problem):
    """L = R̄ + c·Var(R), so E·∂L/∂R_e = 1 + 2c(R_e − R̄)."""
    c, risks = 4.0, problem.risks(problem.params)
    each = []
    for e in range(3):
        own = autograd(lambda p, e=e: problem.environment_risk(p, e), problem.params)
        each.append({name: g * (1 + 2 * c * (risks[e] - risks.mean())) for name, g in own.items()})
    expected = masked(each, problem.params)
    assert_same(update(Composition(MeanRisk(), (VREx(c),), UNSCALED), problem), expected, 1e-11)


@every_problem
def test_the_mask_receives_each_environments_irm_penalty(problem):
    c = 4.0
    each = [
        autograd(lambda p, e=e: problem.environment_risk(p, e) + c * problem.slope(p, e) ** 2, problem.params)
        for e in range(3)
    ]
    expected = masked(each, problem.params)
    assert_same(update(Composition(MeanRisk(), (IRM(c),), UNSCALED), problem), expected, 1e-11)


@every_problem
def test_l2_is_added_after_the_mask(problem):
    penalties = (VREx(5.0),)
    plain = update(Composition(MeanRisk(), penalties, AndMask(), normalize_loss=True), problem)
    decayed = update(Composition(MeanRisk(), penalties, AndMask(), l2=0.25, normalize_loss=True), problem)
    expected = {name: g + 2 * 0.25 / 5 * problem.params[name] for name, g in plain.items()}
    assert_same(decayed, expected, 1e-13)
    assert any(bool((g == 0).any()) for g in plain.values()), "the mask has something to hold back"


@every_problem
@pytest.mark.parametrize(("step", "weight"), [(0, 1.0), (189, 1.0), (190, 91257.0)])
def test_objective_of_the_irm_code(problem, step, weight):
    """Mean risk + l2·‖θ‖² + λ·mean squared slope, divided by λ once it exceeds 1; differentiated twice."""

    def objective(p):
        loss = problem.risks(p).mean() + 1.1e-3 * sum(v.norm() ** 2 for v in p.values())
        loss = loss + weight * torch.stack([problem.slope(p, e) ** 2 for e in range(3)]).mean()
        return loss / weight if weight > 1 else loss

    ours = Composition(penalties=(IRM(Step(1.0, 91257.0, at=190)),), l2=1.1e-3, normalize_loss=True)
    assert_same(
        update(ours, problem, context=StepContext.at(step)), autograd(objective, problem.params), 1e-11
    )


@every_problem
@pytest.mark.parametrize(("step", "c"), [(99, 1.0), (100, 1e4)])
def test_objective_of_the_rex_code(problem, step, c):
    """[R₁ + R₂ + l2·‖θ‖² + c·(R₁ − R₂)²] / max(1, c)."""
    two = problem.first(2)

    def objective(p):
        first, second = two.risks(p)
        l2 = 1e-3 * sum((v**2).sum() for v in p.values())
        return (first + second + l2 + c * (first - second) ** 2) / max(1.0, c)

    ours = Composition(
        SumRisk(), (VREx(Step(1.0, 1e4, at=100), pairwise=True),), l2=1e-3, normalize_loss=True
    )
    assert_same(update(ours, two, context=StepContext.at(step)), autograd(objective, problem.params), 1e-11)


def test_normalize_loss_divides_by_the_largest_coefficient_above_one():
    problem = PROBLEMS["binary"]
    parts = {"risk_aggregator": MMREx(2.0), "penalties": (VREx(8.0), IRM(4.0)), "l2": 0.1}
    small = {"penalties": (VREx(0.5),), "l2": 0.1}
    whole = update(Composition(**parts), problem)
    assert_same(
        update(Composition(**parts, normalize_loss=True), problem),
        {k: v / 8 for k, v in whole.items()},
        1e-12,
    )
    assert_same(
        update(Composition(**small, normalize_loss=True), problem), update(Composition(**small), problem), 0
    )


def test_metrics_are_the_unnormalized_risk_penalties_and_coefficients():
    problem = PROBLEMS["binary"]
    algorithm = Composition(SumRisk(), (VREx(8.0),), normalize_loss=True)
    state = algorithm.init(problem.params, problem.context)
    _, _, metrics = algorithm.gradients(problem, problem.params, problem.batch, state, START)
    risks = problem.risks(problem.params)
    assert metrics.keys() == {"risk", "vrex penalty", "vrex coefficient"}
    assert metrics["vrex coefficient"].item() == 8
    torch.testing.assert_close(metrics["risk"], risks.sum())
    torch.testing.assert_close(metrics["vrex penalty"], risks.var(correction=0))


@dataclass(frozen=True)
class FeatureSize(Penalty):
    """A part of the user's own that looks at features."""

    name = "feature-size"
    paper = "none"
    minimum_environments = 3
    needs_features = True
    coefficient: Schedule

    def penalty(self, predicted, state):
        return predicted.features.square().mean(), state


@dataclass(frozen=True)
class Remembered(RiskAggregator):
    """A part of the user's own with a state: the mean risk, weighed by how often it was asked."""

    name = "remembered"
    paper = "none"

    def init(self, params, context):
        return {"calls": torch.zeros(context.environments, dtype=torch.float64)}

    def risk(self, predicted, state):
        calls = state["calls"] + 1
        return (calls * predicted.risks).mean(), {"calls": calls}


@pytest.mark.parametrize("gradient_aggregator", [MeanGradient(), EVERYTHING_KEPT], ids=str)
def test_outside_parts_may_read_features_and_carry_a_state(gradient_aggregator):
    problem = PROBLEMS["regression"]
    algorithm = Composition(Remembered(), (FeatureSize("constant(3)"),), gradient_aggregator)
    assert (algorithm.needs_features, algorithm.minimum_environments) == (True, 3)
    state = algorithm.init(problem.params, problem.context)
    for call in (1, 2):
        found, state, _ = algorithm.gradients(problem, problem.params, problem.batch, state, START)
        expected = autograd(
            lambda p, call=call: (
                call * problem.risks(p).mean() + 3 * (problem(p, problem.batch.inputs)[0] ** 2).mean()
            ),
            problem.params,
        )
        assert_same(found, expected, 1e-12)
        assert state["0"]["calls"].tolist() == [call] * 3


def test_requirements_are_those_of_the_most_demanding_part():
    assert (Composition().minimum_environments, Composition().needs_features) == (1, False)
    assert Composition(gradient_aggregator=AndMask()).minimum_environments == 2
    assert Composition(penalties=(VREx(),)).minimum_environments == 2


@pytest.mark.parametrize(("l2", "shown"), [(-1.0, "-1"), (float("nan"), "nan")])
def test_a_negative_l2_is_rejected(l2, shown):
    with pytest.raises(EnvariantError) as error:
        Composition(l2=l2)
    assert str(error.value) == f"Composition: l2 must be at least 0, got {shown}"


def test_an_unknown_schedule_is_rejected_with_the_nearest_name():
    with pytest.raises(EnvariantError, match="unknown schedule 'stpe'; did you mean 'step'"):
        IRM("stpe(1, 10, at=5)")


def test_a_penalty_without_coefficient_is_one_error():
    @dataclass(frozen=True)
    class Bare(Penalty):
        name = "bare"

        def penalty(self, predicted, state):
            return predicted.logits.mean(), state

    with pytest.raises(EnvariantError, match="Bare: a penalty must have a field named coefficient"):
        Bare()
