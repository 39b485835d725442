"""Sampling weights: rows are drawn in proportion to their weights, in every replica."""

import numpy as np
import pytest
import torch

import envariant
from envariant.core.environments import WEIGHT, Environment, EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Regression
from envariant.data.validation_split import ValidationSplit
from envariant.training.batch_sampler import BatchSampler, Rows

CPU = torch.device("cpu")


def weighted(weights, name="a", rows=None):
    n = len(weights) if weights is not None else rows
    attributes = {} if weights is None else {WEIGHT: torch.tensor(weights, dtype=torch.float32)}
    return Environment(name, torch.arange(n)[:, None], torch.arange(n).float(), attributes)


def drawn_rows(sets, batch_size=64, steps=400):
    """How often each row came up: inputs hold the row's number."""
    rows = Rows(sets, {"a": "train", "b": "train"}, CPU)
    batches = BatchSampler(rows, range(len(sets)), batch_size, None, torch.float32)
    return torch.stack([batches.at(step)[0][..., 0] for step in range(steps)], dim=1)


def test_rows_are_drawn_in_proportion_to_their_weights():
    a, b = [1.0, 0.0, 3.0, 4.0, 0.0], [0.5, 0.5]
    both = EnvironmentSet("w", (weighted(a), weighted(b, "b")), Regression())
    found = drawn_rows([both, both])
    for replica in found:
        for part, weights in zip(replica.split(64, dim=1), (a, b), strict=True):
            counts = np.bincount(part.long().flatten().numpy(), minlength=len(weights))
            truth = np.array(weights) / sum(weights) * part.numel()
            # Five standard errors; what has no weight never comes.
            assert (np.abs(counts - truth) <= 5 * np.sqrt(truth)).all()
    assert not torch.equal(found[0], found[1])


def test_replicas_with_separate_rows_follow_separate_weights():
    sets = [
        EnvironmentSet("w", (weighted([1.0, 0.0] if k else [0.0, 1.0]), weighted([1.0], "b")), Regression())
        for k in range(2)
    ]
    found = drawn_rows(sets, steps=5)
    assert (found[0][:, :64] == 1).all()
    assert (found[1][:, :64] == 0).all()


def test_held_out_rows_keep_their_weights():
    both = EnvironmentSet("w", (weighted(list(range(1, 11))), weighted([1.0] * 10, "b")), Regression())
    for part in ValidationSplit(both, 0.5).sample(0).environments[:2]:
        assert torch.equal(part.attributes[WEIGHT], part.inputs[:, 0] + 1)


def test_model_learns_the_weighted_mean():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(400, 1))).float()
    y = torch.where(torch.arange(400) % 2 == 0, 1.0, 5.0)
    weights = torch.where(torch.arange(400) % 2 == 0, 3.0, 1.0)
    a = Environment("a", x, y, {WEIGHT: weights})
    test_environments = Environment("b", x[:10], y[:10])
    data = EnvironmentSet("w", (a, test_environments), Regression(), test=("b",))
    result = envariant.train(
        data, model="linear", steps=600, batch_size=200, learning_rate=0.05, execution="sequential"
    )
    said = result.model()(torch.zeros(1, 1)).item()
    assert said == pytest.approx(2.0, abs=0.25)  # (3·1 + 1·5) / 4, where without weights it would be 3


def test_invalid_weights_are_rejected():
    for wrong in ([-1.0, 1.0], [0.0, 0.0], [float("nan"), 1.0]):
        with pytest.raises(EnvariantError, match="environment 'a': weights must be at least 0 and not all 0"):
            weighted(wrong)
    some = EnvironmentSet("w", (weighted([1.0, 2.0]), weighted(None, "b", rows=2)), Regression())
    with pytest.raises(EnvariantError, match="some environments have row weights and others have none"):
        drawn_rows([some])
    both = EnvironmentSet("w", (weighted([1.0, 2.0]), weighted([1.0], "b")), Regression())
    with pytest.raises(
        EnvariantError, match="rows have weights, which are used to sample minibatches; set batch_size"
    ):
        drawn_rows([both], batch_size=None)


def test_other_weights_change_the_fingerprint():
    one, other = (EnvironmentSet("w", (weighted(w),), Regression()) for w in ([1.0, 2.0], [2.0, 1.0]))
    assert one.fingerprint() != other.fingerprint()
