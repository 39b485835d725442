"""The choice between stacked and sequential execution, its memory, and what happens if memory runs out."""

import time
from dataclasses import replace

import pytest
import torch
from test_stacking import (
    SEQUENTIAL,
    STACKED,
    Images,
    Remembering,
    assert_alike,
    collected,
    made,
    normed,
    outcome,
    plan,
    replicas,
)
from torch import nn

import envariant
from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Binary
from envariant.training import checkpoint, engine, execution, memory_budget
from envariant.training.engine import Evaluated
from envariant.training.execution import Auto, Execution, Stacked
from envariant.training.replicas import Replica, Seeds


def test_replicas_of_different_structure_train_in_separate_groups():
    members = [replicas("irm", 5)[k] for k in (0, 1, 2)] + [
        replace(r, index=r.index + 10) for r in replicas("erm", 4)
    ]
    found = engine.groups(members, 2)
    assert [[r.index for r in g] for g in found] == [[0, 1], [2], [10, 11], [12, 13]]
    balanced = engine.groups(replicas("erm", 10), 4)
    assert sorted(len(g) for g in balanced) == [3, 3, 4]
    rows, states = outcome(made(Binary(), 1), members, plan(), STACKED)
    assert set(states) == {0, 1, 2, 10, 11, 12, 13}
    assert {r.replica for r in rows} == set(states)


def test_data_draws_of_different_sizes_cannot_be_stacked():
    class Uneven(envariant.EnvironmentSource):
        name = "uneven"

        def sample(self, seed):
            return made(Binary(), 1, seed % 5, sizes=(30 + seed % 7, 20, 10))

    with pytest.raises(EnvariantError) as error:
        envariant.train(Uneven(), "erm", model="linear", steps=3, replicas=4, execution="stacked")
    assert str(error.value) == (
        "execution: these replicas cannot be stacked (environments differ in size from draw to draw); "
        "set execution to sequential"
    )
    found = execution.choose(Auto(), Uneven(), replicas("erm"), plan(steps=600), None)
    assert found.mode == "sequential"
    assert found.reason == "environments differ in size from draw to draw"


def test_group_that_cannot_be_stacked_trains_its_members_alone():
    class Late(envariant.EnvironmentSource):
        """The twentieth replica's draw is larger than the others: nobody looks that far beforehand."""

        name = "late"

        def sample(self, seed):
            return made(Binary(), 1, 0, sizes=(31 if seed == Seeds.of(7, 19).data else 30, 20, 10))

    members, shared = replicas("erm", 20), plan(steps=4)
    rows, states = outcome(Late(), members, shared, Execution("stacked", 10, ""))
    assert set(states) == set(range(20))
    assert {k: s.failure for k, s in states.items()} == dict.fromkeys(range(20))
    assert_alike((rows, states), outcome(Late(), members, shared, SEQUENTIAL))


def test_dropout_runs_sequentially(monkeypatch):
    def build():
        return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    source = made(Binary(), 1)
    with pytest.raises(EnvariantError, match="of its own, as dropout does\\); set execution to sequential"):
        envariant.train(source, "erm", model=build, steps=3, replicas=2, execution="stacked")
    monkeypatch.setattr(execution, "_FEW_STEPS", 20)
    result = envariant.train(source, "erm", model=build, steps=10, replicas=2)
    assert "dropout" in result.record.execution.reason


@pytest.mark.parametrize("name", ["erm", "irm", "and-mask"])
@pytest.mark.parametrize("batch_size", [None, 64])
@pytest.mark.parametrize("own_data", [False, True])
def test_memory_is_predicted_within_a_fifth(name, batch_size, own_data):
    """From two and four replicas to fifty."""
    source = Images() if own_data else made(Binary(), 1, sizes=(400, 700, 300))
    shared = plan(batch_size=batch_size)
    members = [replace(r, index=k) for k, r in enumerate(replicas(name, 50))]
    predicted = execution.need(source, members, shared).of(50)
    found = execution.peaks(source, members, shared)
    assert predicted == pytest.approx(max(found), rel=0.2)


def test_peak_bytes_count_tensors_that_live_at_one_time():
    def work():
        a = torch.ones(1000)
        b = a + 1
        del a
        c = b.view(10, 100) * 2
        return c.sum()

    assert memory_budget.peak_bytes(work, lambda: torch.zeros(10)) == (8000 + 4, 44)


def test_small_budget_makes_smaller_groups_and_a_tiny_one_is_rejected():
    source, members, shared = made(Binary(), 1), replicas("irm", 20), plan()
    need = execution.need(source, members, shared)
    budget = int(execution.HEAP * need.of(7)) + 3
    found = execution.choose(Stacked(), source, members, shared, budget)
    assert found.mode == "stacked"
    assert found.group == 7
    assert budget - 3 <= found.bytes_predicted <= budget
    found = execution.choose(Auto(), source, members, replace(shared, steps=500), 1000)
    assert found.mode == "sequential"
    assert found.reason == "a stack does not fit in 1e-06 GB"
    with pytest.raises(
        EnvariantError, match="memory: 2 replicas need about .* GB, but only .* GB are allowed"
    ):
        execution.choose(Stacked(), source, members, shared, int(execution.HEAP * need.of(1)))


def random_data(environments, rows, shape) -> EnvironmentSet:
    generator = torch.Generator().manual_seed(0)
    parts = [
        Environment(f"e{k}", torch.rand(rows, *shape, generator=generator), torch.arange(rows) % 2)
        for k in range(environments)
    ]
    return EnvironmentSet("random", tuple(parts), Binary())


@pytest.mark.parametrize(
    ("data", "model", "algorithm", "batch_size", "count", "mode", "reason"),
    [
        pytest.param(
            (3, 2000, (20,)), "mlp(hidden=64)", "erm", 64, 100, "stacked",
            "a step is small: 0.057 million activations and 1.04 million multiply-adds", id="small-mlp",
        ),
        pytest.param(
            (3, 10_000, (10,)), "linear", "irm", None, 20, "stacked", "a step is small", id="linear",
        ),
        pytest.param(
            (2, 25_000, (392,)), "mlp(hidden=390)", "irm", None, 10, "sequential",
            "a step is large: 117 million activations and 1.53e+04 million multiply-adds", id="irm-full-batch",
        ),
        pytest.param(
            (2, 200, (2, 28, 28)), "mnist-cnn", "erm", 64, 10, "sequential", "a step is large", id="mnist-cnn",
        ),
        pytest.param(
            (2, 200, (392,)), "mlp(hidden=390)", "erm", 64, 10, "sequential", "a step is large", id="wide-mlp",
        ),
    ],
)  # fmt: skip
def test_auto_stacks_small_steps_and_not_large_ones(
    data, model, algorithm, batch_size, count, mode, reason, monkeypatch
):
    """The size of a step is counted; a machine that takes long for it changes nothing."""
    advance = execution.ReplicaStack.advance
    monkeypatch.setattr(execution.ReplicaStack, "advance", lambda self: time.sleep(0.05) or advance(self))
    shared = plan(model, steps=2000, batch_size=batch_size)
    choice = execution.choose(Auto(), random_data(*data), replicas(algorithm, count), shared, 2**33)
    assert choice.mode == mode
    assert choice.group == (count if mode == "stacked" else 1)
    assert choice.reason.startswith(reason)


def test_auto_is_sequential_where_there_is_nothing_to_gain():
    source = made(Binary(), 1)
    few = execution.choose(Auto(), source, replicas("irm", 30), plan(steps=3), None)
    assert (few.mode, few.group) == ("sequential", 1)
    assert few.reason == "30 replicas of 3 steps are too few to gain from stacking"
    one = execution.choose(Auto(), source, replicas("irm", 1), plan(steps=10**6), None)
    assert (one.mode, one.reason) == ("sequential", "there is one replica")
    two = [replicas("irm", 1)[0], replace(replicas("erm", 1)[0], index=1)]
    different = execution.choose(Auto(), source, two, plan(steps=10**6), None)
    assert (different.mode, different.reason) == ("sequential", "no two replicas have the same structure")


def test_most_common_structure_decides_for_all():
    members = [*replicas("irm", 6), *(replace(r, index=r.index + 30) for r in replicas("erm", 2))]
    mixed = execution.choose(Auto(), made(Binary(), 1), members, plan(steps=1000), None)
    assert (mixed.mode, mixed.group) == ("stacked", 6)


def test_requests_are_texts_or_objects():
    for request in (Auto(), Stacked(), Stacked(group=50), execution.Sequential()):
        assert execution.execution_request(request) is request
        assert execution.execution_request(str(request)) == request
    source, members = made(Binary(), 1), replicas("irm", 20)
    choice = execution.choose(Stacked(group=7), source, members, plan(), None)
    assert (choice.mode, choice.group, choice.reason) == ("stacked", 7, "as requested")


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:82] DefaultCPUAllocator: not enough memory: you tried"),
]


def limit_memory(monkeypatch, most, error, method="advance"):
    """Let stacks of more than `most` replicas run out of memory."""
    original = getattr(execution.ReplicaStack, method)

    def limited(self, *arguments):
        if len(arguments[1] if method == "__init__" else self.replicas) > most:
            raise error
        return original(self, *arguments)

    monkeypatch.setattr(execution.ReplicaStack, method, limited)


@pytest.fixture(scope="module")
def seven():
    """Seven replicas, and their outcome in stacks of two."""
    run = made(Binary(), 1), replicas("irm", 7), plan(steps=2, evaluate_every=1)
    return run, outcome(*run, Execution("stacked", 2, ""))


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "linux", "windows"])
@pytest.mark.parametrize("method", ["advance", "__init__"])
def test_stack_is_halved_where_memory_runs_out(seven, error, method, monkeypatch, caplog):
    run, expected = seven
    limit_memory(monkeypatch, 2, error, method)
    events = [e for e in engine.run(*run, STACKED) if isinstance(e, Evaluated)]
    assert [e.replicas for e in events if e.step == 0] == [(0, 1), (2, 3), (4, 5), (6,)]
    notes = {
        count: f"memory ran out with {count} replicas in one program; continued with {half}"
        for count, half in ((7, 4), (4, 2), (3, 2))
    }
    first = notes[7]
    left, right = (first, notes[4]), (first, notes[3])
    assert [e.notes for e in events if e.step == 0] == [left, left, right, right]
    assert not any(e.notes for e in events if e.step)
    assert first in caplog.text
    rows, states = collected(events)
    # Groups of 7 replicas, at most 2 each, are 2, 2, 1 and 2: the last three differ by rounding.
    assert [r for r in rows if r.replica < 4] == [r for r in expected[0] if r.replica < 4]
    assert_alike((rows, states), expected)


def test_run_whose_stack_was_halved_resumes_with_its_halves(monkeypatch, tmp_path):
    source, members, shared = made(Binary(), 1), replicas("irm", 4), plan()
    limit_memory(monkeypatch, 2, OUT_OF_MEMORY[0])
    whole = outcome(source, members, shared, STACKED)
    for event in engine.run(source, members, shared, STACKED):
        if isinstance(event, Evaluated) and event.step == 4:
            checkpoint.save(event.checkpoint(), tmp_path)
            if event.replicas == (2, 3):
                break
    resume = checkpoint.load(tmp_path)
    assert [saved.replicas for saved in resume] == [(0, 1), (2, 3)]
    for stored in (resume, resume[:1]):
        rows, states = outcome(source, members, shared, STACKED, stored)
        again = {number for saved in stored for number in saved.replicas}
        assert rows == [row for row in whole[0] if row.step > 4 or row.replica not in again]
        for k, state in whole[1].items():
            assert all(torch.equal(states[k].params[n], v) for n, v in state.params.items())


def test_memory_for_one_replica_is_required_and_other_errors_are_not_hidden(monkeypatch):
    source, members = made(Binary(), 1), replicas("irm", 4)
    with monkeypatch.context() as patch:
        limit_memory(patch, 0, OUT_OF_MEMORY[0], "__init__")
        with pytest.raises(
            EnvariantError, match="memory: replica 0 alone needs more than is available; use a smaller"
        ):
            outcome(source, members, plan(), STACKED)
    limit_memory(monkeypatch, 0, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        outcome(source, members, plan(), STACKED)


def test_rehearsed_step_leaves_no_trace():
    source, shared, one = made(Binary(), 1), plan(normed, batch_size=16), Remembering()
    members = [Replica(k, Seeds.of(7, k), one, 0.01, 0.0) for k in range(3)]
    stacks = [execution.ReplicaStack(source, members, shared) for _ in range(2)]
    for step in range(4):
        stacks[0].rehearse()
        ours, theirs = (stack.checkpoint().clone() for stack in stacks)
        assert ours.step == theirs.step == step
        for kind in ("params", "buffers", "optimizer", "watch", "algorithm"):
            ours_by_name, theirs_by_name = (dict(getattr(saved, kind)) for saved in (ours, theirs))
            if kind == "algorithm":
                ours_by_name, theirs_by_name = ours_by_name["means"], theirs_by_name["means"]
            assert ours_by_name.keys() == theirs_by_name.keys()
            assert all(torch.equal(value, theirs_by_name[name]) for name, value in ours_by_name.items())
        for stack in stacks:
            stack.advance()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"execution": "stack"}, "unknown execution 'stack'; did you mean 'stacked'?"),
        ({"execution": "stacked(group=0)"}, "stacked: group must be at least 1, got 0"),
        ({"execution": "stacked(group=2.5)"}, "stacked: group must be a whole number; got 2.5"),
        ({"execution": "sequential(group=2)"}, "unknown setting 'group'"),
        ({"memory": "lots"}, "memory: expected an amount such as 8GB or 512MiB; got 'lots'"),
        ({"memory": "0GB"}, "memory: expected an amount"),
        ({"memory": -1}, "memory: expected an amount"),
        ({"execution": "auto(group=5)"}, "unknown setting 'group'"),
        (
            {"memory": "1KB", "execution": "stacked", "replicas": 2},
            "raise the option 'memory', or set execution to sequential",
        ),
    ],
)
def test_invalid_execution_or_memory_is_rejected(arguments, message):
    with pytest.raises(EnvariantError) as error:
        envariant.train(**{"data": "colored-digits", "algorithm": "erm", "steps": 1} | arguments)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8GB", 8 * 10**9), ("512 MiB", 2**29), ("1.5kb", 1500), (77, 77), (8e9, 8 * 10**9), (None, None)],
)
def test_amounts_of_memory(text, expected):
    assert memory_budget.parse(text) == expected


def test_resumed_run_keeps_the_execution_that_it_was_begun_with(tmp_path):
    long = {"steps": 20, "replicas": 3, "evaluate_every": 5, "out": tmp_path}
    first = envariant.train("colored-digits", "irm", execution="stacked", **long)
    assert first.record.execution.mode == "stacked"
    assert list(tmp_path.rglob("replicas-000-002.safetensors"))
    again = envariant.train("colored-digits", "irm", execution="sequential", **long)
    assert again.record.execution == first.record.execution
    assert sorted(again.rows, key=str) == sorted(first.rows, key=str)
    assert envariant.TrainingResult.load(tmp_path).finished == (0, 1, 2)
