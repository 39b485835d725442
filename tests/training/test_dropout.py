"""Dropout of `mlp`: masks per replica, step, pass and row, whatever the execution."""

import pytest
import torch
from test_stacking import CPU, SEQUENTIAL, STACKED, assert_alike, made, outcome, plan, replicas
from torch.func import vmap

from envariant.core.tasks import Binary
from envariant.models import model_config
from envariant.training import checkpoint, engine, network, step_program
from envariant.training.network import Network
from envariant.training.pure_model import PureModel

MODEL = "mlp(hidden=8, dropout=0.4)"


def built(text=MODEL, inputs=6):
    torch.manual_seed(0)
    module = model_config(text).build((inputs,), 1)
    return Network(module, Binary(), "float32", CPU, needs_features=True, input_shape=(inputs,))


def features(net, rows, key=3, passes=1, replicas=1):
    pure = PureModel(net, net.params, net.buffers, rows, replicas, torch.tensor(key))
    return [pure(net.params, rows)[0] for _ in range(passes)]


@pytest.mark.parametrize("name", ["erm", "and-mask"])
@pytest.mark.parametrize("batch_size", [None, 16])
def test_stacked_and_sequential_have_the_same_masks(name, batch_size, monkeypatch):
    # Blocks of 64 rows in a stack, of up to 128 alone: masks must not depend on the blocks.
    monkeypatch.setitem(network.BLOCK_BYTES, "cpu", 4 * 128 * built().width)
    assert built().blocks(135, 3) != built().blocks(135, 1)
    shared, source = plan(MODEL, batch_size=batch_size), made(Binary(), 1)
    together = outcome(source, replicas(name, 3), shared, STACKED)
    assert_alike(together, outcome(source, replicas(name, 3), shared, SEQUENTIAL))
    without = outcome(source, replicas(name, 3), plan(batch_size=batch_size), STACKED)
    assert together[0][-1].value != without[0][-1].value


@pytest.mark.parametrize("how", [SEQUENTIAL, STACKED])
def test_runs_with_dropout_resume_bit_identically_and_recording_changes_nothing(how, monkeypatch, tmp_path):
    shared, source, members = plan(MODEL, batch_size=16), made(Binary(), 1), replicas("vrex", 2)
    whole = outcome(source, members, shared, how)
    for event in engine.run(source, members, shared, how):
        if (stored := event.checkpoint()).step == 4:
            checkpoint.save(stored, tmp_path)
            break
    _, states = outcome(source, members, shared, how, checkpoint.load(tmp_path))
    monkeypatch.setattr(step_program, "_WORTH_RECORDING", 0)
    recorded = outcome(source, members, shared, how)[1]
    for k, state in whole[1].items():
        for name, value in state.params.items():
            assert torch.equal(recorded[k].params[name], value)
            assert k not in states or torch.equal(states[k].params[name], value)


def test_masks_differ_by_key_pass_layer_and_row_and_evaluation_has_none():
    net, ones = built("mlp(hidden=500, dropout=0.4)"), torch.ones(20, 6)
    first, second = features(net, ones, passes=2)
    assert torch.equal(first, features(net, ones)[0])
    assert not torch.equal(first, second)
    assert not torch.equal(first, features(net, ones, key=4)[0])
    assert (first == 0)[0].ne((first == 0)[1]).any()
    plain, _ = net.forward(net.params, net.buffers, ones, training=False)
    assert torch.equal(plain, plain[:1].expand_as(plain))


def test_share_of_zeros_and_scale_are_those_of_dropout():
    net = built("mlp(hidden=400, depth=1, dropout=0.4, activation=tanh)")
    rows = torch.randn(200, 6)
    (ours,) = features(net, rows)
    plain, _ = net.forward(net.params, net.buffers, rows, training=False)
    # 80,000 masks: standard deviation of the share 0.0017.
    assert (ours == 0).double().mean().item() == pytest.approx(0.4, abs=0.007)
    torch.testing.assert_close(ours[ours != 0], (plain / 0.6)[ours != 0])


def test_replicas_in_a_stack_have_the_masks_of_their_own_keys():
    net, rows = built(), torch.randn(5, 6)

    def features_of(key):
        return PureModel(net, net.params, net.buffers, rows, 2, key)(net.params, rows)[0]

    stacked = vmap(features_of)(torch.tensor([3, 9]))
    for k, key in enumerate((3, 9)):
        torch.testing.assert_close(stacked[k], features(net, rows, key)[0])
