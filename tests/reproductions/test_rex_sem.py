"""Sections of REx that need no training: exact toy problem, risks of V-REx variants, and artefact of the program."""

import pytest
import torch

from envariant.data.linear_sem import LinearSEM
from envariant.reproductions import rex_linear, rex_sem
from envariant.reproductions.runner import Runner
from envariant.reproductions.sem import Problems

# Predictions for the second and third input after 10 and 500 steps, of another implementation.
TOY = {
    "ERM": (0.5507, 0.3854, 0.75, 0.1334),
    "IRM": (0.5474, 0.4165, 0.75, 0.4929),
    "REx": (0.5160, 0.4618, 0.5002, 0.4995),
    "REx-HD": (0.7236, 0.1464, 0.7465, 0.4967),
}


def equations(setup):
    return LinearSEM(setup, coefficients="normal").draw(torch.Generator().manual_seed(1))


@pytest.mark.parametrize("method", TOY)
def test_toy_predictions_are_those_of_the_program(method):
    path = rex_linear.toy(method, 500)
    assert [*path[10][1:], *path[500][1:]] == pytest.approx(TOY[method], abs=6e-5)
    assert path[500][0] == pytest.approx(0.5)


@pytest.mark.parametrize("baseline", rex_linear.BASELINES)
def test_adjusted_risks_equal_those_of_the_rows(baseline):
    drawn = equations("PES")
    x, y = drawn.x.double(), drawn.y.double()
    w = torch.linspace(-1, 2, 10).double()
    predicted = x @ w
    risks = (predicted - y).square().mean(dim=1)
    sign = {"REx_0": None, "REx_var": 1, "REx_var_diff": -1}[baseline]
    if sign is not None:
        risks = risks - (y.var(dim=1) + sign * predicted.var(dim=1))
    moments = Problems.of([drawn]).with_intercept[0]
    torch.testing.assert_close(rex_linear.adjusted(moments, baseline).risk(w), risks)


def test_vrex_takes_the_steps_of_automatic_differentiation():
    drawn = equations("FOS")
    problems = Problems.of([drawn])
    x, y = drawn.x.double(), drawn.y.double()
    solutions = []
    for reg in (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1):
        w = torch.ones(10, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([w], lr=1e-3)
        for _ in range(20):
            first, second = (x[:2] @ w - y[:2]).square().mean(dim=1)
            optimizer.zero_grad()
            (reg * (first + second) + (1 - reg) * (first - second).square()).backward()
            optimizer.step()
        solutions.append(w.detach())
    best = min(solutions, key=lambda w: (x[2] @ w - y[2]).square().mean().item())
    torch.testing.assert_close(rex_linear.vrex(problems, 20)["REx_0"].weights[0], best)


def test_printed_errors_of_scrambled_setups_are_those_of_rotated_true_weights():
    problems = Problems.of([equations("FES")])
    estimate = torch.linspace(0, 1, 10).double()[None]
    rotated = problems.scramble.mT @ problems.weights[..., None]
    expected = (estimate - rotated[..., 0]).square().mean(dim=1).tolist()
    printed = rex_linear.as_printed(problems.errors(estimate), scrambled=True)
    assert printed["causal"] == pytest.approx(expected)
    assert printed["non-causal"] == [0.0]


def test_both_sections_run_to_their_end(monkeypatch, tmp_path):
    monkeypatch.setattr(rex_sem, "STEPS", 3)
    runner = Runner(tmp_path, "quick")
    claims = [each for each in rex_sem.toy.find(runner) if hasattr(each, "verdict")]
    assert [claim.verdict for claim in claims] == ["holds", "holds"]
    assert len([each for each in rex_sem.linear.find(runner) if hasattr(each, "verdict")]) == 3
