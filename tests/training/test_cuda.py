"""CUDA: the same numbers as on the CPU to rounding, and bit-identical runs.

Skipped without a CUDA device. Rounding differs because a GPU sums in another order.
"""

from dataclasses import replace

import pytest
import torch
from test_networks import QUICK, SERIES, Recurrent
from test_stacking import made, outcome, plan, replicas

import envariant
from envariant.algorithms import RECIPES
from envariant.core.tasks import Binary
from envariant.training import checkpoint, engine, execution
from envariant.training.engine import Evaluated
from envariant.training.execution import SEQUENTIAL, Execution, Stacked
from envariant.training.optimizers import optimizer_config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
STACKED = Execution("stacked", 100, "")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def moved(members, shared, how):
    """Return the final parameters of each replica, on the CPU."""
    _, states = outcome(made(Binary(), 1), members, shared, how)
    return {k: torch.cat([v.flatten().cpu() for v in s.params.values()]) for k, s in states.items()}


@pytest.mark.parametrize("name", RECIPES)
def test_every_algorithm_trains_on_cuda_as_on_the_cpu(name):
    """Use plain gradient descent, because Adam makes full steps from rounding noise."""
    shared = replace(plan(batch_size=16), optimizer=optimizer_config("sgd"), steps=4)
    members = replicas(name, 3)
    here = moved(members, shared, SEQUENTIAL)
    for how in (SEQUENTIAL, STACKED):
        there = moved(members, replace(shared, device=CUDA), how)
        for k, expected in here.items():
            torch.testing.assert_close(there[k], expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("name", RECIPES)
def test_cuda_runs_are_bit_identical_also_from_a_checkpoint(name, tmp_path):
    shared, source, members = plan(batch_size=16, device=CUDA), made(Binary(), 1), replicas(name, 2)
    rows, states = outcome(source, members, shared, STACKED)
    again, _ = outcome(source, members, shared, STACKED)
    assert rows == again
    for event in engine.run(source, members, shared, STACKED):
        if (stored := event.checkpoint()).step == 4:
            checkpoint.save(stored, tmp_path)
            break
    later, resumed = outcome(source, members, shared, STACKED, checkpoint.load(tmp_path))
    assert later == [row for row in rows if row.step >= 4]
    for k, state in states.items():
        assert all(torch.equal(resumed[k].params[n], v) for n, v in state.params.items())


# The compiler of PyTorch warns of parts of itself, of TF32 and of its own empty first graph.
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ["erm", "irm", "and-mask"])
def test_compiled_programs_are_cuda_graphs_and_agree(name):
    shared = replace(plan(batch_size=16, device=CUDA), optimizer=optimizer_config("sgd"), steps=12)
    members = replicas(name, 3)
    plain, compiled = (moved(members, replace(shared, compiled=c), STACKED) for c in (False, True))
    for k, expected in plain.items():
        torch.testing.assert_close(compiled[k], expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_every_precision_learns_and_restores_pytorchs_settings(precision):
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    result = envariant.train(
        "colored-digits", "erm", model="mnist-cnn", steps=30, precision=precision, device="cuda"
    )
    assert result.record.spec.precision == precision
    assert result.final("flip-0.1", "accuracy").mean > 0.7
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_pretraining_and_environment_inference_run_on_cuda():
    short = {"steps": 4, "model": "mlp(hidden=16)", "batch_size": "full", "device": "cuda"}
    rich = "rfc(first_steps=3, steps=3, synthesis_steps=3)"
    for given in (("vrex", {"init": rich, "freeze": "features"}), ("eiil(reference_steps=5)", {})):
        result = envariant.train("colored-digits", given[0], **given[1], **short)
        assert len(result.finished) == 1
        assert result.record.hardware["accelerator"]


@pytest.mark.parametrize("algorithm", ["erm", "irm(coefficient=3)", "iga(coefficient=1)"])
def test_recurrent_networks_train_on_cuda_as_on_the_cpu(algorithm):
    torch.manual_seed(0)
    module = Recurrent(torch.nn.LSTM(3, 6, batch_first=True))
    trained = [
        envariant.train(SERIES, algorithm, model=module, optimizer="sgd", device=device, **QUICK)
        for device in ("cpu", "cuda")
    ]
    here, there = (result.checkpoints[0].params for result in trained)
    for name, expected in here.items():
        torch.testing.assert_close(there[name].cpu(), expected, rtol=2e-3, atol=2e-4)


def test_cuda_memory_is_as_predicted():
    shared = plan("mlp(hidden=256)", batch_size=256, device=CUDA)
    source, members = made(Binary(), 1), replicas("irm", 24)
    chosen = execution.choose(Stacked(), source, members, shared, None)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    list(engine.run(source, members, shared, chosen))
    taken = torch.cuda.max_memory_allocated() - before
    assert chosen.bytes_predicted is not None
    assert taken == pytest.approx(chosen.bytes_predicted, rel=0.25)


def test_diverged_replica_is_frozen_on_cuda():
    source, shared = made(Binary(), 1), plan(device=CUDA)
    healthy = replicas("irm", 3)
    spoiled = [*healthy, replace(healthy[0], index=3, learning_rate=float("inf"))]
    whole = [e for e in engine.run(source, spoiled, shared, STACKED) if isinstance(e, Evaluated)]
    states = whole[-1].checkpoint().states()
    assert states[3].failure is not None
    assert all(states[k].failure is None for k in range(3))
