"""Heads on frozen features: the same updates as the library's algorithms, and features of a pretraining."""

import pytest
import torch
from torch import nn

import envariant
from envariant import data
from envariant.algorithms import RECIPES
from envariant.core.environments import EnvironmentSet
from envariant.models.base import FeaturizerAndHead
from envariant.reproductions.frozen_heads import Rows, _clove, _Predicted, rich_features, train_heads
from envariant.training.replicas import Seeds

ROWS, WIDTH, STEPS, RATE = 40, 5, 4, 0.05
SUM = {"risk_aggregator": "sum", "normalize_loss": True, "l2": 0.01}
FISHR = {"memory": 0.0, "summed": True, "centered": False}
# Settings with which the library's algorithms have the losses of the RFC code, at a penalty weight of 30.
EQUIVALENT = {
    "IRMv1": ("irm", {"coefficient": 30.0}),
    "vREx": ("vrex", {"coefficient": 60.0}),
    "SD": ("sd", {"coefficient": 60.0}),
    "IGA": ("iga", {"coefficient": 30.0}),
    "Fishr": ("fishr", {"coefficient": 30.0, **FISHR}),
}


def _problem():
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(2, ROWS, WIDTH, generator=generator)
    targets = (features[..., 0] + torch.randn(2, ROWS, generator=generator) > 0).float()
    linear = nn.Linear(WIDTH, 1)
    with torch.no_grad():
        linear.weight.copy_(torch.linspace(-0.5, 0.5, WIDTH)[None])
        linear.bias.fill_(0.1)
    return features, targets, linear


def _by_library(algorithm, settings):
    features, targets, linear = _problem()
    environments = torch.repeat_interleave(torch.arange(3), ROWS)
    sample = EnvironmentSet.from_arrays(
        torch.cat([features.flatten(0, 1), features[0]]),
        torch.cat([targets.flatten(), targets[0]]).long(),
        environments,
        test=("2",),
    )
    result = envariant.train(
        sample,
        RECIPES[algorithm].build(settings),
        model=FeaturizerAndHead(nn.Identity(), linear),
        steps=STEPS,
        batch_size="full",
        learning_rate=RATE,
        optimizer="adam",
        precision="float32",
        progress=False,
    )
    params = result.checkpoints[0].params
    return torch.cat([params["head.weight"][0], params["head.bias"]])


def _by_heads(method, weight, l2):
    features, targets, linear = _problem()
    rows = Rows(torch.cat([features, torch.ones(2, ROWS, 1)], dim=2), targets)
    start = torch.cat([linear.weight[0], linear.bias]).detach()
    # A second head with another weight must not change the first.
    heads = train_heads(
        rows, start, method, (weight, 7.0), l2=(l2, 0.3), steps=STEPS, every=STEPS, learning_rate=RATE
    )
    ((step, last),) = heads
    assert step == STEPS
    return last[:, 0]


@pytest.mark.parametrize("method", EQUIVALENT)
def test_updates_are_those_of_the_library(method):
    algorithm, settings = EQUIVALENT[method]
    expected = _by_library(algorithm, {**SUM, **settings})
    torch.testing.assert_close(_by_heads(method, 30.0, 0.01), expected, atol=2e-5, rtol=0)


def test_erm_and_eqrm_are_those_of_the_library():
    """ERM takes the mean of the risks, so l2 doubles; EQRM's weight is √(−2a), and sums are two means."""
    expected = _by_library("erm", {"l2": 0.01})
    torch.testing.assert_close(_by_heads("ERM", 0.0, 0.02), expected, atol=2e-5, rtol=0)
    expected = _by_library("eqrm", {"quantile": -50.0, "burn_in": 0, "l2": 0.01})
    torch.testing.assert_close(_by_heads("EQRM", 10.0, 0.02), expected, atol=2e-5, rtol=0)


def test_clove_is_the_definition():
    """Σ_e of the squared calibration error in plain loops; algorithms.md gives 0.0111488 at these values."""
    p, y = torch.tensor([0.9, 0.6, 0.2, 0.7]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    logits = torch.logit(p).repeat(2, 1)[..., None]
    inside = _Predicted(logits, logits, logits, y.repeat(2, 1)[..., None], logits[:, 0])
    assert float(_clove(inside)[0]) == pytest.approx(2 * 0.0111488, rel=1e-5)


def test_rich_features_start_from_the_pretraining_of_the_replica():
    source = data.source("colored-digits")
    rfc = "rfc(first_steps=2, steps=2, synthesis_steps=2)"
    settings = {"model": "mlp(hidden=4)", "init": rfc, "learning_rate": 0.01}
    rich = rich_features(source, 1, **settings)
    trained = envariant.train(
        source, "erm", **settings, batch_size="full", freeze="features", steps=1,
        replicas=2, progress=False, execution="sequential",
    )  # fmt: skip
    state = trained.checkpoints[1]
    for name, value in rich.network.featurizer.state_dict().items():
        assert torch.equal(value, {**state.params, **state.buffers}[f"featurizer.{name}"])
    rows = rich.rows("train")
    (first, *_) = [e for e in rich.sample.environments if rich.roles[e.name] == "train"]
    logits = rich.network(first.input_store.gather())[:, 0]
    torch.testing.assert_close(rows.logits(rich.head[:, None])[0, :, 0], logits)
    right = (logits > 0) == (first.targets > 0.5)
    assert float(rows.accuracy(rich.head[:, None])[0, 0]) == pytest.approx(right.float().mean().item())
    assert first.targets.equal(source.sample(Seeds.of(0, 1).data)[first.name].targets)
    assert (
        not rich_features(source, 1, **settings, data_seed=5)
        .sample["flip-0.9"]
        .targets.equal(rich.sample["flip-0.9"].targets)
    )
