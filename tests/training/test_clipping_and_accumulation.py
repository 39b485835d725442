"""Gradient clipping and accumulation: against PyTorch's functions and plain loops."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import envariant
from envariant.algorithms import recipe
from envariant.core.environments import EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Binary
from envariant.models import model_config
from envariant.training import checkpoint, engine
from envariant.training.batch_sampler import BatchSampler, Rows
from envariant.training.clipping import ClipNorm, ClipValue, clipping
from envariant.training.engine import Evaluated
from envariant.training.execution import SEQUENTIAL, Execution
from envariant.training.history import CLIP_SHARE
from envariant.training.optimizers import optimizer_config
from envariant.training.replicas import Replica, Seeds
from envariant.training.run_config import RunConfig
from envariant.training.run_spec import RunSpec

CPU = torch.device("cpu")
STACKED = Execution("stacked", 100, "")


def data(seed=0) -> EnvironmentSet:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(60, 3, generator=generator)
    return EnvironmentSet.from_arrays(inputs, (inputs[:, 0] > 0).float(), ["a", "b"] * 30, task=Binary())


def plan(**changes) -> RunConfig:
    standard = RunConfig(
        model_config("mlp(hidden=4)").build, optimizer_config("sgd"), 6, 5, 3, "float32", None, (), CPU
    )
    return replace(standard, **changes)


def replicas(name="vrex", count=2):
    return [Replica(k, Seeds.of(3, k), recipe(name).build({}), 0.3, 0.0) for k in range(count)]


def outcome(members, config, how, resume=()):
    events = [e for e in engine.run(data(), members, config, how, resume) if isinstance(e, Evaluated)]
    rows = {(r.replica, r.step, r.environment, r.metric): r.value for e in events for r in e.rows}
    return rows, {k: s for e in events if e.finished for k, s in e.checkpoint().states().items()}


@pytest.mark.parametrize("limit", [0.3, 2.0, 50.0])
def test_clipping_equals_pytorchs_for_every_replica(limit):
    shapes = [(2, 3), (4,)]
    gradients = torch.linspace(-1, 3, 30).view(3, 10).sin() * torch.tensor([0.1, 1.0, 10.0])[:, None]
    theirs = []
    for function in (nn.utils.clip_grad_norm_, nn.utils.clip_grad_value_):
        for row in gradients:
            parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
            for parameter, part in zip(parameters, row.split([6, 4]), strict=True):
                parameter.grad = part.reshape(parameter.shape).clone()
            function(parameters, limit)
            theirs.append(torch.cat([parameter.grad.flatten() for parameter in parameters]))
    (by_norm, norm_clipped), (by_value, value_clipped) = (
        ClipNorm(limit)(gradients),
        ClipValue(limit)(gradients),
    )
    torch.testing.assert_close(torch.cat([by_norm, by_value]), torch.stack(theirs), rtol=1e-6, atol=1e-7)
    assert norm_clipped.tolist() == [bool(row.norm() > limit) for row in gradients]
    assert value_clipped.tolist() == [bool(row.abs().max() > limit) for row in gradients]


def test_texts_and_numbers_are_read():
    assert clipping(1) == clipping("1.0") == clipping("norm(1)") == clipping(np.float32(1)) == ClipNorm(1.0)
    assert clipping("value(0.5)") == ClipValue(0.5)
    for text in ("norm(0.1)", "value(2)"):
        assert RunSpec(data="x", clip=text).to_dict()["clip"] == text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": "nrm(1)"}, "clip must be a number, \"norm(1.0)\" or \"value(0.5)\" (unknown clipping 'nrm'; did you mean 'norm'?"),
        ({"clip": 0}, 'clip must be a number, "norm(1.0)" or "value(0.5)" (norm: limit must be positive, got 0'),
        ({"clip": True}, 'clip must be a number, "norm(1.0)" or "value(0.5)"; got True'),
        ({"clip": float("nan")}, 'clip must be a number, "norm(1.0)" or "value(0.5)" (norm: limit must be positive, got nan)'),
        ({"clip": "value"}, 'clip must be a number, "norm(1.0)" or "value(0.5)" (value: needs limit, as in value(limit=…))'),
        ({"accumulate": 0}, "accumulate must be at least 1; got 0"),
        ({"accumulate": 1.5}, "accumulate must be a whole number; got 1.5"),
    ],
)  # fmt: skip
def test_invalid_value_is_one_sentence(options, message):
    with pytest.raises(EnvariantError) as refusal:
        RunSpec(data="x", **options)
    assert str(refusal.value).startswith(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 2}, 'accumulate: batch_size is "full", so all batches of an update would be equal'),
        ({"algorithm": "dann", "accumulate": 2, "batch_size": 5}, "remove optimizer, weight_decay and accumulate"),
        ({"algorithm": "dann", "clip": 1}, "remove optimizer, weight_decay and clip"),
        ({"algorithm": "majority-class", "clip": 1, "accumulate": 2}, "remove them: clip, accumulate"),
    ],
)  # fmt: skip
def test_options_without_effect_are_rejected(options, message):
    with pytest.raises(EnvariantError, match=message):
        envariant.train(data(), **{"test_environments": (), "progress": False, **options})


def loop(config: RunConfig):
    """Train V-REx by a plain loop on the same batches; return the weights and the share of clipped steps."""
    environments, member = data(), replicas(count=1)[0]
    first = next(
        iter(engine.run(environments, [member], replace(config, clip=None, accumulate=1), SEQUENTIAL))
    )
    start = first.checkpoint().clone().states()[0].params
    module = model_config("mlp(hidden=4)").build((3,), 1)
    module.load_state_dict(start)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3)
    rows = Rows([environments], environments.roles(()), CPU)
    batches = BatchSampler(rows, [member.seeds.order], config.batch_size, None, torch.float32)
    coefficient = member.algorithm.penalties[0].coefficient
    clipped = 0
    for step in range(config.steps):
        optimizer.zero_grad()
        for k in range(config.accumulate):
            inputs, targets = (part[0] for part in batches.at(step * config.accumulate + k))
            losses = nn.functional.binary_cross_entropy_with_logits(
                module(inputs)[:, 0], targets, reduction="none"
            )
            risks = losses.view(2, -1).mean(dim=1)
            penalty = (risks - risks.mean()).square().mean()
            ((risks.mean() + coefficient(step) * penalty) / config.accumulate).backward()
        norm = nn.utils.clip_grad_norm_(module.parameters(), config.clip.limit) if config.clip else 0.0
        clipped += bool(config.clip) and float(norm) > config.clip.limit
        optimizer.step()
    return {name: value.detach() for name, value in module.named_parameters()}, clipped / config.steps


@pytest.mark.parametrize("options", [{"accumulate": 3}, {"clip": ClipNorm(0.3), "accumulate": 2}])
def test_training_equals_a_plain_loop_in_both_executions(options):
    config = plan(evaluate_every=6, **options)
    expected, share = loop(config)
    for how in (SEQUENTIAL, STACKED):
        rows, states = outcome(replicas(), config, how)
        for name, value in expected.items():
            torch.testing.assert_close(states[0].params[name], value, rtol=1e-5, atol=1e-6)
        if config.clip:
            assert rows[0, 6, "*", CLIP_SHARE] == pytest.approx(share)
            assert 0 < share < 1


def test_one_batch_per_update_and_a_limit_that_is_never_reached_keep_the_bits():
    plain, limited = (outcome(replicas(), plan(clip=clip), STACKED) for clip in (None, ClipNorm(1e6)))
    for k, state in plain[1].items():
        assert all(torch.equal(limited[1][k].params[name], value) for name, value in state.params.items())
    assert {key: value for key, value in limited[0].items() if key[3] != CLIP_SHARE} == plain[0]
    assert [limited[0][0, step, "*", CLIP_SHARE] for step in (3, 6)] == [0.0, 0.0]


@pytest.mark.parametrize("how", [SEQUENTIAL, STACKED], ids=str)
def test_a_resumed_run_has_the_same_bits_and_clip_shares(how, tmp_path):
    config = plan(optimizer=optimizer_config("adam"), clip=ClipValue(0.05), accumulate=2)
    rows, states = outcome(replicas(), config, how)
    for event in engine.run(data(), replicas(), config, how):
        if (stored := event.checkpoint()).step == 4:
            checkpoint.save(stored, tmp_path)
    later, resumed = outcome(replicas(), config, how, checkpoint.load(tmp_path))
    assert any(key[3] == CLIP_SHARE and value > 0 for key, value in later.items())
    # A sequential run stores its last replica here; the other is trained from the start.
    assert all(rows[key] == value for key, value in later.items())
    for k, state in states.items():
        assert all(torch.equal(resumed[k].params[name], value) for name, value in state.params.items())


def test_a_replica_that_diverges_in_one_batch_keeps_its_weights_and_state():
    members = replicas()
    members[1] = replace(members[1], learning_rate=1e38)
    _, states = outcome(members, plan(accumulate=2, optimizer=optimizer_config("adam")), STACKED)
    assert states[0].failure is None
    assert states[1].failure is not None
    assert all(bool(value.isfinite().all()) for value in states[1].params.values())
    alone = outcome(replicas(), plan(accumulate=2, optimizer=optimizer_config("adam")), STACKED)[1]
    assert all(torch.equal(alone[0].params[name], value) for name, value in states[0].params.items())


def test_every_batch_of_an_update_advances_running_statistics():
    def model():
        head = nn.Linear(4, 1)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), head)

    result = envariant.train(
        data(), "erm", model=model, steps=3, accumulate=4, batch_size=5, test_environments=(), progress=False
    )
    buffers = result.checkpoints[0].buffers
    assert int(buffers["1.num_batches_tracked"]) == 12
