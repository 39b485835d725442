"""The AND-mask paper on small data with few steps, and the mask over single rows against per-row gradients."""

import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from envariant.algorithms.gradient_aggregators.and_mask import AndMask
from envariant.core.step_context import START
from envariant.data.colored import mnist
from envariant.reproductions import (
    and_mask_2020,
    and_mask_labels,
    and_mask_linear,
    publish,
    reproduction,
    row_mask,
    spiral_gradients,
)
from envariant.reproductions.base import CaptionedFigure, CaptionedTable
from envariant.reproductions.runner import Run, Runner
from envariant.reproductions.verdicts import Claim

PAPER = reproduction("and-mask-2020")
MODEL = "mlp(hidden=8, activation='leaky-relu', init='kaiming-normal')"


@pytest.fixture
def digits(monkeypatch):
    generator = np.random.RandomState(0)
    labels = generator.randint(0, 10, 240).astype(np.uint8)
    images = generator.randint(0, 5, (240, 28, 28)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[label * 2 : label * 2 + 3] = 255
    loaded = mnist.MNIST(images[:160], labels[:160], images[160:], labels[160:], source="made up")
    monkeypatch.setattr(mnist, "load", lambda _folder=None: loaded)


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5])
def test_masks_over_rows_are_those_of_per_row_gradients(threshold):
    layers = row_mask.initial_layers(6, 2, seed=1)
    inputs = torch.rand(20, 6, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    inputs[inputs < 0.3] = 0
    labels = torch.arange(20) % 10
    ours = row_mask.masked_gradients(layers, inputs, labels, torch.tensor([threshold, 0.9]))
    flat = {f"w{i}": w[0] for i, w in enumerate(layers.weights)}
    flat |= {f"b{i}": b[0, 0] for i, b in enumerate(layers.biases)}

    def loss(params, x, y):
        for i in range(3):
            x = x @ params[f"w{i}"] + params[f"b{i}"]
            x = x.relu() if i < 2 else x
        return nn.functional.cross_entropy(x, y)

    each = vmap(grad(loss), (None, 0, 0))(flat, inputs, labels)
    expected, _, metrics = AndMask(threshold=threshold).combine(each, {}, START)
    for i in range(3):
        for name, found in ((f"w{i}", ours.weights[i][0]), (f"b{i}", ours.biases[i][0, 0])):
            assert torch.equal(found == 0, expected[name] == 0)
            torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-7)
    assert threshold == 0 or 0 < metrics["and-mask kept"] < 1


def test_labels_are_redrawn_for_the_stated_share_of_rows():
    true = np.arange(4000) % 10
    assert np.array_equal(row_mask.draw_labels(true, "true", 3), true)
    assert (row_mask.draw_labels(true, "random", 3) != true).mean() == pytest.approx(0.9, abs=0.02)
    assert (row_mask.draw_labels(true, "25 % redrawn", 3) != true).mean() == pytest.approx(0.225, abs=0.02)
    assert not np.array_equal(
        row_mask.draw_labels(true, "random", 3), row_mask.draw_labels(true, "random", 4)
    )


def test_training_over_rows_learns_and_reports_the_false_labels(digits):
    found = row_mask.train("true", [0.0, 0.1], 160, 20, 10, 0)
    assert found["epochs"] == [0, 10, 20]
    assert found["false"] == [[], [], []]
    assert min(found["test"][-1]) > 0.6 > max(found["test"][0])
    noisy = row_mask.train("25 % redrawn", [0.0, 0.2], 160, 3, 2, 0)
    assert noisy["epochs"] == [0, 2, 3]
    assert [len(row) for part in ("train", "test", "false") for row in noisy[part]] == [2] * 9
    assert noisy == row_mask.train("25 % redrawn", [0.0, 0.2], 160, 3, 2, 0)


def test_correlations_of_gradients_are_those_of_a_plain_loop():
    source = "spirals(environments=3, signature=2, rows=40, deviation=0.1)"
    found = spiral_gradients.correlations(source, MODEL, [0.0, 1.0], [5])
    assert found["masked mechanism"][0] == [None]
    assert all(-1 <= row[0] <= 1 for row in found["kept mechanism"])
    # An independent computation of the gradients at τ = 0, with autograd.
    from envariant.core.counter_rng import private_random_numbers
    from envariant.data import source as source_of
    from envariant.models import model_config

    drawn = source_of(source).sample(0)
    with private_random_numbers(5, torch.device("cpu")):
        module = model_config(MODEL).build((4,), 1)
    generator = torch.Generator().manual_seed(5)
    rows = [(e.inputs, e.targets) for e in drawn.environments if e.name != "test"]
    gradients = {}
    for cause in ("full", "mechanism", "shortcut"):
        total = 0
        for x, y in rows:
            changed = x.clone()
            if cause != "full":
                block = slice(2, None) if cause == "mechanism" else slice(0, 2)
                changed[:, block] = x[torch.randperm(40, generator=generator)][:, block]
            loss = nn.functional.binary_cross_entropy_with_logits(
                functional_call(module, {}, (changed,))[:, 0], y
            )
            parts = torch.autograd.grad(loss, list(module.parameters()))
            total = total + torch.cat([part.flatten() for part in parts]) / 3
        gradients[cause] = total.double().numpy()
    used = gradients["full"] != 0
    for cause in ("mechanism", "shortcut"):
        expected = np.corrcoef(gradients["full"][used], gradients[cause][used])[0, 1]
        assert found[f"kept {cause}"][0][0] == pytest.approx(expected, abs=1e-5)


def test_every_section_runs_to_its_end_and_few_steps_decide_nothing(digits, monkeypatch, tmp_path):
    monkeypatch.setattr(and_mask_labels, "ROWS", 160)
    monkeypatch.setattr(and_mask_labels, "EPOCHS", 2)
    monkeypatch.setattr(and_mask_linear, "STEPS", 3)
    monkeypatch.setattr(and_mask_2020, "MODEL", MODEL)
    small = "spirals(environments=3, signature=2, rows=40, test_rows=30, deviation=0.1)"
    correlations = spiral_gradients.correlations
    monkeypatch.setattr(
        spiral_gradients,
        "correlations",
        functools.wraps(correlations)(lambda source, **rest: correlations(small, **rest)),
    )
    train_as_declared = Runner.train

    def train(self, run):
        changed = {"steps": 3, "batch_size": 8, "model": MODEL, "evaluate_every": 1}
        changed["learning_rate"] = "step(1e-2, 1e-3, at=2)"
        return train_as_declared(self, Run(small, run.algorithm, {**run.settings, **changed}))

    monkeypatch.setattr(Runner, "train", train)
    runner = Runner(tmp_path, "quick")
    # Without drawing the figures, which would take most of the time.
    found = {section.name: tuple(section.find(runner)) for section in PAPER.sections}
    claims = [each for findings in found.values() for each in findings if isinstance(each, Claim)]
    assert all(any(isinstance(each, Claim) for each in findings) for findings in found.values())
    verdicts = {claim.text: claim.in_profile("quick").verdict for claim in claims}
    best = "The best run of AND-mask reaches perfect test accuracy (oracle selection; 0.99 or more)."
    assert verdicts[best] == "undecided"
    tables = [
        each.table for findings in found.values() for each in findings if isinstance(each, CaptionedTable)
    ]
    assert all(table.rows and all(len(row) == len(table.header) for row in table.rows) for table in tables)
    assert len({each.name for each in found["random-labels"] if isinstance(each, CaptionedFigure)}) == 2
    # The page's table of runs shows schedules of the learning rate.
    assert any("step(0.01, 0.001, at=2)" in row for row in publish._runs(runner.runs).rows)


def test_published_settings_determine_the_data_of_the_paper():
    assert and_mask_2020.PAPER_DATA == "spirals(environments=32, signature=32, deviation=0.1, rows=1280)"
    assert (and_mask_2020.BEST["l2"], and_mask_2020.BEST["batch_size"]) == (1e-4, 128)
