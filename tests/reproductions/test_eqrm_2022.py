"""EQRM's reproduction on small data with few steps: every section runs, and starts are shared."""

import math

import pytest
import torch

from envariant.core.schedules import schedule
from envariant.reproductions import eqrm_2022, eqrm_regression, reproduction
from envariant.reproductions.publish import perform
from envariant.reproductions.runner import Run, Runner
from envariant.training.replicas import Seeds

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
        "ten-seeds", "settings", "start", "baselines", "gradient-ratio", "regression"
    ]  # fmt: skip
    assert all(result.claims for result in results)
    runs = sorted(path.name.partition("-")[0] for path in (tmp_path / "runs").iterdir() if path.is_dir())
    # The start of ERM, the oracle, one random start, three settings of three methods, and EQRM divided by ρ.
    assert runs == ["eqrm"] * 4 + ["erm"] * 2 + ["irm"] * 3 + ["vrex"] * 4
    declared = {run.settings["steps"]: run for run in small if run.algorithm.startswith("vrex")}
    assert declared[200].start is not None
    assert declared[600].start is None


def test_the_learning_rate_after_the_start_is_that_of_the_code():
    """The first update has the full rate; the k-th after it has ½·1e-4·(1 + cos(πk/K)), K = 200."""
    (run,) = [eqrm_2022.penalized(Runner(None, "full"), eqrm_2022.METHODS["EQRM"], -1000.0)]
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


@pytest.mark.parametrize("ratio", [0.25, 64.0])
def test_division_of_the_loss_is_multiplication_of_adams_epsilon(ratio):
    """Powers of two are multiplied without rounding, so the weights are bit-identical."""
    gradients = 1e-6 * torch.randn(20, 500, generator=torch.Generator().manual_seed(0))
    ends = []
    for divisor, epsilon in ((ratio, 1e-8), (1.0, ratio * 1e-8)):
        weights = torch.zeros(500, requires_grad=True)
        optimizer = torch.optim.Adam([weights], lr=1e-4, eps=epsilon, fused=True)
        for gradient in gradients:
            weights.grad = gradient / divisor
            optimizer.step()
        ends.append(weights.detach())
    assert torch.equal(*ends)


def _loss(layers, environments, alpha):
    """ERM's loss (alpha None) or EQRM's, of a network with one hidden layer, in both environments."""
    first, first_bias, last, last_bias = layers
    risks = []
    for inputs, labels in environments:
        logits = (torch.relu(inputs.flatten(1) @ first.T + first_bias) @ last.T + last_bias).squeeze(1)
        risks.append(torch.nn.functional.binary_cross_entropy_with_logits(logits, labels))
    risks = torch.stack(risks)
    if alpha is None:
        return risks.mean()
    return risks.mean() + 1.06 * risks.std() * len(risks) ** -0.2 * (-2 * alpha) ** 0.5


def _gradient(layers, environments, alpha):
    return torch.autograd.grad(_loss(layers, environments, alpha), layers)


def _norm(gradients):
    return float(torch.cat([each.flatten() for each in gradients]).norm())


def test_the_ratio_and_the_divided_run_are_those_of_a_plain_loop(monkeypatch, tmp_path):
    """An independent loop divides the loss by its own ρ; ε is large, so that the division matters."""
    tiny = {"model": "mlp(hidden=4, depth=1)", "batch_size": "full", "precision": "float32"}
    # By default, this data set suggests a weight decay.
    tiny |= {"hyperparameters": {"l2": 0.0}}
    declared = eqrm_2022._run
    monkeypatch.setattr(eqrm_2022, "_run", lambda *values, **named: declared(*values, **named).but(**tiny))
    for name, value in {"START": 3, "RATE": 0.05, "EPSILON": 0.01, "DATA": "colored-digits"}.items():
        monkeypatch.setattr(eqrm_2022, name, value)
    runner, replica, steps, alpha = Runner(tmp_path, "full"), 1, 4, -1000.0
    method = eqrm_2022.Method("eqrm(quantile={}, burn_in=0)", "α", (alpha,), steps)
    start, run = eqrm_2022.erm_start(runner).but(replicas=2), eqrm_2022.penalized(runner, method, alpha, 2)

    def layers(result):
        parts = [m for m in result.model(replica).modules() if isinstance(m, torch.nn.Linear)]
        return [p.detach().double().requires_grad_() for part in parts for p in (part.weight, part.bias)]

    result = runner.train(start)
    seed = Seeds.of(0, replica).data
    trained = [name for name, role in result.record.roles.items() if role == "train"]
    environments = [
        (each.inputs.double(), each.targets.double())
        for each in runner.source("colored-digits").sample(seed).environments
        if each.name in trained
    ]
    assert len(environments) == 2
    initial = layers(runner.train(start.but(steps=1, evaluate_every=1, learning_rate=1e-30)))
    weights = layers(result)
    ratio = _norm(_gradient(weights, environments, alpha)) / _norm(_gradient(initial, environments, None))
    monkeypatch.setattr(eqrm_2022, "erm_start", lambda runner, replicas: start)
    ratios = eqrm_2022._ratios(runner, run, start)
    assert ratios[replica] == pytest.approx(ratio, rel=1e-4)
    assert ratios[0] != pytest.approx(ratio, rel=1e-2)

    def end(divisor):
        values = [each.detach().clone().requires_grad_() for each in weights]
        optimizer = torch.optim.Adam(values, eps=0.01)
        for k in range(steps):
            optimizer.param_groups[0]["lr"] = 0.025 * (1 + math.cos(math.pi * k / steps))
            optimizer.zero_grad()
            (_loss(values, environments, alpha) / divisor).backward()
            optimizer.step()
        return values

    divided = layers(runner.train(eqrm_2022._divided(runner, method, alpha, replica, ratios[replica])))
    distances = [
        max(float((a - b).detach().abs().max()) for a, b in zip(divided, end(d), strict=True))
        for d in (ratio, 1)
    ]
    assert distances[0] < 1e-5
    assert distances[1] > 1e-3
