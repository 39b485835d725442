"""The evaluator: a plain forward pass, in blocks, stacked or not, with test-time adaptation."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import grad

import envariant
from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.tasks import Binary, Multiclass, Regression
from envariant.training import engine
from envariant.training import evaluator as evaluators
from envariant.training.engine import Evaluated
from envariant.training.evaluator import Evaluator
from envariant.training.execution import SEQUENTIAL, Execution
from envariant.training.network import TOGETHER, Network
from envariant.training.optimizers import optimizer_config
from envariant.training.replicas import Replica, Seeds
from envariant.training.run_config import RunConfig

CPU = torch.device("cpu")


def module(outputs=1):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, outputs)
    )


@pytest.mark.parametrize("task", [Binary(), Multiclass(4), Regression()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_module_predicts_as_in_evaluation_mode(task, dtype, monkeypatch):
    monkeypatch.setattr(evaluators, "_BLOCK_ROWS", 7)
    net, inputs = module(task.outputs).to(dtype), torch.randn(20, 3, dtype=dtype)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    logits = Evaluator.of_module(net, task).logits(inputs)
    expected = torch.cat([task.logits(net.eval()(block)) for block in inputs.split(7)])
    assert torch.equal(logits, expected)
    assert not logits.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(("task", "shape"), [(Binary(), (0,)), (Multiclass(4), (0, 4))])
def test_no_rows_give_no_logits(task, shape):
    assert Evaluator.of_module(module(task.outputs), task).logits(torch.zeros(0, 3)).shape == shape


def test_rows_that_a_module_sees_together_stay_in_one_block(monkeypatch):
    class Centered(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))
            setattr(self, TOGETHER, 4)

        def forward(self, inputs):
            groups = inputs.split(4)
            return torch.cat([group - group.mean() for group in groups]) * self.weight

    inputs = torch.randn(22, 1)
    whole = Evaluator.of_module(Centered(), Regression()).logits(inputs)
    monkeypatch.setattr(evaluators, "_BLOCK_ROWS", 10)
    assert torch.equal(Evaluator.of_module(Centered(), Regression()).logits(inputs), whole)


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("task", [Binary(), Multiclass(4)], ids=str)
def test_stack_measures_the_mean_loss_score_and_spread_of_each_replica(task, axis, monkeypatch):
    monkeypatch.setattr(envariant.training.network, "_BLOCK_ROWS", (7, 7))
    net = Network(module(task.outputs), task, "float32", CPU, needs_features=False, input_shape=(3,))
    params = {name: torch.stack([value, 2 * value]) for name, value in net.params.items()}
    buffers = {name: torch.stack([value, value + 1]) for name, value in net.buffers.items()}
    inputs, targets = torch.randn(2, 20, 3), torch.arange(40).view(2, 20) % task.outputs
    targets = targets.float() if isinstance(task, Binary) else targets
    inputs, targets = (inputs, targets) if axis == 0 else (inputs[0], targets[0])
    evaluator = Evaluator.of_stack(net, params, buffers, 2)
    logits = evaluator.logits(inputs, axis)
    measured = evaluator.measure(inputs, targets, axis)
    assert measured.dtype == torch.float64
    for k in range(2):
        x, y = (inputs[k], targets[k]) if axis == 0 else (inputs, targets)
        weights = {name: value[k] for name, value in {**params, **buffers}.items()}
        expected = task.logits(torch.func.functional_call(net.module.eval(), weights, (x,)))
        torch.testing.assert_close(logits[k], expected)
        by_row = expected.double().reshape(20, -1)
        values = [task.losses(expected, y).mean(), task.scores(expected, y).mean()]
        spread = by_row.var(dim=0, correction=0).mean().sqrt()
        torch.testing.assert_close(measured[k].float(), torch.stack([*values, spread]).float())


def test_stored_rows_are_decoded_block_by_block(monkeypatch):
    monkeypatch.setattr(evaluators, "_BLOCK_ROWS", 7)
    seen = []

    def decode(rows):
        seen.append(len(rows))
        return rows.float() / 255

    stored = torch.randint(0, 256, (20, 3), dtype=torch.uint8)
    evaluator = Evaluator.of_module(module(), Binary())
    assert torch.equal(evaluator.logits(stored, decode=decode), evaluator.logits(stored.float() / 255))
    assert seen == [7, 7, 6]


def batch_statistics(forward, params, buffers, inputs):
    """Recompute the statistics of batch norm on the rows at hand (Schneider et al. 2020)."""
    fresh = {name: value.clone() for name, value in buffers.items()}
    forward(params, fresh, inputs, training=True)
    return params, fresh


def entropy_step(forward, params, buffers, inputs):
    """One step that lowers the entropy of the predictions (Wang et al. 2021)."""

    def entropy(params):
        logits = forward(params, buffers, inputs, training=False)[1]
        return -(torch.sigmoid(logits) * nn.functional.logsigmoid(logits)).mean()

    gradient = grad(entropy)(dict(params))
    return {name: value - 0.1 * gradient[name] for name, value in params.items()}, buffers


@pytest.mark.parametrize("adapt", [batch_statistics, entropy_step])
def test_adaptation_changes_a_module_for_its_rows_only(adapt):
    net, inputs = module(), torch.randn(20, 3) + 1
    before = {name: value.clone() for name, value in net.state_dict().items()}
    plain, adapted = (Evaluator.of_module(net, Binary(), adapt=a).logits(inputs) for a in (None, adapt))
    assert not torch.allclose(plain, adapted)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    if adapt is batch_statistics:
        own = module()
        own[3] = nn.Identity()
        own.load_state_dict(before)
        own.train()(inputs)
        torch.testing.assert_close(adapted, own.eval()(inputs)[:, 0])


@pytest.mark.parametrize("adapt", [batch_statistics, entropy_step])
def test_adaptation_acts_on_each_environment_and_leaves_training_alone(adapt):
    """Stacked and sequential agree, training takes the same steps, and only measurements differ."""

    def build(_shape, _outputs):
        return nn.Sequential(nn.Linear(3, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 1))

    generator = torch.Generator().manual_seed(0)
    parts = []
    for k, name in enumerate("abc"):
        inputs = torch.randn(30, 3, generator=generator) + k
        parts.append(Environment(name, inputs, (inputs[:, 0] > k).float()))
    data = EnvironmentSet("shifted", tuple(parts), Binary(), test=("c",))
    config = RunConfig(build, optimizer_config("adam"), 6, None, 3, "float32", None, None, CPU, adapt=adapt)
    erm = envariant.algorithms.recipe("erm").build({})
    replicas = [Replica(k, Seeds.of(0, k), erm, 0.01, 0.0) for k in range(3)]

    def outcome(config, execution):
        events = [e for e in engine.run(data, replicas, config, execution) if isinstance(e, Evaluated)]
        rows = sorted((r for e in events for r in e.rows), key=lambda r: (r.replica, r.step))
        states = {k: s for e in events if e.finished for k, s in e.checkpoint().states().items()}
        return rows, states

    alone, together = (outcome(config, e) for e in (SEQUENTIAL, Execution("stacked", 3, "")))
    for ours, theirs in zip(together[0], alone[0], strict=True):
        assert replace(ours, value=0.0) == replace(theirs, value=0.0)
        assert ours.value == pytest.approx(theirs.value, rel=2e-4, abs=1e-4)
    plain = outcome(replace(config, adapt=None), SEQUENTIAL)
    for k, state in plain[1].items():
        for kind in ("params", "buffers"):
            ours, theirs = getattr(alone[1][k], kind), getattr(state, kind)
            assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    losses = [[r.value for r in rows if r.metric == "loss"] for rows, _ in (plain, alone)]
    assert losses[0] != losses[1]
