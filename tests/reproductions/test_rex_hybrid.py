"""Hybrid domains of the REx paper at tiny sizes, with plain loops as second implementations."""

import math

import numpy as np
import pytest
import torch

from envariant import data as sources
from envariant.analysis.statistics import interval
from envariant.reproductions import rex_hybrid
from envariant.reproductions.rex_hybrid import (
    best_allowed,
    hybrid,
    hybrid_risks,
    label_model,
    objective,
)
from envariant.reproductions.runner import Runner
from envariant.reproductions.stacked_mlp import dropout_mask, initial
from envariant.reproductions.verdicts import Claim

TINY = {"hidden": 4, "steps": 3, "label_steps": 2, "batch": 8}


def plain_objective(z, labels, sizes, step):
    risks, start = [], 0
    for size in sizes:
        own = []
        for label in labels:
            total = 0.0
            for i in range(start, start + size):
                p = 1 / (1 + math.exp(-z[i]))
                total -= label[i] * math.log(p) + (1 - label[i]) * math.log(1 - p)
            own.append(total / len(z))
        risks.append(own)
        start += size
    total = sum(map(sum, risks))
    if len(labels) == 1:
        penalty = (risks[0][0] - risks[1][0]) ** 2 / 2
    else:
        penalty = sum((a - b) ** 2 / 2 for a, b in risks)
    return (total if step <= 100 else total / 10_000) + penalty


@pytest.mark.parametrize("step", [100, 101])
@pytest.mark.parametrize("sets", [1, 2])
def test_loss_and_gradient_are_those_of_plain_loops(sets, step):
    rng = np.random.default_rng(sets)
    z, labels = rng.normal(size=7), rng.random((sets, 7))
    tensor = torch.tensor(z, requires_grad=True)
    loss = objective(hybrid_risks(tensor, torch.tensor(labels), (3, 4)), step)
    loss.backward()
    assert loss.item() == pytest.approx(plain_objective(z, labels, (3, 4), step))
    for i in range(7):
        sides = [plain_objective(z + shift * np.eye(7)[i], labels, (3, 4), step) for shift in (1e-6, -1e-6)]
        assert float(tensor.grad[i]) == pytest.approx((sides[0] - sides[1]) / 2e-6, abs=1e-7)


def test_a_label_model_keeps_the_weights_of_the_least_loss_with_dropout_on():
    """A network by torch.nn, with the same batches and masks, in the program's order of its layers."""
    rng = np.random.default_rng(4)
    inputs = torch.from_numpy(rng.normal(size=(30, 3))).float()
    targets = torch.from_numpy(rng.integers(0, 2, 30)).float()
    found = label_model(inputs, targets, 5, 12, 6, np.random.default_rng(9))

    rng = np.random.default_rng(9)
    layers = [torch.nn.Linear(a, b) for a, b in ((3, 5), (5, 5), (5, 1))]
    with torch.no_grad():
        for layer, weights in zip(layers, initial((3, 5, 5, 1), 1, rng)[::2], strict=True):
            layer.weight.copy_(weights[0].T)
            layer.bias.zero_()
    loss = torch.nn.BCEWithLogitsLoss()

    def forward(x):
        first = torch.relu(layers[0](x)) * dropout_mask((len(x), 5), rng)
        # The program applies dropout before the activation in the second layer.
        second = torch.relu(layers[1](first) * dropout_mask((len(x), 5), rng))
        return layers[2](second)[:, 0]

    optimizer = torch.optim.Adam([p for layer in layers for p in layer.parameters()], lr=1e-3)
    losses, stored = [], []
    for _ in range(12):
        rows = rng.integers(27, size=6)
        optimizer.zero_grad()
        loss(forward(inputs[rows]), targets[rows]).backward()
        optimizer.step()
        losses.append(loss(forward(inputs[27:]), targets[27:]).item())
        stored.append([layer.weight.detach().T.clone() for layer in layers])
    best = losses.index(min(losses))
    assert best != len(losses) - 1
    for ours, theirs in zip(found[::2], stored[best], strict=True):
        assert torch.allclose(ours[0], theirs, atol=1e-6)


def test_masks_are_fair_bits():
    mask = dropout_mask((3, 41, 50), np.random.default_rng(0))
    assert mask.shape == (3, 41, 50)
    assert set(mask.unique().tolist()) == {0, 2}
    assert float(mask.double().mean()) == pytest.approx(1, abs=4 / math.sqrt(mask.numel()))


def test_the_section_runs_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(
        rex_hybrid, "DATA", {"CMNIST": "colored-digits", "hetero-CMNIST": "colored-digits(label_noise=0.1)"}
    )
    monkeypatch.setattr(rex_hybrid, "SIZES", TINY)
    findings = list(hybrid.find(Runner(tmp_path, "quick")))
    assert [each.verdict for each in findings if isinstance(each, Claim)] == ["undecided"] * 2
    (table,) = (each for each in findings if getattr(each, "name", "") == "rows")
    assert [row[:2] + row[-1:] for row in table.table.rows] == [
        ("CMNIST", "V-REx", "0.750"),
        ("CMNIST", "V-REx-HD", "0.750"),
        ("hetero-CMNIST", "V-REx", "0.900"),
        ("hetero-CMNIST", "V-REx-HD", "0.900"),
    ]


def test_the_best_step_needs_a_training_accuracy_at_least_as_high():
    assert best_allowed([0.5, 0.7, 0.8], [0.6, 0.7, 0.65]) == 0.7
    assert math.isnan(best_allowed([0.5], [0.6]))


def test_verdicts_follow_the_differences_of_their_own_data():
    higher, near = interval([0.1, 0.11, 0.1]), interval([0.01, 0.0, 0.02])
    verdicts = [claim.verdict for claim in rex_hybrid._claims({"hetero-CMNIST": higher, "CMNIST": near})]
    assert verdicts == ["holds", "holds"]
    swapped = {"hetero-CMNIST": interval([-0.1, -0.11, -0.1]), "CMNIST": higher}
    assert [claim.verdict for claim in rex_hybrid._claims(swapped)] == ["not reproduced"] * 2


def test_both_methods_start_from_the_same_weights():
    source = sources.source("colored-digits")
    first, second = (
        rex_hybrid.trained(source, "colored-digits", k, hidden=4, steps=2, label_steps=1, batch=8)
        for k in (0, 1)
    )
    for found in (first, second):
        assert found["V-REx"]["train"][0] == found["V-REx-HD"]["train"][0]
    assert first["V-REx"]["train"] != second["V-REx"]["train"]


def test_a_restart_without_an_allowed_step_is_left_out_of_the_table():
    own = {method: {"train": [0.5, 0.6], "test": [0.7, 0.8]} for method in rex_hybrid.METHODS}
    (row, _) = rex_hybrid._table({"made": [{**own, "shape only": 0.75}] * 2}).table.rows
    assert row[4:] == ("–", "0.750")
