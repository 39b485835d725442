"""MM-REx: the spec's numbers, the linear program it solves, and ties."""

import numpy as np
import pytest
import scipy.optimize
import torch

from algorithms.spec_values import vector, with_risks
from envariant.algorithms import MMREx
from envariant.core.schedules import Step
from envariant.core.step_context import StepContext

RISKS = vector(0.3, 0.5, 1.0)


def risk(part, risks, step=0):
    return part.risk(with_risks(risks, StepContext.at(step)), {})[0]


def weights(part, risks):
    return torch.func.grad(lambda r: risk(part, r))(risks)


@pytest.mark.parametrize(("least", "expected"), [(1 / 3, 0.6), (0, 1), (-1, 2.2), (-10, 13)])
def test_values_of_the_specification(least, expected):
    assert float(risk(MMREx.with_minimum_weight(least, 3), RISKS)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("c", "expected"), [(1.0, 1.0), (1e4, 0.20008)])
def test_values_of_the_specification_for_the_rex_codes_absolute_form(c, expected):
    """R₁ + R₂ + c·|R₁ − R₂| is twice the risk at κ = c."""
    found = 2 * float(risk(MMREx(c), vector(0.3, 0.5))) / max(1, c)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("least", [1 / 4, 0.1, 0.0, -0.5, -20.0])
def test_the_risk_is_the_worst_affine_combination(least):
    """Against a linear program over the weights: Σλ = 1, each at least λ_min."""
    risks = np.array([0.7, 0.2, 1.3, 0.9])
    solved = scipy.optimize.linprog(-risks, A_eq=np.ones((1, 4)), b_eq=[1], bounds=(least, None))
    part = MMREx.with_minimum_weight(least, 4)
    assert float(risk(part, torch.from_numpy(risks))) == pytest.approx(-solved.fun)
    torch.testing.assert_close(weights(part, torch.from_numpy(risks)), torch.from_numpy(solved.x))


def test_kappa_one_is_the_worst_risk():
    assert float(risk(MMREx(1.0), RISKS)) == pytest.approx(1.0)
    torch.testing.assert_close(weights(MMREx(1.0), RISKS), vector(0, 0, 1))


def test_of_equal_risks_only_the_first_has_a_gradient():
    torch.testing.assert_close(weights(MMREx(4.0), vector(0.5, 0.9, 0.9)), vector(-1, 3, -1))


def test_one_environment_gives_its_risk_for_every_kappa():
    assert float(risk(MMREx(1e4), vector(0.3))) == pytest.approx(0.3)
    torch.testing.assert_close(weights(MMREx(1e4), vector(0.3)), vector(1))


def test_kappa_follows_its_schedule():
    part = MMREx(Step(0.0, 1.0, at=5))
    assert [float(risk(part, RISKS, step)) for step in (0, 4, 5)] == pytest.approx([0.6, 0.6, 1.0])
    assert [part.coefficient_at(step) for step in (4, 5)] == [0.0, 1.0]
