"""Pretraining by ERM and rich features, and models that algorithms change."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import envariant
from envariant.algorithms import Composition, PooledMean, WorstCaseRisk
from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Binary, Multiclass, Regression
from envariant.data import colored_digits
from envariant.models import model_config
from envariant.training.optimizers import optimizer_config
from envariant.training.pretraining import JTT, RFC, Fitting, balanced_rows, predictions
from envariant.training.replicas import Replica, Seeds
from envariant.training.resolution import resolve
from envariant.training.run_config import RunConfig, network
from envariant.training.run_spec import RunSpec
from envariant.training.store import recorder
from envariant.training.store.recorder import Recorder
from envariant.training.stored_start import FromRun

SHORT = {"model": "mlp(hidden=16)", "precision": "float32", "batch_size": "full", "learning_rate": 0.01}
QUICK_RFC = "rfc(first_steps=4, steps=6, synthesis_steps=6)"


def run(algorithm="vrex(5)", steps=6, **changes):
    return envariant.train(
        "colored-digits", algorithm, **{**SHORT, "steps": steps, "evaluate_every": 1, **changes}
    )


def measured(result, step):
    return {(r.environment, r.metric): r.value for r in result.rows if r.step == step and r.role != "batch"}


def weights(result, replica=0):
    return result.checkpoints[replica].params


def test_pretraining_by_erm_equals_training_by_erm_first():
    erm = run("erm(l2=0)", steps=7)
    started = run("vrex(5)", steps=1, init="erm(steps=7, l2=0)")
    assert measured(started, 0) == measured(erm, 7)
    assert measured(started, 0) != measured(run("vrex(5)", steps=1), 0)


@pytest.mark.parametrize("rate", [0.01, {"featurizer": 0.3, "head": 0.1}])
def test_pretraining_has_its_own_batch_size_and_learning_rate(rate):
    erm = run("erm(l2=0)", steps=7, batch_size=32, learning_rate=0.05)
    init = "erm(steps=7, l2=0, batch_size=32, learning_rate=0.05)"
    started = run("vrex(5)", steps=1, init=init, learning_rate=rate)
    assert measured(started, 0) == measured(erm, 7)


def test_a_run_starts_from_the_stored_replica_with_the_same_seeds(tmp_path):
    erm = run("erm(l2=0)", steps=3, replicas=3, seed=4, out=tmp_path / "erm")
    start = FromRun(str(tmp_path / "erm"))
    two = run("vrex(5)", steps=1, replicas=2, seed=4, init=start)
    for k in range(2):
        first = [r.value for r in two.rows if r.replica == k and r.step == 0 and r.role != "batch"]
        last = [r.value for r in erm.rows if r.replica == k and r.step == 3 and r.role != "batch"]
        assert first == last
    named = run("vrex(5)", steps=1, seed=4, replicas=2, init=f"run({str(tmp_path / 'erm')!r})")
    assert measured(named, 1) == measured(two, 1)
    with pytest.raises(
        EnvariantError, match="no replica with the same seeds; use seed=4, and at most 3 repl"
    ):
        run("vrex(5)", steps=1, replicas=1, seed=5, init=start)


class Noted:
    """The real way to train a model, and a note of what it was asked for."""

    def __init__(self, fit):
        self.fit, self.calls, self.fitted = fit, [], []

    @property
    def batch_size(self):
        return self.fit.batch_size

    def but(self, **options):
        self.fit = self.fit.but(**options)
        return self

    def __call__(self, environments, algorithm, steps):
        self.calls.append((environments, algorithm, steps))
        self.fitted.append(self.fit(environments, algorithm, steps))
        return self.fitted[-1]


PLAN = RunConfig(
    model_config("mlp(hidden=16)").build,
    optimizer_config("adam"),
    5,
    None,
    5,
    "float32",
    None,
    None,
    torch.device("cpu"),
)


def training_rows():
    drawn = colored_digits().sample(0)
    return EnvironmentSet("rows", drawn.environments[:2], Binary())


def easy_rows():
    inputs = torch.tensor([[-1.0], [1.0]]).repeat(20, 1)
    return EnvironmentSet("easy", (Environment("all", inputs, (inputs[:, 0] > 0).float()),), Binary())


def test_rich_features_equal_those_of_a_plain_loop_like_the_release():
    member = Replica(0, Seeds.of(1, 0), Composition(), 0.01, 0.0)
    fit, own = Noted(Fitting(member, PLAN)), training_rows()
    found = RFC(first_steps=20, steps=11, synthesis_steps=12, l2=0.002).weights(own, fit, 5)
    (first, erm, n), (groups, worst, also), (answers, _, last) = fit.calls
    assert (n, also, last) == (20, 11, 12)
    assert erm == Composition(PooledMean(), l2=0.002)
    assert worst == Composition(WorstCaseRisk(), l2=0.002)
    assert [e.name for e in first.environments] == [e.name for e in own.environments]
    assert [e.name for e in groups.environments] == ["right 1", "wrong 1"]

    inputs, targets = (torch.cat(p) for p in zip(*(e.rows() for e in own.environments), strict=True))
    right = [((f.logits(inputs) > 0).float() == targets) for f in fit.fitted[:2]]
    assert torch.equal(groups["right 1"].rows()[0], inputs[right[0]])
    assert torch.equal(groups["wrong 1"].rows()[1], targets[~right[0]])
    # What is imitated: answers, true or not, on rows half of which the two models see alike.
    assert [e.name for e in answers.environments] == ["answers 1", "answers 2"]
    one, two = (e.rows() for e in answers.environments)
    assert torch.equal(one[0], two[0])
    assert float((one[1] == two[1]).double().mean()) == pytest.approx(0.5, abs=1 / len(inputs))
    said = fit.fitted[0].logits(one[0])
    assert torch.equal(one[1], predictions(said, Binary()))

    trained = fit.fitted[2].weights
    for key in ("weight", "bias"):
        heads = [trained[f"imitating-head-{k}.{key}"] for k in (0, 1)]
        torch.testing.assert_close(found[f"head.{key}"], sum(heads) / 2)
    assert all(torch.equal(found[k], v) for k, v in trained.items() if k.startswith("featurizer"))
    assert not any(key.startswith("imitating") for key in found)


def test_jtt_trains_anew_on_the_errors_of_a_short_first_training():
    member = Replica(0, Seeds.of(1, 0), Composition(), 0.01, 0.0)
    fit, own = Noted(Fitting(member, PLAN)), training_rows()
    found = JTT(first_steps=20, steps=11, l2=0.002, batch_size=64, learning_rate=0.02).weights(own, fit, 5)
    (first, _, n), (groups, algorithm, also) = fit.calls
    assert (n, also, algorithm) == (20, 11, Composition(l2=0.002))
    assert [e.name for e in groups.environments] == ["right 1", "wrong 1"]
    inputs, targets = (torch.cat(p) for p in zip(*(e.rows() for e in first.environments), strict=True))
    wrong = (fit.fitted[0].logits(inputs) > 0).float() != targets
    assert torch.equal(groups["wrong 1"].rows()[0], inputs[wrong])
    # The second training repeats from the initial weights, with the settings of the pretraining.
    alone = Fitting(replace(member, learning_rate=0.02), replace(PLAN, batch_size=64))
    again = alone(groups, algorithm, 11).weights
    assert found.keys() == again.keys()
    assert all(torch.equal(found[name], again[name]) for name in found)
    with pytest.raises(EnvariantError, match="predicts all rows correctly, so there are no errors"):
        JTT(first_steps=300).weights(easy_rows(), Fitting(replace(member, learning_rate=0.1), PLAN), 5)


def test_in_minibatches_each_head_imitates_the_answers_for_its_own_rows():
    member = Replica(0, Seeds.of(1, 0), Composition(), 0.01, 0.0)
    fit, own = Noted(Fitting(member, PLAN)), training_rows()
    RFC(first_steps=20, steps=300, synthesis_steps=300, l2=0.0, batch_size=64).weights(own, fit, 5)
    answers, weights = fit.calls[2][0], fit.fitted[2].weights
    # Neither model gives the same answer to all rows, so wrong pairs of rows and answers would be noticed.
    assert all(0.3 < float(e.targets.mean()) < 0.7 for e in answers.environments)
    for k, environment in enumerate(answers.environments):
        features, said = environment.rows()
        features = features.flatten(1)
        for layer in (1, 3):
            weight, bias = weights[f"featurizer.{layer}.weight"], weights[f"featurizer.{layer}.bias"]
            features = torch.relu(features @ weight.T + bias)
        head = f"imitating-head-{k}"
        logits = features @ weights[f"{head}.weight"][0] + weights[f"{head}.bias"]
        assert float(((logits > 0).float() == said).double().mean()) > 0.8


def test_second_round_finds_features_that_the_first_misses():
    """One column is right more often than another: ERM follows it, and the next model has to use the other."""
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(4000, generator=generator) < 0.5).float()
    columns = [
        torch.where(torch.rand(4000, generator=generator) < share, targets, 1 - targets) * 2 - 1
        for share in (0.95, 0.75)
    ]
    inputs = torch.stack([columns[0] * 3, columns[1]], dim=1)
    own = EnvironmentSet("two", (Environment("all", inputs, targets),), Binary())
    member = Replica(0, Seeds.of(1, 0), Composition(), 0.03, 0.0)
    fit = Noted(Fitting(member, PLAN))
    RFC(first_steps=40, steps=150, synthesis_steps=5).weights(own, fit, 5)
    easy, other = (predictions(f.logits(inputs), Binary()) for f in fit.fitted[:2])
    follows = [[float((said == (c > 0)).double().mean()) for c in columns] for said in (easy, other)]
    assert follows[0][0] > 0.99
    assert follows[1][1] > 0.99


@pytest.mark.parametrize("init", [QUICK_RFC, "erm(steps=3)"])
def test_with_frozen_features_only_the_head_trains(init):
    early = weights(run(steps=1, init=init, freeze="features"))
    late = weights(run(steps=6, init=init, freeze="features"))
    free = weights(run(steps=6, init=init))
    features = [name for name in free if name.startswith("featurizer")]
    assert not any(torch.equal(free[name], weights(run(steps=1, init=init))[name]) for name in features)
    for name in features:
        # What does not move is the start's, and no parameter of this run.
        assert (name in early) == (name in late)
        if name in early:
            assert torch.equal(early[name], late[name])
    assert not torch.equal(early["head.weight"], late["head.weight"])


@pytest.mark.parametrize("freeze", [None, "features"])
@pytest.mark.parametrize("execution", ["sequential", "stacked"])
def test_pretraining_is_repeated_bit_identically_on_resumption(tmp_path, monkeypatch, execution, freeze):
    how = {"init": QUICK_RFC, "freeze": freeze, "replicas": 2, "execution": execution}
    whole = run(**how)

    class Stop(Exception):
        pass

    stored, calls = Recorder.add, []

    def add(self, event, *arguments):
        stored(self, event, *arguments)
        calls.append(event)
        if len(calls) == 5:
            raise Stop

    monkeypatch.setattr(recorder, "CHECKPOINT_INTERVAL_S", 0.0)
    monkeypatch.setattr(Recorder, "add", add)
    with pytest.raises(Stop):
        run(out=tmp_path, **how)
    resumed = run(out=tmp_path, **how)
    assert sorted(resumed.rows, key=str) == sorted(whole.rows, key=str)
    for k in (0, 1):
        assert all(torch.equal(weights(resumed, k)[name], v) for name, v in weights(whole, k).items())
    assert not torch.equal(weights(whole, 0)["head.weight"], weights(whole, 1)["head.weight"])


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40), st.integers(0, 5))
def test_half_of_the_drawn_rows_are_those_on_which_all_models_agree(pairs, seed):
    right = torch.tensor(pairs).T
    found = balanced_rows(right, torch.Generator().manual_seed(seed))
    alike = right[0] == right[1]
    assert len(found) == len(pairs)
    kinds = alike[found].double().mean()
    if bool(alike.any()) and not bool(alike.all()):
        assert int(alike[found].sum()) == len(pairs) // 2
    else:
        assert float(kinds) == float(alike.all())


@given(st.integers(1, 5000), st.integers(1, 7), st.sampled_from([1, 3, 256]))
def test_rows_that_are_seen_together_stay_in_one_block(rows, replicas, together):
    net, _ = network(training_rows(), Replica(0, Seeds.of(0, 0), Composition(), 0.1, 0.0), PLAN)
    net.together, net._block = together, 700
    sizes = net.blocks(rows, replicas)
    assert sum(sizes) == rows
    assert min(sizes) > 0
    assert max(sizes) <= net.rows_of_a_block(replicas)
    assert all(size % together == 0 for size in sizes[:-1])


@pytest.mark.parametrize("name", ["mtl", "arm", "urm", "adrmx(depth=2)", "erm++(head_steps=1)"])
def test_returned_model_is_the_measured_one(name):
    """Those that change the model, or predict with other weights than they train."""
    result = run(name, steps=5, evaluate_every=5, seed=2)
    drawn = colored_digits().sample(Seeds.of(2, 0).data)
    inputs, targets = drawn["flip-0.9"].rows()
    model = result.model(0)
    with torch.no_grad():
        said = model(inputs)[:, 0]
    accuracy = float(((said > 0).float() == targets).double().mean())
    assert accuracy == pytest.approx(measured(result, 5)["flip-0.9", "accuracy"], abs=1e-3)


class Real(envariant.EnvironmentSource):
    """Real targets."""

    name = "real"

    def sample(self, seed):
        generator = torch.Generator().manual_seed(seed)
        rows = (
            Environment(n, torch.randn(9, 3, generator=generator), torch.randn(9, generator=generator))
            for n in "abc"
        )
        return EnvironmentSet("real", tuple(rows), Regression(), test=("c",))


class Bent(nn.Module):
    """A model whose head is more than a linear layer."""

    def __init__(self):
        super().__init__()
        self.featurizer = nn.Sequential(nn.Flatten(), nn.Linear(128, 4))
        self.head = nn.Sequential(nn.Linear(4, 1), nn.Tanh())

    def forward(self, inputs):
        return self.head(self.featurizer(inputs))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init": "rcf"}, "unknown init 'rcf'; did you mean 'rfc'?"),
        ({"init": "rfc(rounds=0)"}, "rfc: rounds must be at least 1, got 0"),
        ({"init": "erm(step=3)"}, "did you mean 'steps'?"),
        ({"freeze": "features"}, "needs pretrained features: set init as well"),
        ({"init": "rfc", "freeze": "feature"}, "freeze must be features, batch-norm or features"),
        ({"init": QUICK_RFC, "data": Real(), "model": "linear"}, "rfc: needs a classification task"),
        ({"init": QUICK_RFC, "model": Bent}, "the model's head must be one linear layer"),
    ],
)
def test_invalid_pretraining_is_rejected(changes, message):
    arguments = {"data": "colored-digits", "algorithm": "erm", **SHORT, "steps": 2, **changes}
    with pytest.raises(EnvariantError) as error:
        envariant.train(**arguments)
    assert message in str(error.value)


def test_rich_features_of_multiclass_data():
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(60, 6, generator=generator)
    own = EnvironmentSet("m", (Environment("a", inputs, inputs[:, :3].argmax(dim=1)),), Multiclass(3))
    fit = Fitting(Replica(0, Seeds.of(1, 0), Composition(), 0.01, 0.0), PLAN)
    found = RFC(rounds=3, first_steps=3, steps=3, synthesis_steps=3).weights(own, fit, 5)
    assert found["head.weight"].shape == (3, 16)


def test_a_stored_start_is_identified_by_its_content_and_not_by_its_folder(tmp_path):
    quick = {"model": "mlp(hidden=2)", "evaluate_every": 1}

    def identity(folder, **changes):
        options = {
            **quick,
            "algorithm": "vrex",
            "init": f"run({str(tmp_path / folder)!r})",
            "steps": 2,
            **changes,
        }
        return resolve(RunSpec(data="colored-digits", **options)).identity

    envariant.train("colored-digits", "erm", steps=1, out=tmp_path / "first", **quick)
    before = identity("first")
    (tmp_path / "first").rename(tmp_path / "moved")
    assert identity("moved") == before
    assert identity("moved", learning_rate=0.5) != before
    envariant.train("colored-digits", "erm", steps=2, out=tmp_path / "first", **quick)
    assert identity("first") != before, "trained again, with other weights"
