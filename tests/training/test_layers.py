"""Outputs of layers inside a network: MIRO on several layers against a plain loop, and errors."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import envariant
from envariant.algorithms import recipe
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Binary
from envariant.training import checkpoint, engine
from envariant.training.execution import SEQUENTIAL
from envariant.training.replicas import Replica, Seeds
from tests.training.test_stacking import STACKED, made, outcome, plan

LAYERS = "featurizer.1 + featurizer.4 + features"
RATE, WEIGHT, STEPS = 0.02, 0.3, 6


class Convolutions(nn.Module):
    """Small network with a layer that changes its input in place."""

    def __init__(self):
        super().__init__()
        layers = (
            nn.Unflatten(1, (1, 2, 3)),
            nn.Conv2d(1, 3, 2),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(6, 4),
        )
        self.featurizer, self.head = nn.Sequential(*layers, nn.Tanh()), nn.Linear(4, 1)

    def forward(self, inputs):
        return self.head(self.featurizer(inputs))


START = Convolutions()


def members(count=2):
    algorithm = recipe("miro").build({"weight": WEIGHT, "layers": LAYERS})
    return [Replica(k, Seeds.of(7, k), algorithm, RATE, 0.0) for k in range(count)]


def outputs_of(network, inputs):
    convolved = network.featurizer[1](network.featurizer[0](inputs))
    linear = network.featurizer[4](convolved.relu().flatten(1))
    return convolved, linear, linear.tanh(), network.head(linear.tanh())[:, 0]


def of_a_plain_loop(source):
    """Adam on the risk and, at ten times the rate, on b; σ² of every channel is 0.1 at first."""
    network, before = copy.deepcopy(START), copy.deepcopy(START)
    noise = [torch.full((n,), 0.1 - 1e-5).expm1().log().requires_grad_() for n in (3, 4, 4)]
    optimizer = torch.optim.Adam(
        [{"params": network.parameters()}, {"params": noise, "lr": 10 * RATE}], lr=RATE
    )
    inputs = torch.cat([source[e].inputs for e in "ab"])
    with torch.no_grad():
        *fixed, _ = outputs_of(before, inputs)
    for _ in range(STEPS):
        optimizer.zero_grad()
        *layers, logits = outputs_of(network, inputs)
        risks = [
            F.binary_cross_entropy_with_logits(z, source[e].targets)
            for e, z in zip("ab", logits.split([40, 95]), strict=True)
        ]
        penalty = 0
        for now, then, b in zip(layers, fixed, noise, strict=True):
            variance = F.softplus(b) + 1e-5
            # Channels last.
            square = ((now - then) ** 2).movedim(1, -1)
            penalty += 0.5 * (square / variance + variance.log()).mean()
        (torch.stack(risks).mean() + WEIGHT * penalty).backward()
        optimizer.step()
    return dict(network.named_parameters())


@pytest.mark.parametrize("how", [SEQUENTIAL, STACKED], ids=["sequential", "stacked"])
def test_miro_on_several_layers_equals_a_plain_loop(how):
    source = made(Binary(), 1)
    shared = plan(lambda *_: copy.deepcopy(START), steps=STEPS, evaluate_every=3)
    _, states = outcome(source, members(), shared, how)
    expected = of_a_plain_loop(source)
    for state in states.values():
        for name, value in expected.items():
            torch.testing.assert_close(state.params[name], value.detach(), rtol=1e-5, atol=1e-6)


def test_miro_on_several_layers_resumes_bit_identically(tmp_path):
    source = made(Binary(), 1)
    shared = plan(lambda *_: copy.deepcopy(START), steps=STEPS, evaluate_every=3, batch_size=16)
    _, whole = outcome(source, members(), shared, STACKED)
    for event in engine.run(source, members(), shared, STACKED):
        if (stored := event.checkpoint()).step == 3:
            checkpoint.save(stored, tmp_path)
            break
    _, states = outcome(source, members(), shared, STACKED, checkpoint.load(tmp_path))
    for k, state in whole.items():
        assert all(torch.equal(states[k].params[name], value) for name, value in state.params.items())


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("featurizer.9", r"model Convolutions: unknown layer 'featurizer\.9'"),
        ("featurizer.1 + ", "miro: layers must be different names joined by '\\+'"),
        ("features + features", "miro: layers must be different names"),
        ("featurizer.0.0", "unknown layer"),
    ],
)
def test_wrong_layers_are_one_sentence(layers, message):
    with pytest.raises(EnvariantError, match=message):
        envariant.train(
            made(Binary(), 1), f"miro(layers='{layers}')", model=Convolutions, steps=1, progress=False
        )


def test_layers_that_cannot_be_used_are_named():
    class Unused(Convolutions):
        def __init__(self):
            super().__init__()
            self.other = nn.Linear(2, 2)

    for model, layers in ((Unused, "other"), (Unused, "featurizer + other")):
        with pytest.raises(
            EnvariantError, match=r"layer 'other': must be called once per forward pass, but is called 0"
        ):
            envariant.train(
                made(Binary(), 1), f"miro(layers='{layers}')", model=model, steps=1, progress=False
            )
