"""Linear regressions of EQRM and of AND-mask: data of the released program, and derived weights."""

import numpy as np
import pytest
import torch

from envariant.reproductions import and_mask_linear, eqrm_regression
from envariant.reproductions.quadratic import Moments
from envariant.reproductions.runner import Runner
from envariant.reproductions.verdicts import Claim


def test_deviations_are_those_of_the_released_program():
    sigma = eqrm_regression.deviations(1000)
    assert sigma[:4].tolist() == pytest.approx([2.973229, 0.812625, 0.214245, 1.494724], abs=6e-7)
    assert sigma.double().square().mean().item() == pytest.approx(2.9935, abs=5e-5)


def test_derived_weights_are_those_of_a_second_program():
    sigma = eqrm_regression.deviations(1000)
    expected = {None: 0.4005, 0.25: 1.0549, 0.5: 0.5566, 0.75: 0.3509, 0.9: 0.2251, 0.99: 0.0585}
    for quantile, w in expected.items():
        assert eqrm_regression.derived(sigma, quantile) == pytest.approx(w, abs=6e-5)


def test_training_ends_at_the_derived_weights():
    sigma = eqrm_regression.deviations(20)
    for quantile in (None, 0.9):
        w = eqrm_regression.train(eqrm_regression.moments(sigma), quantile, steps=350)
        end = eqrm_regression.derived(sigma, quantile)
        assert w.tolist() == pytest.approx([1 - end, end, 0], abs=3e-3)


def test_sampled_moments_have_the_distribution_of_rows():
    sigma, n = torch.full((4000,), 0.7), 30
    generator = torch.Generator().manual_seed(1)
    x1, u, v = torch.randn(3, 4000, n, generator=generator).double()
    y = x1 + 2**0.5 * u
    rows = Moments.of(torch.stack((x1, y + 0.7 * v), dim=-1), y, intercept=True)
    sampled, exact = (eqrm_regression.moments(sigma, count) for count in (n, None))
    for part in ("gram", "cross", "square"):
        ours, theirs = getattr(sampled, part), getattr(rows, part)
        assert ours.mean(dim=0).numpy() == pytest.approx(getattr(exact, part)[0].numpy(), abs=0.06)
        assert ours.std(dim=0).numpy() == pytest.approx(theirs.std(dim=0).numpy(), rel=0.06, abs=1e-9)


def test_test_risks_are_the_quantiles_of_the_deviation():
    expected = (0.404059, 0.620682, 1, 1.611131, 2.474885, 5.180887, 8.891753)
    for level, sigma in zip(eqrm_regression.TEST_QUANTILES, expected, strict=True):
        risk = eqrm_regression.risk([0.5, 0.25, 0.1], level)
        assert risk == pytest.approx(0.25**2 + 2 * 0.75**2 + 0.25**2 * sigma**2 + 0.1**2, abs=1e-6)


def test_the_mask_learns_the_shared_coordinate_and_the_mean_the_shortcuts():
    rules, x = and_mask_linear.RULES, and_mask_linear.rows()
    assert x.tolist()[1] == pytest.approx([0, 3, 0, 0, 0.3])
    masked = and_mask_linear.train(rules["and-mask"], x, 3, 1001).mean(dim=0)
    assert masked.tolist() == pytest.approx([0, 0, 0, 0, 3], abs=0.2)
    mean = and_mask_linear.train(rules["mean"], x[:2], 3, 1001).mean(dim=0)
    assert mean.tolist() == pytest.approx([0.3265, 0.3265, 0, 0, 0.0653], abs=0.03)
    assert and_mask_linear.fixed_point("mean, 4 environments").tolist() == pytest.approx(
        [0.3191] * 4 + [0.1277], abs=5e-5
    )


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_sections_run_to_their_end(monkeypatch, tmp_path, profile):
    monkeypatch.setattr(eqrm_regression, "ENVIRONMENTS", 5)
    monkeypatch.setattr(eqrm_regression, "STEPS", 2)
    monkeypatch.setattr(and_mask_linear, "STARTS", 2)
    monkeypatch.setattr(and_mask_linear, "STEPS", 3)
    runner = Runner(tmp_path, profile)
    counts = [
        sum(isinstance(finding, Claim) for finding in each.find(runner))
        for each in (eqrm_regression.regression, and_mask_linear.linear)
    ]
    assert counts == [8, 4]
    assert np.isfinite(next(iter(runner.computations.values())).result["exact"]["ERM"]).all()
