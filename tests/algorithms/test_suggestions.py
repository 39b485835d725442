"""What a bare command minimizes on Colored MNIST is the objective of the paper's own code."""

import pytest

from algorithms.problems import PROBLEMS, assert_same, autograd
from envariant.algorithms import recipe
from envariant.core.step_context import StepContext
from envariant.data import ColoredMNIST
from envariant.testing import update

# Coefficient of the L2 term, penalty weight and step from which it applies, in the code of each paper.
IRM_CODE, REX_CODE = (0.00110794568, 91257.18613115903, 190), (0.001, 10_000.0, 100)
TWO = PROBLEMS["binary"].first(2)  # The papers train on two environments.


def square_norm(params):
    return sum((value**2).sum() for value in params.values())


def mean_square_slope(params):
    return (TWO.slope(params, 0) ** 2 + TWO.slope(params, 1) ** 2) / 2


def suggested(protocol, algorithm):
    return recipe(algorithm).build(ColoredMNIST(protocol).default_settings(algorithm).hyperparameters)


def irm_code(params, c, l2):
    first, second = TWO.risks(params)
    return (first + second) / 2 + l2 * square_norm(params) + c * mean_square_slope(params)


def rex_code(params, c, l2):
    first, second = TWO.risks(params)
    return first + second + l2 * square_norm(params) + c * (first - second) ** 2


def rex_code_absolute(params, c, l2):
    first, second = TWO.risks(params)
    return first + second + l2 * square_norm(params) + c * (first - second).abs()


@pytest.mark.parametrize("step", [0, 99, 100, 189, 190, 500])
@pytest.mark.parametrize(
    ("algorithm", "objective", "numbers", "times"),
    # MM-REx is R̄ + κ(max − R̄), half of the code's R₁ + R₂ + c|R₁ − R₂|: Adam does not see the factor.
    [
        ("irm", irm_code, IRM_CODE, 1),
        ("vrex", rex_code, REX_CODE, 1),
        ("mm-rex", rex_code_absolute, REX_CODE, 2),
    ],
)
def test_protocol_irm_uses_the_objective_of_the_irm_and_rex_code(algorithm, objective, numbers, times, step):
    l2, weight, switch = numbers
    c = weight if step >= switch else 1.0
    expected = autograd(lambda p: objective(p, c, l2) / max(1.0, c), TWO.params)
    found = update(suggested("irm", algorithm), TWO, context=StepContext.at(step))
    assert_same({name: times * g for name, g in found.items()}, expected, 1e-9)


@pytest.mark.parametrize(("algorithm", "l2"), [("erm", 1e-3), ("and-mask", 1e-3)])
def test_protocol_irm_uses_the_baselines_weight_decay_for_others(algorithm, l2):
    assert suggested("irm", algorithm).l2 == l2


@pytest.mark.parametrize(("step", "after"), [(0, False), (499, False), (500, True), (5000, True)])
def test_protocol_domainbed_uses_domainbeds_objective_for_vrex(step, after):
    """R̄ + λ·Var(R), λ from 1 to 10, and never divided by λ."""

    def objective(params):
        risks = TWO.risks(params)
        return risks.mean() + (10 if after else 1) * risks.var(correction=0)

    assert_same(
        update(suggested("domainbed", "vrex"), TWO, context=StepContext.at(step)),
        autograd(objective, TWO.params),
        1e-9,
    )


@pytest.mark.parametrize(("step", "after"), [(499, False), (500, True)])
def test_protocol_domainbed_uses_domainbeds_coefficient_for_irm(step, after):
    """R̄ + λ·penalty, λ from 1 to 100; DomainBed's own penalty is of half batches, ours of whole ones."""

    def objective(params):
        return TWO.risks(params).mean() + (100 if after else 1) * mean_square_slope(params)

    assert_same(
        update(suggested("domainbed", "irm"), TWO, context=StepContext.at(step)),
        autograd(objective, TWO.params),
        1e-9,
    )
