"""EQRM: the spec's quantiles and slopes, and the derivative by root finding."""

import math

import numpy as np
import pytest
import torch

import envariant
from algorithms.references.eqrm import slopes_of_quantile, smooth_quantile, weights_after
from algorithms.spec_values import close, vector, with_risks
from envariant.algorithms import EQRM
from envariant.algorithms.risk_aggregators.mm_rex import MMREx
from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.schedules import Step
from envariant.core.step_context import StepContext
from envariant.core.tasks import Binary
from envariant.data import colored_digits

R = (0.2, 0.5, 0.6, 1.1)


def value_and_slopes(part, risks=R):
    risks = vector(*risks).requires_grad_()
    value = part.of_risks(risks)
    return value.detach(), torch.autograd.grad(value, risks)[0]


@pytest.mark.parametrize(
    ("alpha", "loss", "brackets", "exact"),
    [
        (0.5, 0.575103, (0.583219, 0, 0, 0.416781), (0.135534, 0.357253, 0.377129, 0.130084)),
        (0.75, 0.903113, (0.250943, -0.0482707, 0, 0.797327), (-0.0835564, 0.186897, 0.319898, 0.576761)),
        (0.9, 1.20197, (-0.0521611, -0.0917159, 0, 1.14388), (-0.185033, 0.00988051, 0.117253, 1.05790)),
    ],
)
def test_values_of_the_specification(alpha, loss, brackets, exact):
    for slope, expected in (("brackets", brackets), ("exact", exact)):
        value, slopes = value_and_slopes(EQRM(alpha, 0, slope))
        close(value, loss)
        torch.testing.assert_close(slopes, vector(*expected), rtol=1e-5, atol=1e-8)


def test_values_of_the_specification_for_the_log_form():
    close(value_and_slopes(EQRM(-100.0, 0))[0], 4.85082)


@pytest.mark.parametrize("alpha", [0.05, 0.5, 0.75, 0.99])
def test_quantile_and_exact_slopes_equal_those_of_root_finding(alpha):
    for risks in (R, (0.3, 0.31), (2.0, 0.1, 0.1)):
        value, slopes = value_and_slopes(EQRM(alpha, 0, "exact"), risks)
        torch.testing.assert_close(value, vector(smooth_quantile(list(risks), alpha))[0], rtol=1e-8, atol=0)
        expected = vector(*slopes_of_quantile(list(risks), alpha))
        torch.testing.assert_close(slopes, expected, rtol=1e-8, atol=1e-9)


def test_value_of_the_specification_for_silvermans_bandwidth():
    """k of the spec's 0.152703, which the median of a symmetric sample does not tell, another quantile does."""
    value, _ = value_and_slopes(EQRM(0.75, 0, "exact", bandwidth="silverman"))
    from scipy.stats import norm

    share = np.mean([norm.cdf((float(value) - r) / 0.152703) for r in R])
    assert abs(share - 0.75) < 1e-5


@pytest.mark.parametrize("risks", [(0.7,), (0.7, 0.7, 0.7)])
def test_the_quantile_of_equal_risks_is_their_mean(risks):
    value, slopes = value_and_slopes(EQRM(0.9, 0), risks)
    close(value, 0.7)
    close(slopes, *[1 / len(risks)] * len(risks))


def test_the_mean_risk_is_minimized_during_burn_in():
    part = EQRM(0.9, burn_in=5)
    early, late = (float(part.risk(with_risks(vector(*R), StepContext.at(step)), {})[0]) for step in (4, 5))
    assert early == pytest.approx(0.6)
    assert late == pytest.approx(1.20197, rel=1e-5)


@pytest.mark.parametrize(("a", "weight"), [(-100, 18.456), (-1000, 58.362), (-10_000, 184.56)])
def test_with_two_environments_the_log_form_is_mm_rex(a, weight):
    """R̄ + 1.06·2^(−1/5)·√(−2a)·|R₁ − R₂|/√2; the weight of MM-REx is twice that of |R₁ − R₂|."""
    kappa = 2 * 1.06 * 2**-0.2 * math.sqrt(-2 * a) / math.sqrt(2)
    assert kappa == pytest.approx(weight, rel=1e-4)
    trained = [
        envariant.train(
            colored_digits(), part, model="mlp(hidden=8)", steps=6, evaluate_every=1, replicas=1, progress=False,
            optimizer="sgd", learning_rate=1e-4, batch_size="full", precision="float32", execution="sequential",
        )
        for part in (EQRM(a, burn_in=2), MMREx(Step(0, kappa, at=2)))
    ]  # fmt: skip
    ours, theirs = ([r.value for r in each.rows if r.metric == "loss"] for each in trained)
    assert ours == pytest.approx(theirs, rel=1e-6)


@pytest.fixture(scope="module")
def three_sites():
    generator = torch.Generator().manual_seed(0)
    environments = []
    for k in range(3):
        inputs = torch.randn(40, 2, generator=generator)
        labels = (inputs[:, 0] + k * torch.randn(40, generator=generator) > 0).double()
        environments.append(Environment(f"site {k}", inputs, labels))
    return EnvironmentSet("sites", tuple(environments), Binary())


def test_a_schedule_and_a_reset_restart_adam_at_its_own_rate_as_the_released_code_does(three_sites):
    def weights(steps, **options):
        result = envariant.train(
            three_sites,
            EQRM(0.7, burn_in=4, slope="exact"),
            model="linear",
            steps=steps,
            execution="sequential",
            **options,
        )
        layer = next(part for part in result.model(0).modules() if isinstance(part, torch.nn.Linear))
        return {"weight": layer.weight.detach(), "bias": layer.bias.detach()}

    start = weights(1, learning_rate=1e-30)
    found = weights(12, learning_rate="step(0.1, 1e-3, at=4)", optimizer="adam(reset=4)")
    rows = [(each.inputs.double(), each.targets) for each in three_sites.environments]
    weight, bias = weights_after(rows, start, 0.7, 4, (0.1, 1e-3), 12)
    for name, expected in (("weight", weight), ("bias", bias)):
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 1.5])
def test_a_quantile_out_of_range_is_rejected(alpha):
    with pytest.raises(EnvariantError, match=r"EQRM: quantile must be α in \(0, 1\)"):
        EQRM(alpha)
