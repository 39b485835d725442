"""Several numbers to predict per row: a new task is all that it takes."""

from dataclasses import dataclass
from typing import final

import pytest
import torch

import envariant
from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.tasks import Task
from envariant.training import engine
from envariant.training.engine import Evaluated
from envariant.training.execution import SEQUENTIAL, Execution, Stacked, choose
from envariant.training.optimizers import optimizer_config
from envariant.training.replicas import Replica, Seeds
from envariant.training.run_config import RunConfig

WEIGHTS = torch.tensor([[1.0, -1.0], [0.5, 2.0], [0.0, 1.0]])


@final
@dataclass(frozen=True)
class Vector(Task):
    """Regression of several numbers per row: the mean squared error over them."""

    width: int
    name, metric, higher_is_better, chance = "vector", "squared error", False, None

    @property
    def outputs(self):
        return self.width

    @property
    def target_shape(self):
        return (self.width,)

    def losses(self, logits, targets):
        return (logits - targets).square().mean(dim=1)

    def residuals(self, logits, targets):
        return 2 * (logits - targets) / self.width

    def confidence(self, logits, targets):
        raise NotImplementedError

    def scores(self, logits, targets):
        return self.losses(logits, targets)

    def constant_loss(self, targets):
        return float(targets.double().var(dim=0, correction=0).mean())

    def cast(self, targets, where):
        return targets.float()


def data() -> EnvironmentSet:
    generator, parts = torch.Generator().manual_seed(0), []
    for k, name in enumerate("abc"):
        inputs = torch.randn(30, 3, generator=generator) + k
        parts.append(Environment(name, inputs, inputs @ WEIGHTS))
    return EnvironmentSet("vectors", tuple(parts), Vector(2), test=("c",))


def build(shape, outputs):
    return torch.nn.Linear(shape[0], outputs)


def outcome(source, execution, algorithm="vrex", batch_size=None, steps=8):
    config = RunConfig(
        build, optimizer_config("adam"), steps, batch_size, 4, "float32", None, None, torch.device("cpu")
    )
    one = envariant.algorithms.recipe(algorithm).build({})
    replicas = [Replica(k, Seeds.of(0, k), one, 0.1, 0.0) for k in range(3)]
    if isinstance(execution, Stacked):
        execution = choose(execution, source, replicas, config, None)
    events = [e for e in engine.run(source, replicas, config, execution) if isinstance(e, Evaluated)]
    logits, targets = events[-1].answers("c")
    return sorted((r for e in events for r in e.rows), key=lambda r: (r.replica, r.step)), logits, targets


@pytest.mark.parametrize("batch_size", [None, 8])
@pytest.mark.parametrize("algorithm", ["erm", "irm", "vrex", "and-mask"])
def test_vectors_train_stacked_and_sequentially(algorithm, batch_size):
    alone, together = (
        outcome(data(), e, algorithm, batch_size) for e in (SEQUENTIAL, Execution("stacked", 3, ""))
    )
    assert len(alone[0]) == len(together[0])
    for ours, theirs in zip(together[0], alone[0], strict=True):
        assert ours.value == pytest.approx(theirs.value, rel=2e-4, abs=1e-4)
    assert together[1].shape == together[2].shape == (3, 30, 2)
    assert torch.equal(together[2][1], data()["c"].targets)


def test_vectors_are_learned():
    rows, logits, targets = outcome(data(), Stacked(), "erm", steps=300)
    assert rows[-1].replica == 2
    assert float((logits - targets).square().mean()) < 0.05
