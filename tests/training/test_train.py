"""`train`: own objects, schedules, remarks, `changed`, predictors and results in process and loaded."""

import inspect
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import envariant
from envariant import TrainingResult
from envariant.algorithms import Penalty, VREx
from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.errors import EnvariantError, EnvariantWarning
from envariant.core.schedules import Constant, Schedule, schedule
from envariant.core.tasks import Binary
from envariant.data import colored_digits
from envariant.reporting import published_figures
from envariant.training.optimizers import SGD

QUICK = {"model": "linear", "steps": 5, "evaluate_every": 5, "precision": "float32"}


def random_environments() -> EnvironmentSet:
    generator = torch.Generator().manual_seed(0)
    parts = tuple(
        Environment(
            name, torch.randn(8, 2, generator=generator), (torch.rand(8, generator=generator) > 0.5).float()
        )
        for name in "abc"
    )
    return EnvironmentSet("mine", parts, Binary(), test=("c",))


@dataclass(frozen=True)
class OwnPenalty(Penalty):
    """Variance of the risks."""

    name, paper = "own", "none"
    coefficient: Schedule = Constant(1.0)

    def penalty(self, outputs, state):
        return outputs.risks.var(correction=0), state


def own_network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))


def test_own_penalty_equals_the_library_penalty_of_the_same_formula():
    own = envariant.train("colored-digits", OwnPenalty(Constant(3.0)), **QUICK)
    library = envariant.train("colored-digits", VREx(3.0), **QUICK)
    theirs = [row.value for row in library.rows if row.metric == "loss"]
    assert [row.value for row in own.rows if row.metric == "loss"] == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, SGD(), "sgd"])
def test_optimizer_class_object_and_name_give_the_same_numbers(optimizer):
    result = envariant.train("colored-digits", "erm", optimizer=optimizer, learning_rate=0.1, **QUICK)
    reference = envariant.train("colored-digits", "erm", optimizer="sgd", learning_rate=0.1, **QUICK)
    assert [r.value for r in result.rows] == pytest.approx([r.value for r in reference.rows], rel=1e-5)


def test_adam_class_trains():
    result = envariant.train("colored-digits", "erm", optimizer=torch.optim.Adam, **QUICK)
    assert result.finished == (0,)
    assert result.record.spec.optimizer == "Adam"


def test_composition_needs_no_blanks():
    spaced = envariant.train("colored-digits", "vrex + and-mask", **QUICK)
    joined = envariant.train("colored-digits", "vrex+and-mask", **QUICK)
    assert spaced.rows == joined.rows
    assert spaced.record.identity == joined.record.identity


def test_one_test_environment_may_be_a_plain_name():
    one = envariant.train("colored-digits", "erm", test_environments="flip-0.1", **QUICK)
    listed = envariant.train("colored-digits", "erm", test_environments=["flip-0.1"], **QUICK)
    assert one.rows == listed.rows
    assert one.record.test_environments == ("flip-0.1",)
    assert envariant.train("colored-digits", "erm", n_seeds=2, **QUICK).finished == (0, 1)


@pytest.mark.parametrize(
    ("relative", "absolute"),
    [("step(1, 1e4, at=40%)", "step(1, 1e4, at=2)"), ("linear(0, 5, until=60%)", "linear(0, 5, until=3)")],
)
def test_relative_switch_point_is_bit_identical_to_the_absolute_one(relative, absolute):
    results = [
        envariant.train("colored-digits", "irm", hyperparameters={"coefficient": text}, **QUICK)
        for text in (relative, absolute)
    ]
    assert results[0].rows == results[1].rows
    assert results[0].record.spec.hyperparameters["coefficient"] == str(schedule(relative))


def test_learning_rate_schedule_equals_a_plain_loop():
    data = random_environments()
    torch.manual_seed(0)
    module = nn.Linear(2, 1)
    result = envariant.train(
        data, "erm", model=module, optimizer="sgd", learning_rate="step(0.5, 0.1, at=50%)", steps=4,
        evaluate_every=1, precision="float32",
    )  # fmt: skip
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    losses = []
    for step in range(4):
        optimizer.param_groups[0]["lr"] = 0.5 if step < 2 else 0.1
        risks = [
            nn.functional.binary_cross_entropy_with_logits(module(x)[:, 0], y)
            for x, y in (data[name].rows() for name in "ab")
        ]
        optimizer.zero_grad()
        (sum(risks) / 2).backward()
        optimizer.step()
        x, y = data["c"].rows()
        losses.append(nn.functional.binary_cross_entropy_with_logits(module(x)[:, 0], y).item())
    measured = [r.value for r in result.rows if (r.environment, r.metric) == ("c", "loss")][1:]
    assert measured == pytest.approx(losses, rel=1e-5)
    assert result.record.spec.to_dict()["learning_rate"] == "step(0.5, 0.1, at=50%)"


def test_schedule_that_never_takes_effect_is_one_warning_at_the_caller():
    # Without the wrapper that checks shapes during tests.
    train = inspect.unwrap(envariant.train)
    with pytest.warns(EnvariantWarning, match=r"^irm coefficient: step\(1, 10000, at=100\)") as caught:
        result = train("colored-digits", "irm(coefficient=step(1, 1e4, at=100))", **QUICK)
    assert [warning.filename for warning in caught] == [__file__]
    assert [str(warning.message) for warning in caught] == list(result.record.remarks)
    assert "at=40%" in result.record.remarks[0]
    with pytest.warns(EnvariantWarning, match="^learning_rate: "):
        envariant.train("colored-digits", "erm", learning_rate="step(1e-3, 1e-4, at=5)", **QUICK)


@pytest.mark.parametrize(
    "options",
    [
        {"algorithm": "irm(coefficient=step(1, 1e4, at=40%))"},
        {"algorithm": "irm(coefficient=step(1, 1e4, at=4))"},
        {"algorithm": "erm", "learning_rate": "step(1e-3, 1e-4, at=80%)"},
        {"algorithm": "boosted-trees"},
    ],
)
def test_schedule_that_takes_effect_does_not_warn(options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = envariant.train("colored-digits", **QUICK, **options)
    assert result.record.remarks == ()


def test_train_command_prints_a_remark_once_on_standard_error(here):
    arguments = (
        "train",
        "-d",
        "colored-digits",
        "--steps",
        3,
        "--model",
        "linear",
        "--replicas",
        2,
        "--json",
    )
    done = here(*arguments, "-a", "irm(coefficient=step(1, 1e4, at=100))")
    lines = [line for line in done.stderr.splitlines() if "changes only after" in line]
    assert done.returncode == 0
    assert lines == [line for line in lines if line.startswith("envariant: irm coefficient: ")]
    assert len(lines) == 1
    assert "Warning" not in done.stderr
    assert "changes only after" not in here(*arguments, "-a", "erm").stderr
    assert here(*arguments, "-a", "erm", "--lr", "step(1e-3, 1e-4, at=2)").returncode == 0


PROTOCOL = {"data": "colored-digits", "algorithm": "erm"}


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"init": "erm(steps=1)"}, "init"),
        ({"init": "erm(steps=1)", "freeze": "features"}, "freeze"),
        ({"holdout_fraction": 0.2}, "holdout_fraction"),
        ({"weight_decay": 0.1}, "weight_decay"),
        ({"test_environments": ("flip-0.1",)}, "test_environments"),
        ({"hyperparameters": {"l2": 0.5}}, "hyperparameters"),
        ({"augmentation": "affine"}, "augmentation"),
        ({"optimizer": "sgd"}, "optimizer"),
        ({"batch_size": 16}, "batch_size"),
    ],
)
def test_changed_names_every_condition_that_differs_from_the_protocol(options, name, monkeypatch):
    # As if the protocol were as short as this test.
    from envariant.data.colored import digits

    suggested = digits.ColoredDigits.default_settings

    def short(self, algorithm):
        from dataclasses import replace

        return replace(suggested(self, algorithm), steps=1, model="mlp(hidden=4)")

    monkeypatch.setattr(digits.ColoredDigits, "default_settings", short)
    monkeypatch.setitem(published_figures.ROWS, ("colored-digits", "erm"), ("irm_colored_mnist", "ERM"))
    plain = envariant.train(**PROTOCOL).record
    assert plain.changed == ()
    assert published_figures.comparable(plain) is not None
    record = envariant.train(**PROTOCOL, **options).record
    assert name in record.changed
    assert published_figures.comparable(record) is None


def test_order_of_test_environments_is_no_change():
    parts = random_environments().environments
    data = EnvironmentSet("mine", parts, Binary(), test=("c", "b"))
    changed = envariant.train(data, "erm", model="linear", steps=1).record.changed
    assert "test_environments" not in changed


@pytest.mark.parametrize("model", [own_network, own_network()])
def test_own_module_comes_back_in_process_and_not_from_disk(tmp_path, model):
    data = random_environments()
    result = envariant.train(data, "erm", model=model, steps=3, out=tmp_path)
    module = result.model()
    x, y = data["c"].rows()
    with torch.no_grad():
        loss = nn.functional.binary_cross_entropy_with_logits(module(x)[:, 0], y).item()
    assert loss == pytest.approx(result.final("c", "loss").mean, rel=1e-5)
    stored = TrainingResult.load(tmp_path)
    with pytest.raises(
        EnvariantError, match=r"is not a built-in model; pass your own module, as in result.model\(0, m"
    ):
        stored.model()
    loaded = stored.model(0, own_network())
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in module.state_dict().items())
    with pytest.raises(
        EnvariantError, match="cannot load the trained weights, because the given module is a different one"
    ):
        stored.model(0, nn.Linear(7, 7))
    resumed = envariant.train(data, "erm", model=model, steps=3, out=tmp_path).model()
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in module.state_dict().items())


def test_library_model_comes_back_from_disk(tmp_path):
    result = envariant.train("colored-digits", OwnPenalty(), out=tmp_path, **QUICK)
    loaded = TrainingResult.load(tmp_path).model()
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in result.model().state_dict().items())


def test_own_source_and_own_objects_are_stored_and_resumed(tmp_path):
    options = {
        "data": random_environments(), "algorithm": OwnPenalty(), "model": own_network,
        "optimizer": torch.optim.RMSprop, "steps": 3, "replicas": 2,
    }  # fmt: skip
    first = envariant.train(**options, out=tmp_path / "old")
    saved = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "old").rglob("*.safetensors")}
    (tmp_path / "old").rename(tmp_path / "new")
    again = envariant.train(**options, out=tmp_path / "new")
    assert first.rows == again.rows
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "new").rglob("*.safetensors")} == saved


def test_options_of_all_kinds_are_accepted():
    result = envariant.train(
        colored_digits(), "vrex", hyperparameters={"coefficient": 2.0}, model="mlp(hidden=4)", steps=2,
        batch_size=4, learning_rate=0.01, weight_decay=0.1, optimizer="adamw", precision="float32",
        test_environments=["flip-0.9"], holdout_fraction=0.2, evaluate_every=1, augmentation="affine",
        init="erm(steps=1)", freeze="features", device="cpu", execution="stacked", memory="1GB",
        compile=False, replicas=2, seed=5,
    )  # fmt: skip
    assert result.finished == (0, 1)
    roles = result.record.roles
    assert roles["flip-0.1 (validation)"] == "validation"
    assert {row.environment for row in result.rows if row.role == "validation"} == {"flip-0.1", "flip-0.2"}


def test_train_leaves_specs_and_sources_unchanged():
    source = colored_digits()
    before = colored_digits()
    envariant.train(source, "erm", test_environments="flip-0.1", **QUICK)
    assert source == before
