"""The engine against plain loops, against itself, and with invalid options."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import envariant
from algorithms.references import ENROLLED, every_case
from envariant.algorithms import RECIPES, Composition, Penalty
from envariant.core.counter_rng import private_random_numbers
from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.schedules import Constant, Schedule
from envariant.core.tasks import Binary
from envariant.data import colored_digits
from envariant.models import model_config
from envariant.training import engine
from envariant.training.engine import Evaluated
from envariant.training.execution import SEQUENTIAL, Execution
from envariant.training.optimizers import optimizer_config
from envariant.training.replicas import Replica, Seeds
from envariant.training.run_config import RunConfig

QUICK = {"steps": 12, "evaluate_every": 4, "precision": "float32"}


def rows(result, **wanted):
    return [r for r in result.rows if all(getattr(r, k) == v for k, v in wanted.items())]


def sorted_rows(result):
    return sorted(result.rows, key=lambda r: (r.replica, r.step))


def plan(**changes) -> RunConfig:
    return replace(
        RunConfig(
            model=model_config("mlp(hidden=16)").build,
            optimizer=optimizer_config("adam"),
            steps=10,
            batch_size=None,
            evaluate_every=5,
            precision="float32",
            augmentation=None,
            test=None,
            device=torch.device("cpu"),
        ),
        **changes,
    )


def test_irm_equals_a_plain_loop_written_like_the_papers_code():
    """Scalar multiplier, double backward, one pass an environment, torch's own Adam: same numbers."""
    seeds = Seeds.of(0, 0)
    drawn = colored_digits().sample(seeds.data)
    with private_random_numbers(seeds.initialization, torch.device("cpu")):
        model = model_config("mlp(hidden=32)").build(drawn.input_shape, 1)
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for step in range(30):
        risks, penalties = [], []
        for name in ("flip-0.2", "flip-0.1"):
            inputs, targets = drawn[name].rows()
            scale = torch.ones((), requires_grad=True)
            risk = F.binary_cross_entropy_with_logits(model(inputs)[:, 0] * scale, targets)
            (slope,) = torch.autograd.grad(risk, [scale], create_graph=True)
            risks.append(risk)
            penalties.append(slope**2)
        weight = 1.0 if step < 10 else 500.0
        l2 = 1e-3 * sum(p.norm() ** 2 for p in model.parameters())
        loss = sum(risks) / 2 + l2 + weight * sum(penalties) / 2
        loss = loss / weight if weight > 1 else loss
        adam.zero_grad()
        loss.backward()
        adam.step()
        inputs, targets = drawn["flip-0.9"].rows()
        losses.append(F.binary_cross_entropy_with_logits(model(inputs)[:, 0], targets).item())

    ours = envariant.train(
        colored_digits(),
        "irm(coefficient=step(1, 500, at=10), l2=1e-3, normalize_loss=true)",
        model="mlp(hidden=32)",
        learning_rate=3e-3,
        steps=30,
        evaluate_every=1,
        precision="float32",
    )
    measured = [r.value for r in rows(ours, environment="flip-0.9", metric="loss")][1:]
    assert measured == pytest.approx(losses, rel=2e-4)


def test_same_call_is_bit_identical_and_another_seed_differs():
    first, second, other = (
        envariant.train("colored-digits", "irm", seed=seed, replicas=2, **QUICK) for seed in (3, 3, 4)
    )
    assert first.rows == second.rows
    assert first.rows != other.rows
    assert all(
        torch.equal(first.checkpoints[k].params[n], v)
        for k in (0, 1)
        for n, v in second.checkpoints[k].params.items()
    )


def test_replica_does_not_depend_on_other_replicas():
    alone = envariant.train("colored-digits", "vrex", replicas=1, batch_size=32, **QUICK)
    together = envariant.train("colored-digits", "vrex", replicas=3, batch_size=32, **QUICK)
    assert rows(together, replica=0) == alone.rows, "one after another, bit for bit"
    stacked = envariant.train(
        "colored-digits", "vrex", replicas=3, batch_size=32, execution="stacked", **QUICK
    )
    assert stacked.record.execution.group == 3
    for ours, theirs in zip(sorted_rows(stacked), sorted_rows(together), strict=True):
        assert replace(ours, value=0.0) == replace(theirs, value=0.0)
        assert ours.value == pytest.approx(theirs.value, rel=1e-4)
    assert {r.value for r in rows(together, replica=1)} != {r.value for r in rows(together, replica=2)}


def test_algorithms_are_compared_on_the_same_data_and_initial_weights():
    erm, irm = (
        envariant.train("colored-digits", a, replicas=2, model="mlp(hidden=8)", **QUICK)
        for a in ("erm", "irm")
    )
    assert erm.record.seeds == irm.record.seeds
    assert erm.record.fingerprints == irm.record.fingerprints
    assert rows(erm, step=0) == rows(irm, step=0)
    assert rows(erm, step=12, metric="loss") != rows(irm, step=12, metric="loss")


def test_training_does_not_change_global_random_state():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    envariant.train("colored-digits", "erm", batch_size=16, augmentation="affine", **QUICK)
    assert torch.equal(torch.get_rng_state(), before)


def test_diverged_replica_is_reported_and_others_stay_bit_identical():
    erm = Composition()
    good = [Replica(k, Seeds.of(0, k), erm, 0.01, 0.0) for k in (0, 2)]
    bad = Replica(1, Seeds.of(0, 1), erm, 1e30, 0.0)
    shared = plan(optimizer=optimizer_config("sgd"))

    def outcome(replicas, execution):
        events = engine.run(colored_digits(), replicas, shared, execution)
        measured = [e for e in events if isinstance(e, Evaluated)]
        states = {k: s for e in measured if e.finished for k, s in e.checkpoint().states().items()}
        return sorted((r for e in measured for r in e.rows), key=lambda r: r.replica), states

    stacked = Execution("stacked", 3, "")
    for execution in (SEQUENTIAL, stacked):
        harmless = Replica(1, bad.seeds, erm, 0.01, 0.0)
        clean, _ = outcome([good[0], harmless, good[1]], execution)
        mixed, last = outcome([good[0], bad, good[1]], execution)
        assert [r for r in mixed if r.replica != 1] == [r for r in clean if r.replica != 1]
        assert 0 < last[1].step < shared.steps
        assert f"infinite or NaN at step {last[1].step}" in last[1].failure
        assert "learning rate" in last[1].failure
        assert last[0].failure is None
        assert max(r.step for r in mixed if r.replica == 1) == last[1].step


def test_diverged_replicas_are_reported_and_not_in_the_summary():
    result = envariant.train(
        "colored-digits", "erm", optimizer="sgd", learning_rate=1e12, replicas=2, **QUICK
    )
    assert set(result.failures) == {0, 1}
    assert result.finished == ()
    assert result.summary().loc["flip-0.9", "replicas"] == 0
    assert math.isnan(result.to_dict()["worst"]["accuracy"]["mean"])


class PlainNet(nn.Module):
    """No featurizer, no head; dropout and batch norm, as users have them."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2 * 8 * 8, 16)
        self.norm = nn.BatchNorm1d(16)
        self.drop = nn.Dropout(0.3)
        self.last = nn.Linear(16, 1)

    def forward(self, x):
        return self.last(self.drop(torch.relu(self.norm(self.first(x.flatten(1))))))


@pytest.mark.parametrize("algorithm", ["irm", "and-mask"])
def test_any_module_trains_and_its_running_statistics_follow(algorithm):
    first, second = (
        envariant.train("colored-digits", algorithm, model=PlainNet, replicas=2, **QUICK) for _ in range(2)
    )
    assert first.rows == second.rows, "dropout draws from the replica's own numbers"
    buffers = first.checkpoints[0].buffers
    assert int(buffers["norm.num_batches_tracked"]) == 12
    assert not torch.equal(buffers["norm.running_mean"], torch.zeros(16))
    inits = [rows(first, step=0, replica=k, metric="loss") for k in (0, 1)]
    assert [r.value for r in inits[0]] != [r.value for r in inits[1]]


def test_running_statistics_match_pytorchs_own_training():
    """Batch norm trained by the engine and by a plain loop: the same statistics.

    No bias before the norm: its gradient is rounding noise, which Adam would blow up to full steps.
    """
    seeds = Seeds.of(0, 0)
    drawn = colored_digits().sample(seeds.data)
    module = nn.Sequential(
        nn.Flatten(), nn.Linear(128, 4, bias=False), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1)
    )
    result = envariant.train(drawn, "erm", model=module, steps=5, learning_rate=0.01, precision="float32")
    inputs = torch.cat([drawn[n].inputs for n in ("flip-0.2", "flip-0.1")])
    targets = torch.cat([drawn[n].targets for n in ("flip-0.2", "flip-0.1")])
    adam = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(5):
        adam.zero_grad()
        F.binary_cross_entropy_with_logits(module(inputs)[:, 0], targets).backward()
        adam.step()
    for name, buffer in module.named_buffers():
        torch.testing.assert_close(result.checkpoints[0].buffers[name], buffer, rtol=1e-4, atol=1e-5)


def test_every_replica_starts_from_a_module_instance_without_changing_it():
    module = nn.Sequential(nn.Flatten(), nn.Linear(128, 1))
    before = module[1].weight.detach().clone()
    drawn = colored_digits().sample(0)
    result = envariant.train(drawn, "erm", model=module, replicas=2, **QUICK)
    assert [r.value for r in rows(result, step=0, replica=0)] == [
        r.value for r in rows(result, step=0, replica=1)
    ]
    assert torch.equal(module[1].weight, before)


def uneven(task, outputs) -> EnvironmentSet:
    generator = torch.Generator().manual_seed(0)
    weights, made = torch.randn(3, outputs, generator=generator), []
    for name, n in (("a", 40), ("b", 95), ("c", 20)):
        inputs = torch.randn(n, 3, generator=generator)
        score = inputs @ weights
        targets = score[:, 0] if outputs == 1 else score.argmax(dim=1)
        targets = (targets > 0).float() if isinstance(task, Binary) else targets
        made.append(Environment(name, inputs, targets))
    return EnvironmentSet("made", tuple(made), task, test=("c",))


@every_case()
def test_every_algorithm_learns_on_every_task_with_uneven_environments(name, problem):
    algorithm, row, task = name, ENROLLED[name], problem.task
    settings = {**row.settings, **(dict.fromkeys(row.zero, 0.1) if row.at_zero else {})}
    outputs = task.outputs
    result = envariant.train(
        uneven(task, outputs), algorithm, hyperparameters=settings, model="mlp(hidden=16)",
        steps=15, learning_rate=0.1, batch_size="full", evaluate_every=15,
    )  # fmt: skip
    for name in ("a", "b"):
        start, end = (r.value for r in rows(result, environment=name, metric="loss"))
        assert end < 0.8 * start
    assert result.record.sizes == {"a": 40, "b": 95, "c": 20}


@pytest.mark.parametrize("name", RECIPES)
def test_every_algorithm_improves_its_own_objective_on_colored_digits(name):
    """The risk and what it adds to it, as it measures them itself, at the first steps and at the last."""
    row = ENROLLED[name]
    # The measured objective has no l2 term.
    settings = {**row.settings, **(dict.fromkeys(row.zero, 0.1) if row.at_zero else {}), "l2": 0.0}
    result = envariant.train(
        "colored-digits", name, hyperparameters=settings, model="mlp(hidden=16)",
        steps=24, learning_rate=0.02, batch_size=128, evaluate_every=1,
    )  # fmt: skip
    steps = [{r.metric: r.value for r in rows(result, role="batch", step=k)} for k in range(1, 25)]
    objective = [
        step["risk"]
        + sum(
            step[f"{name} coefficient"] * step[f"{name} penalty"]
            for name in (key.removesuffix(" penalty") for key in step if key.endswith(" penalty"))
        )
        for step in steps
    ]
    assert sum(objective[-5:]) / 5 < objective[0] - 0.005


def test_any_environment_can_be_held_out():
    result = envariant.train("colored-digits", "erm", test_environments=["flip-0.1"], **QUICK)
    assert result.record.roles == {"flip-0.2": "train", "flip-0.1": "test", "flip-0.9": "train"}
    assert {r.environment for r in rows(result, role="test")} == {"flip-0.1"}


def test_bfloat16_stays_near_float32():
    exact, fast = (
        envariant.train("colored-digits", "irm", model="mlp(hidden=128)", steps=40, precision=p)
        for p in ("float32", "bfloat16")
    )
    assert fast.record.spec.precision == "bfloat16"
    assert fast.checkpoints[0].params["head.weight"].dtype == torch.float32
    for name in exact.record.roles:
        a, b = (r.final(name, "accuracy").mean for r in (exact, fast))
        assert a == pytest.approx(b, abs=0.04)


def test_evaluation_covers_whole_environments_at_the_requested_steps():
    result = envariant.train("colored-digits", "erm", steps=10, evaluate_every=4)
    assert sorted({r.step for r in result.rows}) == [0, 4, 8, 10]
    drawn = colored_digits().sample(result.record.seeds[0].data)
    module = result.model(0)
    inputs, targets = drawn["flip-0.9"].rows()
    accuracy = ((module(inputs)[:, 0] > 0) == (targets > 0.5)).double().mean()
    assert result.final("flip-0.9", "accuracy").values == (pytest.approx(float(accuracy)),)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"algorithm": "imr"}, "did you mean 'irm'"),
        ({"algorithm": "fish", "optimizer": "sgd"}, "fish: has a built-in optimizer, which uses the run's learning rate"),
        ({"algorithm": "dann", "weight_decay": 0.1}, "remove optimizer and weight_decay"),
        ({"data": "colored-digts"}, "did you mean 'colored-digits'"),
        ({"algorithm": "irm", "test_environments": ["flip-0.1", "flip-0.9"]}, "irm: needs at least 2 training"),
        ({"test_environments": ["flip-0.8"]}, "unknown environment 'flip-0.8'"),
        ({"test_environments": ["flip-0.2", "flip-0.1", "flip-0.9"]}, "none is left to train on"),
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"replicas": 0}, "replicas must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"learning_rate": -1.0}, "learning_rate must be a finite number above 0; got -1.0"),
        ({"precision": "half"}, "precision must be auto, float32, bfloat16 or tf32"),
        ({"precision": "tf32", "device": "cpu"}, "tf32 needs a CUDA device"),
        ({"optimizer": "adm"}, "did you mean 'adam'"),
        ({"model": "lenett"}, "did you mean 'lenet'"),
        ({"model": "lenet"}, "requires square, channels-first images"),
        ({"model": lambda: nn.Linear(3, 1)}, "model Linear: cannot take inputs of shape (2, 8, 8)"),
        ({"augmentation": "afine"}, "did you mean 'affine'"),
        ({"algorithm": "and-mask(threshold=1.7)"}, "AndMask: threshold must be in [0, 1], got 1.7"),
        ({"algorithm": "irm(coeficient=3)"}, "did you mean 'coefficient'"),
    ],
)  # fmt: skip
def test_invalid_option_gets_one_clear_error(arguments, message):
    call = {"data": "colored-digits", "algorithm": "erm", "steps": 1} | arguments
    with pytest.raises(EnvariantError) as error:
        envariant.train(**call)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_trained_model_is_returned_unless_a_stored_run_cannot_build_it(tmp_path):
    result = envariant.train("colored-digits", "erm", steps=2)
    inputs = torch.rand(5, 2, 8, 8)
    module = result.model(0)
    assert module(inputs).shape == (5, 1)
    assert not module.training
    with pytest.raises(EnvariantError, match="replica 3: is not in this run"):
        result.model(3)
    own = envariant.train("colored-digits", "erm", model=PlainNet, steps=2, out=tmp_path)
    again = PlainNet()
    again.load_state_dict({**own.checkpoints[0].params, **own.checkpoints[0].buffers})
    assert torch.equal(own.model(0)(inputs), again.eval()(inputs))
    with pytest.raises(EnvariantError, match=r"pass your own module, as in result.model"):
        envariant.TrainingResult.load(tmp_path).model(0)


class SharedWeights(torch.nn.Module):
    """Network with a lazy layer that it uses twice under two names."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(3, 3)
        self.second, self.head = self.first, torch.nn.LazyLinear(1)

    def forward(self, inputs):
        return self.head(self.second(self.first(inputs)))


def test_module_with_shared_weights_and_lazy_layers_is_returned_also_from_disk(tmp_path):
    inputs = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    data = EnvironmentSet.from_arrays(inputs, (inputs[:, 0] > 0).int(), ["a", "b"] * 6)
    result = envariant.train(data, model=SharedWeights, steps=2, out=tmp_path)
    ours, stored = result.model(), envariant.TrainingResult.load(tmp_path)
    assert ours.second.weight is ours.first.weight
    assert torch.equal(ours.first.weight, result.checkpoints[0].params["first.weight"])
    for module in (SharedWeights, lambda: SharedWeights(), SharedWeights()):
        assert torch.equal(stored.model(0, module)(inputs), ours(inputs))
    with pytest.raises(EnvariantError, match="model must be .* a module or a function .* got 3"):
        stored.model(0, 3)


def test_test_flip_may_repeat_a_training_flip():
    source = colored_digits(test_flips=(0.9, 0.1))
    assert source.sample(0).names == ("flip-0.2", "flip-0.1", "flip-0.9", "test-flip-0.1")


def test_returned_model_lacks_auxiliary_networks():
    result = envariant.train("colored-digits", "selfreg", model="mlp(hidden=8)", **QUICK)
    held = result.checkpoints[0].params
    assert any(name.startswith("selfreg-projection.") for name in held)
    trained = result.model().state_dict()
    assert trained
    assert all(torch.equal(value, held[name]) for name, value in trained.items())


def test_auxiliary_networks_train_and_do_not_change_initial_weights_of_the_model():
    first = {}
    for name in ("erm", "selfreg"):
        result = envariant.train(
            "colored-digits", name, model="mlp(hidden=8)", learning_rate=1e-12, steps=1, precision="float32"
        )
        first[name] = result.checkpoints[0].params
    assert all(torch.allclose(value, first["selfreg"][name]) for name, value in first["erm"].items())
    moved = envariant.train("colored-digits", "selfreg", model="mlp(hidden=8)", **QUICK).checkpoints[0].params
    own = [name for name in moved if name.startswith("selfreg-projection.")]
    assert all(not torch.equal(moved[name], first["selfreg"][name]) for name in own)


@dataclass(frozen=True)
class OwnNetwork(Penalty):
    """A part of the user's own, with a network and a draw."""

    network: nn.Module
    called: str = "mine"
    name, paper, needs_features = "own", "none", True
    coefficient: Schedule = Constant(1.0)

    def auxiliary_networks(self, setting):
        return {self.called: self.network}

    def penalty(self, predicted, state):
        drawn = predicted.context.uniform(like=predicted.losses)
        return drawn * predicted.auxiliary_networks[self.called](predicted.features).mean(), state


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            OwnNetwork(nn.Linear(8, 1), "head"),
            "its network 'head' must not contain buffers .such as running statistics. or frozen parameters, and its name",
        ),
        (OwnNetwork(nn.Sequential(nn.Linear(8, 1), nn.BatchNorm1d(1))), "must not contain buffers"),
        (OwnNetwork(nn.Linear(8, 1).requires_grad_(False)), "or frozen parameters"),
        (
            OwnNetwork(nn.Linear(8, 1)),
            "draws random numbers but is not declared stochastic; set stochastic = True",
        ),
    ],
)
def test_invalid_part_is_rejected(part, message):
    with pytest.raises(EnvariantError, match=message):
        envariant.train("colored-digits", Composition(penalties=(part,)), model="mlp(hidden=8)", **QUICK)
