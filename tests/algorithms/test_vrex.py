"""V-REx: the spec's numbers, both published forms and how their coefficients translate."""

import itertools

import pytest
import torch

from algorithms.problems import PROBLEMS, assert_same
from algorithms.spec_values import vector, with_risks
from envariant.algorithms import Composition, MeanRisk, SumRisk, VREx
from envariant.testing import update

RISKS = vector(0.3, 0.5, 1.0)


def penalty(risks, **settings):
    return VREx(1.0, **settings).penalty(with_risks(risks), {})[0]


def loss(risk_aggregator, part, risks):
    seen = with_risks(risks)
    return float(risk_aggregator.risk(seen, {})[0] + part.coefficient_at(0) * part.penalty(seen, {})[0])


@pytest.mark.parametrize(
    ("risks", "variance", "coefficient", "total"),
    [
        ((0.3, 0.5, 1.0), 0.0866667, 1.0, 0.686667),
        ((0.3, 0.5, 1.0), 0.0866667, 10.0, 1.46667),
        ((0.3, 0.5), 0.01, 10.0, 0.5),
        ((0.3,), 0.0, 10.0, 0.3),
    ],
)
def test_values_of_the_specification(risks, variance, coefficient, total):
    assert float(penalty(vector(*risks))) == pytest.approx(variance, rel=1e-5)
    assert loss(MeanRisk(), VREx(coefficient), vector(*risks)) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(("c", "expected"), [(1.0, 0.84), (1e4, 0.04008)])
def test_values_of_the_specification_for_the_rex_code(c, expected):
    found = loss(SumRisk(), VREx(c, pairwise=True), vector(0.3, 0.5)) / max(1, c)
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_gradient_moves_each_risk_towards_the_mean():
    found = torch.func.grad(penalty)(RISKS)
    torch.testing.assert_close(found, 2 * (RISKS - RISKS.mean()) / 3)
    assert float(torch.func.grad(penalty)(vector(0.3))) == 0.0


@pytest.mark.parametrize("risks", [(0.3, 0.5), (0.3, 0.5, 1.0), (1.0, 2.0, 0.5, 4.0, 0.1)])
def test_the_pairwise_form_is_the_sum_over_pairs(risks):
    expected = sum((a - b) ** 2 for a, b in itertools.combinations(risks, 2))
    assert float(penalty(vector(*risks), pairwise=True)) == pytest.approx(expected)


def test_domainbeds_coefficient_is_twice_the_rex_codes():
    two = PROBLEMS["binary"].first(2)
    rex = update(Composition(SumRisk(), (VREx(3.0, pairwise=True),)), two)
    domainbed = update(Composition(MeanRisk(), (VREx(6.0),)), two)
    assert_same(rex, {name: 2 * g for name, g in domainbed.items()}, 1e-12)
