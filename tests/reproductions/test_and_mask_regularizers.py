"""L1 against Adam written out, and the sections on regularizers and on the number of environments."""

import math

import pytest
import torch
from torch import nn

from envariant.analysis.statistics import interval
from envariant.models import model_config
from envariant.reproductions import and_mask_environments, and_mask_regularizers, and_mask_spirals
from envariant.reproductions.l1_adam import L1Adam
from envariant.reproductions.runner import Run, Runner, _folder
from envariant.reproductions.verdicts import Claim
from envariant.training.optimizers import StackedOptimizer


def written_out(start, gradients, rate, decay, l1):
    """Return the parameter after updates by Adam as in Kingma & Ba, for one number and in double precision."""
    theta, mean, square = start, 0.0, 0.0
    for t, gradient in enumerate(gradients, start=1):
        g = gradient + decay * theta + l1 * ((theta > 0) - (theta < 0))
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
        theta -= rate * (mean / (1 - 0.9**t)) / (math.sqrt(square / (1 - 0.999**t)) + 1e-8)
    return theta


def test_l1_adds_the_sign_of_each_parameter_to_the_masked_gradient():
    starts, rates, decays = [[0.5, -0.3, 0.0], [0.2, -0.9, 0.1]], [0.1, 0.02], [0.0, 0.01]
    # The second gradient is masked in every step.
    gradients = torch.tensor([[0.3, 0.0, 0.2], [-0.4, 0.0, 0.1], [0.1, 0.0, -0.3]])
    params = torch.tensor(starts)
    optimizer = StackedOptimizer(L1Adam(0.05), params, rates, decays)
    before = gradients.clone()
    for step, gradient in enumerate(gradients):
        optimizer.apply(gradient.expand(2, 3), torch.ones(2, dtype=torch.bool), step)
    assert torch.equal(gradients, before)
    expected = [
        [written_out(start, gradients[:, i].tolist(), rate, decay, 0.05) for i, start in enumerate(row)]
        for row, rate, decay in zip(starts, rates, decays, strict=True)
    ]
    torch.testing.assert_close(params, torch.tensor(expected), rtol=1e-5, atol=1e-6)
    # A masked weight moves towards zero by the learning rate in every step.
    assert params[0, 1].item() == pytest.approx(-0.3 + 3 * 0.1, abs=1e-5)


def test_batch_norm_comes_before_the_activation_and_dropout():
    built = model_config("mlp(hidden=4, depth=1, batch_norm=true, dropout=0.5)").build((3,), 1).featurizer
    assert [type(part).__name__ for part in built] == ["Flatten", "Linear", "BatchNorm1d", "ReLU", "Dropout"]
    outputs = built[:3].train()(torch.randn(64, 3))
    torch.testing.assert_close(outputs.std(dim=0, unbiased=False), torch.ones(4), rtol=1e-3, atol=1e-3)
    assert not any(isinstance(part, nn.BatchNorm1d) for part in model_config("mlp").build((3,), 1).modules())


def test_runs_with_other_l1_coefficients_are_other_runs():
    runs = [Run("spirals", "erm", {"optimizer": L1Adam(l1)}) for l1 in (0.1, 0.2, 0.1)]
    first, other, again = (_folder(run, run.settings) for run in runs)
    assert first == again != other


@pytest.fixture
def small(monkeypatch):
    """Let runs have few steps on small data; return the requested runs."""
    requested = []
    train = Runner.train

    def on_small_data(self, run):
        requested.append(run)
        model = (
            "mlp(hidden=4, depth=1, batch_norm=true)"
            if "batch_norm" in run.settings["model"]
            else "mlp(4, 1)"
        )
        settings = {**run.settings, "steps": 2, "batch_size": 4, "model": model, "evaluate_every": 2}
        settings |= {"learning_rate": "step(1e-2, 1e-3, at=1)", "replicas": 1}
        return train(
            self, Run("spirals(environments=2, signature=2, rows=8, test_rows=8)", run.algorithm, settings)
        )

    monkeypatch.setattr(Runner, "train", on_small_data)
    return requested


def test_section_on_regularizers_runs_each_of_them_and_reads_stored_results(small, tmp_path):
    section = and_mask_regularizers.regularizers
    found = list(section.find(Runner(tmp_path, "quick")))
    claims = [each for each in found if isinstance(each, Claim)]
    assert len(claims) == 9
    plain, masked = ([run for run in small if run.algorithm.startswith(name)] for name in ("erm", "and-mask"))
    assert len(plain) == 5
    assert [run.settings["weight_decay"] for run in masked] == [0.0, 1e-3, 0.0]
    assert [run.settings.get("optimizer") for run in masked] == [None, None, L1Adam(1e-4)]
    # Same run as in the section on the settings of the README, so it is trained once.
    assert masked[1] == and_mask_spirals.spirals_run("and-mask(threshold=1)", 2)
    again = list(section.find(Runner(tmp_path, "quick", stored_only=True)))
    assert [each for each in again if isinstance(each, Claim)] == claims


def test_section_on_environments_limits_the_rows_of_an_update(small, tmp_path):
    found = list(and_mask_environments.environments.find(Runner(tmp_path, "quick")))
    assert [run.data for run in small] == [f"spirals(environments={n})" for n in (2, 8, 32)]
    claims = [each.in_profile("quick") for each in found if isinstance(each, Claim)]
    assert claims[1].verdict == "undecided"
    sizes = [and_mask_environments.batch_size(n) for n in (2, 64, 128, 1024, 2048)]
    assert sizes == [256, 256, 128, 16, 8]


@pytest.mark.parametrize(
    ("best", "verdict"),
    [
        ({2: 0.5, 32: 0.51, 512: 0.7, 1024: 0.97, 2048: 0.99}, "holds"),
        ({2: 0.5, 32: 0.51, 512: 0.96}, "holds"),
        ({2: 0.5, 32: 0.51, 256: 0.96, 512: 0.98}, "undecided"),
        ({2: 0.5, 32: 0.51, 1024: 0.8}, "undecided"),
        ({2: 0.5, 32: 0.51, 2048: 0.8}, "undecided"),
    ],
)
def test_verdict_on_the_number_of_environments(best, verdict):
    chance, needed = and_mask_environments._claims(best)
    assert (chance.verdict, needed.verdict) == ("holds", verdict)


def test_a_regularizer_claim_needs_training_success_and_test_at_chance(monkeypatch):
    scores = {"test": [0.5, 0.51, 0.49, 0.5], "train": [1.0, 1.0, 0.99, 1.0]}
    monkeypatch.setattr(and_mask_regularizers, "ood_score", lambda result: interval(result["test"]))
    monkeypatch.setattr(and_mask_regularizers, "id_score", lambda result: interval(result["train"]))
    labels = ("no regularizer", "L2 1e-3", "L1 1e-5", "L1 1e-4", "dropout 0.5", "batch norm")
    plain = dict.fromkeys(labels, scores)
    plain["L1 1e-5"] = {**scores, "train": [0.6, 0.61, 0.62, 0.6]}
    plain["batch norm"] = {**scores, "test": [0.4, 0.9, 0.5, 0.6]}
    verdicts = [claim.verdict for claim in and_mask_regularizers._plain_claims(plain)]
    assert verdicts == ["holds", "holds", "undecided", "not reproduced", "holds"]
