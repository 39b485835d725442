"""Stacked and sequential execution, with and without recording: the same numbers to rounding."""

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
from envariant.training import checkpoint, engine, execution, step_program
from envariant.training.augmentation import RandomAffine
from envariant.training.engine import Evaluated
from envariant.training.execution import SEQUENTIAL, Auto, Execution
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
    return collected(engine.run(source, members, shared, how, resume))


def collected(events):
    events = [e for e in events if isinstance(e, Evaluated)]
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
def test_stacked_and_sequential_agree_to_rounding(name, problem):
    """Replicas with weights, rates, decays and hyperparameters of their own."""
    task = problem.task
    batch_size = 16 if task.name == "multiclass" else None
    # Adam makes whole steps of an entry whose gradient is nothing but rounding (SelfReg has some).
    optimizer = optimizer_config("sgd" if name == "selfreg" else "adam")
    shared = plan(batch_size=batch_size, optimizer=optimizer, steps=4, evaluate_every=2)
    source = made(task, task.outputs)
    together = outcome(source, replicas(name, 3), shared, STACKED)
    apart = outcome(source, replicas(name, 3), shared, SEQUENTIAL)
    assert_alike(together, apart)
    values = {sum(p.sum().item() for p in s.params.values()) for s in apart[1].values()}
    assert len(values) == 3, "the replicas do differ"


@pytest.mark.parametrize("name", RECIPES)
def test_every_algorithm_resumes_bit_identically(name, tmp_path):
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
def test_images_with_a_data_draw_and_augmentation_per_replica(name, batch_size):
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


# One algorithm of each kind also alone; the others alone under `make verify`.
KINDS = ("erm", "vrex", "and-mask", "groupdro", "eiil", "dann", "erm++", "miro")
RECORDED = [
    pytest.param(
        name, how, id=f"{name}-{label}",
        marks=[pytest.mark.verify] if label == "alone" and name not in KINDS else [],
    )
    for name in RECIPES for label, how in (("alone", SEQUENTIAL), ("stacked", STACKED))
]  # fmt: skip


@pytest.mark.parametrize(("name", "how"), RECORDED)
def test_recorded_program_is_bit_identical_to_the_unrecorded_one(name, how, monkeypatch):
    shared, source = plan(batch_size=16, steps=4, evaluate_every=2), made(Binary(), 1)
    # Alone, every replica records its own program.
    members = replicas(name, 2 if how is SEQUENTIAL else 4)
    plain = outcome(source, members, shared, how)
    monkeypatch.setattr(step_program, "_WORTH_RECORDING", 1)
    used = []
    original = step_program.StepProgram._record
    monkeypatch.setattr(
        step_program.StepProgram,
        "_record",
        lambda self, given: used.append(original(self, given)) or used[-1],
    )
    recorded = outcome(source, members, shared, how)
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


def test_recorded_program_casts_nothing_to_its_own_type(monkeypatch):
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


def test_linear_models_on_shared_rows_need_one_product_per_pass():
    group = replace(step_timing.CASES["linear-irm-x20"], rows=50).stack()
    group.advance()
    with Products() as products:
        group.advance()
    assert products.seen == {"mm"}, "bmm would multiply for each model alone"


def test_cast_to_another_device_stays_as_recorded():
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


def test_algorithm_state_is_stacked_recorded_stored_and_resumed(monkeypatch, tmp_path):
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


def test_algorithm_state_with_changing_keys_is_rejected():
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
def test_diverged_replica_is_frozen_also_after_resumption(how, optimizer, recorded, monkeypatch, tmp_path):
    """At a huge learning rate weights become infinite; the state before that is kept."""
    if recorded:
        monkeypatch.setattr(step_program, "_WORTH_RECORDING", 1)
    source = made(Binary(), 1)
    shared = plan(normed, optimizer=optimizer_config(optimizer), steps=6, evaluate_every=3)
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
    """Resume from a checkpoint after every update and measurement: the same rows and bits."""
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
    """An algorithm with a Python branch on the step, which cannot be recorded."""

    name, minimum_environments, needs_features = "branching", 1, False

    def init(self, params, setting):
        return {}

    def gradients(self, model, params, batch, state, context):
        chosen = Composition(penalties=(VREx(9.0),)) if context.step >= 3 else Composition()
        inner = chosen.init(params, SETTING)
        gradients, _, metrics = chosen.gradients(model, params, batch, inner, context)
        return gradients, state, {"risk": metrics["risk"]}


def test_algorithm_that_cannot_be_recorded_runs_unrecorded(monkeypatch):
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


def test_models_that_differ_in_more_than_parameters_do_not_share_a_program(monkeypatch):
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


def test_parameters_of_several_types_keep_their_types():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 1).double()

        def forward(self, x):
            return self.last(self.first(x).relu().double())

    source, shared = made(Binary(), 1), plan(lambda shape, outputs: Mixed())
    apart = outcome(source, replicas("irm", 3), shared, SEQUENTIAL)
    assert_alike(outcome(source, replicas("irm", 3), shared, STACKED), apart)


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_compiled_program_agrees_to_rounding():
    pytest.importorskip("torch._inductor")
    shared, source = plan(batch_size=16, steps=4), made(Binary(), 1)
    ours = outcome(source, replicas("irm"), replace(shared, compiled=True), STACKED)
    assert_alike(ours, outcome(source, replicas("irm"), shared, STACKED))
