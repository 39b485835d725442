"""EQRM's reproduction on small data with few steps: every section runs, and starts are shared."""

import pytest
import torch

from envariant.core.schedules import schedule
from envariant.reproductions import eqrm_2022, eqrm_regression, reproduction
from envariant.reproductions.publish import perform
from envariant.reproductions.runner import Run, Runner

EQRM = reproduction("eqrm-2022")


@pytest.fixture
def small(monkeypatch):
    """Train all declared runs on colored digits, with a network 4 wide, for two steps."""
    monkeypatch.setattr(eqrm_2022, "FLIPS", (0.5, 0.9))
    monkeypatch.setattr(eqrm_2022, "DATA", "colored-digits(test_flips=(0.5, 0.9))")
    monkeypatch.setattr(eqrm_2022, "ORACLE", "colored-digits(train_flips=(0.5, 0.5), test_flips=(0.5, 0.9))")
    monkeypatch.setattr(eqrm_2022, "VALIDATION", ("flip-0.9",))
    monkeypatch.setattr(eqrm_regression, "ENVIRONMENTS", 50)
    monkeypatch.setattr(eqrm_regression, "STEPS", 5)
    tiny = {"model": "mlp(hidden=4)", "batch_size": 16, "steps": 2, "evaluate_every": 2}

    def shrunk(run):
        start = None if run.start is None else shrunk(run.start)
        return Run(run.data, run.algorithm, {**run.settings, **tiny}, start)

    train_as_declared = Runner.train
    declared = []

    def train(self, run):
        declared.append(run)
        return train_as_declared(self, shrunk(run))

    monkeypatch.setattr(Runner, "train", train)
    return declared


def test_every_section_runs_to_its_end_and_shares_the_start(small, tmp_path):
    results = list(perform(EQRM, tmp_path, "quick"))
    assert [result.section.name for result in results] == [
        "ten-seeds", "settings", "start", "baselines", "regression"
    ]  # fmt: skip
    assert all(result.claims for result in results)
    runs = sorted(path.name.partition("-")[0] for path in (tmp_path / "runs").iterdir() if path.is_dir())
    # The start of ERM, the oracle, one random start, and three settings of three methods.
    assert runs == ["eqrm"] * 3 + ["erm"] * 2 + ["irm"] * 3 + ["vrex"] * 4
    declared = {run.settings["steps"]: run for run in small if run.algorithm.startswith("vrex")}
    assert declared[200].start is not None
    assert declared[600].start is None


def test_the_learning_rate_after_the_start_is_that_of_the_code():
    """The first update has the full rate; the k-th after it has ½·1e-4·(1 + cos(πk/K)), K = 200."""
    (run,) = [eqrm_2022._penalized(Runner(None, "full"), eqrm_2022.METHODS["EQRM"], -1000.0)]
    rate = schedule(run.settings["learning_rate"]).resolve(run.settings["steps"])
    k = torch.arange(200, dtype=torch.float64)
    expected = 0.5e-4 * (1 + torch.cos(torch.pi * k / 200))
    assert [rate(int(step)) for step in k] == pytest.approx(expected.tolist())
    assert run.start.settings["learning_rate"] == 1e-4
    assert run.start.settings["steps"] == 400


def test_a_constant_factor_of_the_loss_does_not_change_adams_updates():
    """The code divides EQRM's loss by a ratio of gradient norms, which this reproduction leaves out."""
    generator = torch.Generator().manual_seed(0)
    gradients = 1e-4 * torch.randn(20, 500, generator=generator)
    ends = []
    for factor in (1.0, 1 / 60):
        weights = torch.zeros(500, requires_grad=True)
        optimizer = torch.optim.Adam([weights], lr=1e-4)
        for gradient in gradients:
            weights.grad = gradient * 60 * factor
            optimizer.step()
        ends.append(weights.detach())
    assert float((ends[0] - ends[1]).norm() / ends[0].norm()) < 1e-2
