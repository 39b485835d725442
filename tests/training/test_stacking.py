"""Stacked or one after another, recorded or not, alone or in company: the same numbers to rounding."""

import time
from dataclasses import replace
from typing import final

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import envariant
from algorithms.problems import train_context
from algorithms.references import ENROLLED, every_case
from benchmarks import step_timing
from envariant.algorithms import RECIPES, Algorithm, Composition, VREx, recipe
from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Binary
from envariant.models import model_config
from envariant.training import checkpoint, engine, execution, memory_budget, step_program
from envariant.training.augmentation import RandomAffine
from envariant.training.engine import Evaluated
from envariant.training.execution import SEQUENTIAL, Auto, Execution, Stacked
from envariant.training.optimizers import optimizer_config
from envariant.training.replicas import Replica, Seeds
from envariant.training.run_config import RunConfig

CPU = torch.device("cpu")
SETTING = train_context(2, Binary())
STACKED = Execution("stacked", 100, "")


def made(task, outputs, seed=0, sizes=(40, 95, 20)) -> EnvironmentSet:
    generator = torch.Generator().manual_seed(seed)
    weights, found = torch.randn(6, outputs, generator=generator), []
    for name, n in zip("abc", sizes, strict=True):
        inputs = torch.randn(n, 6, generator=generator)
        score = inputs @ weights
        targets = score[:, 0] if outputs == 1 else score.argmax(dim=1)
        found.append(
            Environment(name, inputs, (targets > 0).float() if isinstance(task, Binary) else targets)
        )
    return EnvironmentSet("made", tuple(found), task, test=("c",))


def plan(model="mlp(hidden=8)", **changes) -> RunConfig:
    build = model_config(model).build if isinstance(model, str) else model
    standard = RunConfig(build, optimizer_config("adam"), 8, None, 4, "float32", None, None, CPU)
    return replace(standard, **changes)


def replicas(name, count=4, rates=(0.01, 0.003), **changes):
    """Replicas of the settings under which the table of algorithms tests it, and of half of each number."""
    row = ENROLLED[name].settings
    settings = [row, {key: value / 2 if isinstance(value, float) else value for key, value in row.items()}]
    return [
        Replica(
            k,
            Seeds.of(7, k),
            recipe(name).build({**settings[k % 2], **changes}),
            rates[k % 2],
            0.01 * (k % 3),
        )
        for k in range(count)
    ]


def outcome(source, members, shared, how, resume=()):
    """Every measured number by replica, and the last state of each."""
    events = [e for e in engine.run(source, members, shared, how, resume) if isinstance(e, Evaluated)]
    rows = sorted((r for e in events for r in e.rows), key=lambda r: (r.replica, r.step))
    return rows, {k: s for e in events if e.finished for k, s in e.checkpoint().states().items()}


def assert_alike(ours, theirs, tolerance=2e-4):
    assert len(ours[0]) == len(theirs[0])
    for a, b in zip(ours[0], theirs[0], strict=True):
        assert replace(a, value=0.0) == replace(b, value=0.0)
        assert a.value == pytest.approx(b.value, rel=tolerance, abs=1e-4), a
    for k, state in theirs[1].items():
        for name, value in state.params.items():
            torch.testing.assert_close(ours[1][k].params[name], value, rtol=tolerance, atol=1e-4)


def test_replicas_may_follow_different_schedules():
    schedules = ["step(1, 50, at=3)", "linear(0, 9, until=5)", 4.0, "stages(1, 2, 3, at=(2, 4))"]
    members = [
        replace(member, algorithm=recipe("irm").build({"coefficient": schedule}))
        for member, schedule in zip(replicas("irm"), schedules, strict=True)
    ]
    source = made(Binary(), 1)
    assert_alike(outcome(source, members, plan(), STACKED), outcome(source, members, plan(), SEQUENTIAL))


@every_case()
def test_stacked_and_one_after_another_are_the_same_to_rounding(name, problem):
    """Replicas with weights, rates, decays and hyperparameters of their own."""
    task = problem.task
    batch_size = 16 if task.name == "multiclass" else None
    # Adam makes whole steps of an entry whose gradient is nothing but rounding (SelfReg has some).
    optimizer = optimizer_config("sgd" if name == "selfreg" else "adam")
    shared, source = plan(batch_size=batch_size, optimizer=optimizer), made(task, task.outputs)
    together = outcome(source, replicas(name), shared, STACKED)
    apart = outcome(source, replicas(name), shared, SEQUENTIAL)
    assert_alike(together, apart)
    values = {sum(p.sum().item() for p in s.params.values()) for s in apart[1].values()}
    assert len(values) == 4, "the replicas do differ"


@pytest.mark.parametrize("name", RECIPES)
def test_every_algorithm_goes_on_from_its_checkpoint_bit_for_bit(name, tmp_path):
    shared, source, members = plan(batch_size=16), made(Binary(), 1), replicas(name, 2)
    whole = outcome(source, members, shared, STACKED)
    for event in engine.run(source, members, shared, STACKED):
        if (stored := event.checkpoint()).step == 4:
            checkpoint.save(stored, tmp_path)
            break
    rows, states = outcome(source, members, shared, STACKED, checkpoint.load(tmp_path))
    assert rows == [row for row in whole[0] if row.step >= 4]
    for k, state in whole[1].items():
        assert all(torch.equal(states[k].params[n], v) for n, v in state.params.items())


@pytest.mark.parametrize("name", ["irm", "and-mask"])
@pytest.mark.parametrize("batch_size", [None, 16])
def test_images_of_their_own_draw_and_augmentation_for_each_replica(name, batch_size):
    shared = plan("lenet", batch_size=batch_size, augmentation=RandomAffine(), steps=4)
    assert_alike(
        outcome(Images(), replicas(name, 3), shared, STACKED),
        outcome(Images(), replicas(name, 3), shared, SEQUENTIAL),
        1e-3,
    )


class Images(envariant.EnvironmentSource):
    """Small random images, drawn anew for every seed."""

    name = "images"

    def sample(self, seed):
        generator = torch.Generator().manual_seed(seed)
        return EnvironmentSet(
            "images",
            tuple(
                Environment(n, torch.rand(30, 1, 14, 14, generator=generator), torch.arange(30.0) % 2)
                for n in "abc"
            ),
            Binary(),
            test=("c",),
        )


def test_batch_norm_can_be_stacked_and_its_running_statistics_follow():
    def build(_shape, _outputs):
        return nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))

    shared, source = plan(build), made(Binary(), 1)
    ours = outcome(source, replicas("vrex", 3), shared, STACKED)
    theirs = outcome(source, replicas("vrex", 3), shared, SEQUENTIAL)
    assert_alike(ours, theirs)
    for k in range(3):
        for name, buffer in theirs[1][k].buffers.items():
            torch.testing.assert_close(ours[1][k].buffers[name], buffer, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", [SEQUENTIAL, STACKED], ids=["alone", "stacked"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_recorded_program_gives_the_bits_of_the_unrecorded_one(name, how, monkeypatch):
    shared, source = plan(batch_size=16), made(Binary(), 1)
    plain = outcome(source, replicas(name), shared, how)
    monkeypatch.setattr(step_program, "_WORTH_RECORDING", 1)
    used = []
    original = step_program.StepProgram._record
    monkeypatch.setattr(
        step_program.StepProgram,
        "_record",
        lambda self, given: used.append(original(self, given)) or used[-1],
    )
    recorded = outcome(source, replicas(name), shared, how)
    assert used
    assert None not in used, "it was recorded"
    assert recorded[0] == plain[0]
    for k, state in plain[1].items():
        assert all(torch.equal(recorded[1][k].params[n], v) for n, v in state.params.items())


@final
class Casts(TorchDispatchMode):
    """Sees every cast, and whether it changes anything."""

    def __init__(self):
        super().__init__()
        self.seen, self.idle = 0, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation is torch.ops.aten._to_copy.default:
            self.seen += 1
            self.idle += args[0].dtype == kwargs.get("dtype")
        return operation(*args, **(kwargs or {}))


def test_a_recorded_program_copies_nothing_that_has_its_type_already(monkeypatch):
    """PyTorch describes the group norm's derivative in bfloat16 as float32, and would have it cast."""
    monkeypatch.setattr(step_program, "_WORTH_RECORDING", 1)
    group = replace(step_timing.CASES["mnist-cnn"], precision="bfloat16").stack()
    group.advance()
    with Casts() as casts:
        group.advance()
    assert casts.seen > 20, "weights and their gradients are cast"
    assert casts.idle == 0


class Products(TorchDispatchMode):
    """Names the products of matrices that it sees."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
            self.seen.add(operation.overloadpacket.__name__)
        return operation(*args, **(kwargs or {}))


def test_linear_models_on_the_same_rows_are_one_product_both_ways():
    group = replace(step_timing.CASES["linear-irm-x20"], rows=50).stack()
    group.advance()
    with Products() as products:
        group.advance()
    assert products.seen == {"mm"}, "bmm would multiply for each model alone"


def test_a_cast_that_moves_as_well_stays_as_it_was_recorded():
    recorded = make_fx(lambda x: x.to("meta", torch.bfloat16), tracing_mode="fake")(torch.ones(2))
    assert step_program._without_idle_casts(recorded)(torch.ones(2)).device.type == "meta"


class Remembering(Algorithm):
    """ERM whose gradient is averaged over steps: an algorithm with a state."""

    name, minimum_environments, needs_features = "remembering", 1, False

    def __init__(self, initial=0.0):
        self.initial = initial

    def init(self, params, setting):
        means = {name: torch.full_like(value, self.initial) for name, value in params.items()}
        return {"means": means, "count": torch.zeros((), dtype=torch.long)}

    def gradients(self, model, params, batch, state, context):
        erm = Composition()
        fresh, _, metrics = erm.gradients(model, params, batch, erm.init(params, SETTING), context)
        means = {name: 0.8 * state["means"][name] + 0.2 * g for name, g in fresh.items()}
        return means, {"means": means, "count": state["count"] + 1}, metrics


def test_an_algorithms_state_is_stacked_recorded_stored_and_resumed(monkeypatch, tmp_path):
    one, source = Remembering(), made(Binary(), 1)
    members = [Replica(k, Seeds.of(7, k), one, 0.01, 0.0) for k in range(3)]
    apart = outcome(source, members, plan(), SEQUENTIAL)
    together = outcome(source, members, plan(), STACKED)
    assert_alike(together, apart)
    halfway = [
        e.checkpoint()
        for e in engine.run(source, members, plan(steps=4), STACKED)
        if isinstance(e, Evaluated) and e.finished
    ]
    assert halfway[0].algorithm["count"].tolist() == [4, 4, 4]
    checkpoint.save(halfway[0], tmp_path)
    events = engine.run(source, members, plan(), STACKED, checkpoint.load(tmp_path))
    resumed = [e for e in events if isinstance(e, Evaluated)][-1].checkpoint().states()
    for k, state in together[1].items():
        assert all(torch.equal(resumed[k].params[n], v) for n, v in state.params.items())
    monkeypatch.setattr(step_program, "_WORTH_RECORDING", 1)
    assert outcome(source, members, plan(), STACKED)[0] == together[0]


def test_a_state_that_changes_its_keys_is_refused():
    class Growing(Remembering):
        def init(self, params, setting):
            return {}

        def gradients(self, model, params, batch, state, context):
            full = super().init(params, SETTING)
            return super().gradients(model, params, batch, full, context)

    members = [Replica(0, Seeds.of(7, 0), Growing(), 0.01, 0.0)]
    with pytest.raises(EnvariantError, match="its state must keep the keys and shapes that init returned"):
        outcome(made(Binary(), 1), members, plan(), SEQUENTIAL)


def normed(shape, outputs):
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))


@pytest.mark.parametrize(
    ("optimizer", "how", "recorded"),
    [
        pytest.param("adam", SEQUENTIAL, False, id="adam-alone"),
        pytest.param("adam", STACKED, True, id="adam-stacked-recorded"),
        pytest.param("adamw", STACKED, False, id="adamw-stacked"),
        pytest.param("sgd(momentum=0.9)", SEQUENTIAL, True, id="sgd-alone-recorded"),
    ],
)
def test_a_replica_that_fails_stands_still_and_a_resumed_group_keeps_it_so(
    how, optimizer, recorded, monkeypatch, tmp_path
):
    """At a rate without measure its weights become infinite; what is kept is how it stood before that."""
    if recorded:
        monkeypatch.setattr(step_program, "_WORTH_RECORDING", 1)
    source = made(Binary(), 1)
    shared = plan(normed, optimizer=optimizer_config(optimizer), evaluate_every=4)
    algorithm = recipe("vrex").build({"coefficient": 1.0})
    members = [Replica(k, Seeds.of(7, k), algorithm, 0.01, 0.1) for k in range(3)]
    sick = replace(members[1], learning_rate=1e38, weight_decay=0.0)
    clean = outcome(source, members, shared, how)
    mixed = outcome(source, [members[0], sick, members[2]], shared, how)
    assert [r for r in mixed[0] if r.replica != 1] == [r for r in clean[0] if r.replica != 1]
    for k in (0, 2):
        for kind in ("params", "buffers"):
            ours, theirs = getattr(mixed[1][k], kind), getattr(clean[1][k], kind)
            assert all(torch.equal(ours[n], v) for n, v in theirs.items())
    failed = mixed[1][1]
    assert failed.failure is not None
    assert int(failed.buffers["1.num_batches_tracked"]) == failed.step
    assert_resumes_from_every_step(source, [members[0], sick, members[2]], shared, how, tmp_path)


def assert_resumes_from_every_step(source, members, shared, how, folder):
    """Stored after any update or measurement and gone on with: the same rows and the same bits."""
    whole = outcome(source, members, shared, how)
    places = []
    for number, event in enumerate(engine.run(source, members, shared, how)):
        checkpoint.save(event.checkpoint(), folder / str(number))
        places.append(folder / str(number))
    for place in places:
        (stored,) = checkpoint.load(place)
        rows, states = outcome(source, members, shared, how, [stored])
        states |= stored.states() if engine.is_done(stored, shared.steps) else {}
        before = [r for r in whole[0] if r.replica in stored.replicas and r.step <= stored.reached(r.replica)]
        # As text, for in a replica that failed NaN is to be NaN again.
        assert str(sorted([*before, *rows], key=lambda r: (r.replica, r.step))) == str(whole[0]), place
        for k, state in whole[1].items():
            assert states[k].failure == state.failure
            for kind in ("params", "buffers"):
                ours, theirs = getattr(states[k], kind), getattr(state, kind)
                for name, value in theirs.items():
                    torch.testing.assert_close(ours[name], value, rtol=0, atol=0, equal_nan=True)


class Branching(Algorithm):
    """What a user may write without a thought of programs: a branch on the step, in Python."""

    name, minimum_environments, needs_features = "branching", 1, False

    def init(self, params, setting):
        return {}

    def gradients(self, model, params, batch, state, context):
        chosen = Composition(penalties=(VREx(9.0),)) if context.step >= 3 else Composition()
        inner = chosen.init(params, SETTING)
        gradients, _, metrics = chosen.gradients(model, params, batch, inner, context)
        return gradients, state, {"risk": metrics["risk"]}


def test_an_algorithm_that_cannot_be_recorded_runs_as_it_is(monkeypatch):
    one = Branching()
    members = [Replica(k, Seeds.of(7, k), one, 0.01, 0.0) for k in range(3)]
    shared, source = plan(), made(Binary(), 1)
    plain = outcome(source, members, shared, SEQUENTIAL)
    assert_alike(outcome(source, members, shared, STACKED), plain)
    monkeypatch.setattr(step_program, "_WORTH_RECORDING", 1)
    assert outcome(source, members, shared, SEQUENTIAL)[0] == plain[0]


def test_row_blocks_do_not_change_a_stack(monkeypatch):
    shared, source = plan(), made(Binary(), 1)
    whole = outcome(source, replicas("irm"), shared, STACKED)
    monkeypatch.setattr(envariant.training.network, "_BLOCK_ROWS", (7, 29))
    assert_alike(outcome(source, replicas("irm"), shared, STACKED), whole)


def test_members_of_different_structure_train_in_groups_of_their_own():
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


def test_draws_of_different_sizes_cannot_be_stacked_and_the_mend_is_named():
    class Uneven(envariant.EnvironmentSource):
        name = "uneven"

        def sample(self, seed):
            return made(Binary(), 1, seed % 5, sizes=(30 + seed % 7, 20, 10))

    with pytest.raises(EnvariantError) as error:
        envariant.train(Uneven(), "erm", model="linear", steps=3, replicas=4, execution="stacked")
    assert str(error.value) == (
        "execution: these replicas cannot be stacked (environments differ in size from draw to draw); "
        "use sequential"
    )
    found = execution.choose(Auto(), Uneven(), replicas("erm"), plan(steps=600), None)
    assert found.mode == "sequential"
    assert found.reason == "environments differ in size from draw to draw"


def test_a_group_that_turns_out_not_to_lie_side_by_side_trains_its_members_alone():
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


def test_models_that_differ_in_more_than_parameters_are_neither_stacked_nor_share_a_program(monkeypatch):
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.mix = nn.Linear(6, 1), torch.randn(6, 6)

        def forward(self, x):
            return self.last(x @ self.mix)

    source, shared = made(Binary(), 1), plan(lambda shape, outputs: Hidden())
    found = execution.choose(Auto(), source, replicas("erm"), replace(shared, steps=600), None)
    assert "register tensors as buffers" in found.reason
    monkeypatch.setattr(step_program, "_WORTH_RECORDING", 1)
    together = outcome(source, replicas("erm", 3), shared, SEQUENTIAL)
    alone = outcome(source, replicas("erm", 3)[2:], shared, SEQUENTIAL)
    assert [r for r in together[0] if r.replica == 2] == alone[0]


def test_parameters_of_several_types_stay_what_they_are():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 1).double()

        def forward(self, x):
            return self.last(self.first(x).relu().double())

    source, shared = made(Binary(), 1), plan(lambda shape, outputs: Mixed())
    apart = outcome(source, replicas("irm", 3), shared, SEQUENTIAL)
    assert_alike(outcome(source, replicas("irm", 3), shared, STACKED), apart)


def test_dropout_is_run_one_after_another():
    def build():
        return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    source = made(Binary(), 1)
    with pytest.raises(EnvariantError, match="of its own, as dropout does\\); use sequential"):
        envariant.train(source, "erm", model=build, steps=3, replicas=2, execution="stacked")
    result = envariant.train(source, "erm", model=build, steps=1000, replicas=2)
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


def test_the_tally_counts_what_lives_at_one_time():
    def work():
        a = torch.ones(1000)
        b = a + 1
        del a
        c = b.view(10, 100) * 2
        return c.sum()

    assert memory_budget.peak_bytes(work, lambda: torch.zeros(10)) == (8000 + 4, 44)


def test_a_small_budget_makes_smaller_groups_and_a_tiny_one_is_refused():
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
    with pytest.raises(EnvariantError, match="memory: 2 replicas need about .* GB and .* GB are allowed"):
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
    assert few.reason == "30 × 3 steps are too few to gain from stacking"
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


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "linux", "windows"])
@pytest.mark.parametrize("method", ["advance", "__init__"])
def test_stack_is_halved_where_memory_runs_out(error, method, monkeypatch, caplog):
    source, members, shared = made(Binary(), 1), replicas("irm", 7), plan()
    expected = outcome(source, members, shared, Execution("stacked", 2, ""))
    limit_memory(monkeypatch, 2, error, method)
    events = [e for e in engine.run(source, members, shared, STACKED) if isinstance(e, Evaluated)]
    assert [e.replicas for e in events if e.step == 0] == [(0, 1), (2, 3), (4, 5), (6,)]
    assert [e.notes for e in events if e.step == 0] == [
        (
            first := "memory ran out with 7 replicas in one program; continued with 4",
            second := first.replace("7", "x").replace("4", "2").replace("x", "4"),
        ),
        (first, second),
        (first, third := "memory ran out with 3 replicas in one program; continued with 2"),
        (first, third),
    ]
    assert not any(e.notes for e in events if e.step)
    assert first in caplog.text
    rows, states = outcome(source, members, shared, STACKED)
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


def test_one_replica_without_memory_is_an_error_and_other_errors_are_not_hidden(monkeypatch):
    source, members = made(Binary(), 1), replicas("irm", 4)
    with monkeypatch.context() as patch:
        limit_memory(patch, 0, OUT_OF_MEMORY[0], "__init__")
        with pytest.raises(
            EnvariantError, match="memory: replica 0 alone needs more than there is; use a smaller"
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
        ({"execution": "stacked(group=0)"}, "stacked: group must be at least 1; got 0"),
        ({"execution": "stacked(group=2.5)"}, "stacked: group must be a whole number; got 2.5"),
        ({"execution": "sequential(group=2)"}, "unknown setting 'group'"),
        ({"memory": "lots"}, "memory: expected an amount such as 8GB or 512MiB; got 'lots'"),
        ({"memory": "0GB"}, "memory: expected an amount"),
        ({"memory": -1}, "memory: expected an amount"),
        ({"execution": "auto(group=5)"}, "unknown setting 'group'"),
        (
            {"memory": "1KB", "execution": "stacked", "replicas": 2},
            "raise memory, or set execution to sequential",
        ),
    ],
)
def test_wrong_wishes_get_one_clear_error(arguments, message):
    with pytest.raises(EnvariantError) as error:
        envariant.train(**{"data": "colored-digits", "algorithm": "erm", "steps": 1} | arguments)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8GB", 8 * 10**9), ("512 MiB", 2**29), ("1.5kb", 1500), (77, 77), (8e9, 8 * 10**9), (None, None)],
)
def test_amounts_of_memory(text, expected):
    assert memory_budget.parse(text) == expected


def test_a_stack_goes_on_as_a_stack_and_another_wish_is_refused(tmp_path):
    long = {"steps": 20, "replicas": 3, "evaluate_every": 5}
    first = envariant.train("colored-digits", "irm", out=tmp_path, execution="stacked", **long)
    assert first.record.execution.mode == "stacked"
    assert (tmp_path / "checkpoints" / "replicas-000-002.safetensors").exists()
    with pytest.raises(EnvariantError, match="execution stacked, not sequential"):
        envariant.train("colored-digits", "irm", out=tmp_path, execution="sequential", **long)
    assert envariant.TrainingResult.load(tmp_path).finished == (0, 1, 2)


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_a_compiled_program_gives_the_same_numbers_to_rounding():
    pytest.importorskip("torch._inductor")
    shared, source = plan(batch_size=16, steps=4), made(Binary(), 1)
    ours = outcome(source, replicas("irm"), replace(shared, compiled=True), STACKED)
    assert_alike(ours, outcome(source, replicas("irm"), shared, STACKED))
