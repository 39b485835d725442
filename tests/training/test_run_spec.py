"""`RunSpec`: the one list of options, its errors, texts and content hashes."""

import functools
import inspect
import json
import re
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

import envariant
from envariant.algorithms import AndMask, Composition, Penalty, VREx
from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.schedules import schedule
from envariant.core.tasks import Binary
from envariant.data.tables import table as tables
from envariant.models import model_config
from envariant.predictors import BoostedTrees
from envariant.training.content_hash import content_hash
from envariant.training.execution import Execution
from envariant.training.optimizers import SGD
from envariant.training.option_text import text_of
from envariant.training.resolution import resolve
from envariant.training.run_spec import PYTHON_ONLY, RunSpec, difference

QUICK = {"data": "colored-digits", "algorithm": "erm", "model": "linear", "steps": 1, "progress": False}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": 3}, "data must be a name, an EnvironmentSource or an EnvironmentSet; got 3"),
        ({"data": pd.DataFrame({"a": [1, 2]})}, "data must be a name"),
        ({"data": EnvironmentSet}, "data: EnvironmentSet is a class; pass an instance"),
        ({"data": "colored-digit"}, "did you mean 'colored-digits'?"),
        ({"algorithm": 3}, "algorithm must be a name"),
        ({"algorithm": "IRM"}, "unknown algorithm 'IRM'; did you mean 'irm'?"),
        ({"algorithm": VREx}, "algorithm: VREx is a class; pass an instance: VREx()"),
        ({"algorithm": LogisticRegression}, "LogisticRegression is a class; pass an instance"),
        ({"hyperparameters": 3}, "hyperparameters must be a mapping from names to values; got 3"),
        ({"hyperparameters": ["l2"]}, "hyperparameters must be a mapping"),
        ({"hyperparameters": {"l3": 1}}, "unknown setting 'l3'"),
        ({"algorithm": "irm", "hyperparameters": {"coefficient": object()}}, "value must be a number"),
        ({"algorithm": VREx(), "hyperparameters": {"l9": 1}}, "unknown setting 'l9'"),
        ({"model": 3}, "model must be a name, a ModelConfig, a module or a function"),
        ({"model": "mpl"}, "unknown model 'mpl'; did you mean 'mlp'?"),
        ({"steps": "ten"}, "steps must be a whole number; got 'ten'"),
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"steps": 2.5}, "steps must be a whole number; got 2.5"),
        ({"steps": True}, "steps must be a whole number; got True"),
        ({"batch_size": "all"}, "batch_size must be a whole number or \"full\"; got 'all'"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"batch_size": 2.5}, 'batch_size must be a whole number or "full"; got 2.5'),
        ({"learning_rate": "fast"}, "learning_rate must be a number or a schedule (unknown schedule 'fast'"),
        ({"learning_rate": -1}, "learning_rate must be a finite number above 0; got -1"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number or a schedule"),
        ({"learning_rate": True}, "learning_rate must be a number or a schedule; got True"),
        ({"learning_rate": np.ones(3)}, "learning_rate must be a number or a schedule; got array("),
        ({"weight_decay": "x"}, "weight_decay must be a number; got 'x'"),
        ({"weight_decay": -1}, "weight_decay must be at least 0; got -1"),
        ({"weight_decay": float("inf")}, "weight_decay must be a number; got inf"),
        (
            {"optimizer": 3},
            "optimizer: must be a name, a torch.optim class or functools.partial of one; got 3",
        ),
        ({"optimizer": "adma"}, "unknown optimizer 'adma'; did you mean 'adam'?"),
        ({"optimizer": nn.Linear}, "optimizer: must be a name, a torch.optim class"),
        ({"optimizer": torch.optim.LBFGS}, "LBFGS needs a closure"),
        ({"precision": "half"}, "precision must be auto, float32, bfloat16 or tf32; got 'half'"),
        ({"test_environments": "east"}, "unknown environment 'east'"),
        ({"test_environments": 3}, "test_environments must be a list of names; got 3"),
        ({"test_environments": [3]}, "test_environments must be a list of names; got [3]"),
        ({"holdout_fraction": 1}, "holdout_fraction must lie below 1; got 1"),
        ({"holdout_fraction": "a"}, "holdout_fraction must be a number; got 'a'"),
        ({"evaluate_every": 0}, "evaluate_every must be at least 1; got 0"),
        ({"augmentation": 3}, "augmentation must be a name such as affine(rotation=15); got 3"),
        ({"augmentation": "flip"}, "unknown augmentation 'flip'"),
        ({"init": 3}, "init must be a name such as erm(steps=100) or rfc; got 3"),
        ({"init": "rfcc"}, "unknown init 'rfcc'; did you mean 'rfc'?"),
        ({"freeze": "all"}, "freeze must be features, batch-norm or features + batch-norm; got 'all'"),
        ({"freeze": "features"}, "set init as well"),
        ({"device": "gpu"}, "device must be auto, cpu or cuda; got 'gpu'"),
        ({"execution": 3}, "execution must be auto, sequential, stacked or stacked(group=50); got 3"),
        ({"execution": "stack"}, "unknown execution 'stack'; did you mean 'stacked'?"),
        ({"memory": True}, "memory must be a size such as 8GB"),
        ({"memory": "lots"}, "memory: expected an amount such as 8GB"),
        ({"compile": "yes"}, "compile must be true or false; got 'yes'"),
        ({"replicas": 0}, "replicas must be at least 1; got 0"),
        ({"n_seeds": 0}, "replicas must be at least 1; got 0"),
        ({"seed": -1}, "seed must be at least 0; got -1"),
        ({"seed": 2**32}, "seed must lie below 2³²"),
        ({"stesp": 3}, "unknown option 'stesp'; did you mean 'steps'?"),
    ],
)
def test_invalid_option_is_one_sentence(options, message):
    with pytest.raises(EnvariantError) as error:
        envariant.train(**{**QUICK, **options})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_names_and_alias_are_accepted():
    assert RunSpec(data="d", test_environments="east").test_environments == ("east",)
    assert RunSpec(data="d", n_seeds=3).replicas == 3
    assert RunSpec(data="d", steps=np.int64(3), learning_rate=np.float32(0.5)).steps == 3
    assert RunSpec(data="d", learning_rate="step(1e-3, 1e-4, at=80%)").learning_rate == schedule(
        "step(1e-3, 1e-4, at=80%)"
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"steps": 9, "batch_size": "full", "learning_rate": 0.1, "test_environments": ("b", "a")},
        {
            "algorithm": "vrex + and-mask(threshold=0.8)",
            "hyperparameters": {"coefficient": "step(1, 10, at=40%)"},
            "learning_rate": "step(1e-3, 1e-4, at=80%)",
            "batch_size": 8,
            "optimizer": "sgd(momentum=0.9)",
            "holdout_fraction": 0.25,
            "init": "rfc",
            "freeze": "features",
            "memory": "8GB",
            "compile": True,
            "execution": "stacked(group=3)",
        },
    ],
)
def test_spec_survives_json(options):
    spec = RunSpec(data="colored-digits", **options)
    assert RunSpec(**json.loads(json.dumps(spec.to_dict()))) == spec


def test_described_spec_holds_text_only():
    objects = RunSpec(
        data=envariant.data.colored_digits(),
        algorithm=VREx(30),
        model=nn.Linear(2, 1),
        optimizer=functools.partial(torch.optim.SGD, momentum=0.9),
        execution=Execution("stacked", 4, "why"),
    )
    options = objects.described().options()
    assert options["data"] == "colored-digits"
    assert options["algorithm"] == "vrex(coefficient=30)"
    assert options["model"] == "Linear"
    assert options["optimizer"] == "SGD(momentum=0.9)"
    assert options["execution"] == "stacked(group=4)"
    json.dumps(objects.to_dict())


class _Named:
    name = "mine"


def _network() -> nn.Module:
    return nn.Linear(2, 1)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (SGD(momentum=0.9), "sgd(momentum=0.9)"),
        (SGD(), "sgd"),
        (torch.optim.Adam, "Adam"),
        (functools.partial(torch.optim.SGD, momentum=0.9), "SGD(momentum=0.9)"),
        (VREx(), "vrex"),
        (VREx(30), "vrex(coefficient=30)"),
        (VREx("step(1, 5, at=40%)"), "vrex(coefficient=step(1, 5, at=40%))"),
        (AndMask(threshold=0.8), "and-mask(threshold=0.8)"),
        (envariant.algorithms.recipe("irm"), "irm"),
        (Composition(penalties=(VREx(),), gradient_aggregator=AndMask()), "vrex + and-mask"),
        (model_config("mlp(hidden=3)"), "mlp(hidden=3)"),
        (BoostedTrees(learning_rate=0.5), "boosted-trees(learning_rate=0.5)"),
        (LogisticRegression(), "LogisticRegression"),
        (_Named(), "mine"),
        (_network, "_network"),
        (nn.Linear(2, 1), "Linear"),
        ("anything", "anything"),
    ],
)
def test_text_of_an_object_is_readable_and_stable(value, text):
    assert text_of(value) == text
    assert "0x" not in text_of(value)


def test_difference_names_every_condition():
    reference = RunSpec(data="d", algorithm="erm", model="linear")
    changes = {
        "hyperparameters": {"l2": 1.0}, "model": "mlp", "optimizer": "sgd", "steps": 3, "batch_size": 4,
        "learning_rate": 0.5, "weight_decay": 0.1, "augmentation": "affine", "init": "erm",
        "freeze": "features", "holdout_fraction": 0.5, "test_environments": ("a",),
    }  # fmt: skip
    for name, value in changes.items():
        also = {"init": "erm"} if name == "freeze" else {}
        assert name in difference(reference.but(**{name: value}, **also), reference)
    assert difference(reference.but(seed=3, replicas=9, precision="float32", device="cpu"), reference) == ()


def random_environments(seed=0, label="mine") -> EnvironmentSet:
    generator = torch.Generator().manual_seed(seed)
    parts = tuple(Environment(name, torch.randn(8, 2, generator=generator), torch.zeros(8)) for name in "ab")
    return EnvironmentSet(label, parts, Binary(), test=("b",))


def identity(**options) -> str:
    return resolve(
        RunSpec(**{"data": random_environments(), "model": "linear", "steps": 2, **options})
    ).identity


def test_identity_follows_content_and_not_names_or_execution():
    same = identity()
    assert identity() == same
    assert identity(data=random_environments(0, "renamed")) == same
    assert identity(execution="stacked", memory="1GB", replicas=5) == same
    assert identity(algorithm="vrex(coefficient=3)") == identity(
        algorithm="vrex", hyperparameters={"coefficient": 3}
    )
    for change in (
        {"seed": 1}, {"steps": 3}, {"algorithm": "irm"}, {"hyperparameters": {"l2": 0.1}}, {"optimizer": "sgd"},
        {"learning_rate": 0.3}, {"data": random_environments(1)}, {"model": "mlp"}, {"init": "erm(steps=1)"},
        {"holdout_fraction": 0.2}, {"test_environments": ("a",)}, {"weight_decay": 0.1},
    ):  # fmt: skip
        assert identity(**change) != same, change


def test_same_table_in_another_folder_has_the_same_identity(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {"x": rng.normal(size=60), "y": rng.random(60) > 0.5, "site": np.repeat(["a", "b", "c"], 20)}
    )
    hashes = set()
    for folder in ("one", "two"):
        path = tmp_path / folder / "table"
        tables.read(table, "y", "site", min_rows=5).write(path)
        hashes.add(identity(data=f"table({str(path)!r})", test_environments=("a",)))
    assert len(hashes) == 1


def penalty_with(body: str, tmp_path, name: str) -> type:
    """Return a class `Own` whose source is in a file of its own."""
    import importlib.util

    path = tmp_path / f"{name}.py"
    path.write_text(
        "from dataclasses import dataclass\n"
        "from envariant.algorithms import Penalty\n"
        "from envariant.core.schedules import Constant, Schedule\n"
        "@dataclass(frozen=True)\n"
        "class Own(Penalty):\n"
        "    name, paper = 'own', 'none'\n"
        "    coefficient: Schedule = Constant(1.0)\n"
        "    def penalty(self, outputs, state):\n"
        f"        return {body}, state\n"
    )
    spec = importlib.util.spec_from_file_location("own_penalty", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Own


def test_identity_of_an_own_class_follows_its_source(tmp_path):
    first, again, edited = (
        penalty_with(body, tmp_path, name)
        for body, name in (
            ("outputs.risks.var()", "one"),
            ("outputs.risks.var()", "two"),
            ("outputs.risks.std()", "three"),
        )
    )
    assert issubclass(first, Penalty)
    assert identity(algorithm=first()) == identity(algorithm=again())
    assert identity(algorithm=first()) != identity(algorithm=edited())
    assert identity(algorithm=first()) != identity(algorithm=first(coefficient=schedule(2.0)))


def test_content_hash_follows_weights_and_source():
    torch.manual_seed(0)
    one, two = nn.Linear(2, 1), nn.Linear(2, 1)
    assert content_hash(one) != content_hash(two)
    two.load_state_dict(one.state_dict())
    assert content_hash(one) == content_hash(two)
    assert content_hash(SGD(momentum=0.9)) != content_hash(SGD())
    assert content_hash(torch.optim.Adam) != content_hash(torch.optim.SGD)
    momentum = [functools.partial(torch.optim.SGD, momentum=m) for m in (0.9, 0.9, 0.8)]
    assert content_hash(momentum[0]) == content_hash(momentum[1]) != content_hash(momentum[2])

    @dataclass(frozen=True)
    class Own:
        width: int = 3

    assert content_hash(Own()) != content_hash(Own(4))


def test_signature_of_train_lists_every_option_once():
    parameters = inspect.signature(envariant.train).parameters
    assert set(parameters) == {*RunSpec.model_fields, "callbacks", "out", "progress"}
    for name, field in RunSpec.model_fields.items():
        assert field.description, name
        if name != "data":
            assert parameters[name].default == field.default


def test_flags_of_the_train_command_are_the_options(here):
    text = here("train", "--help").stdout
    flags = set(re.findall(r"(?<![\w-])--([a-z][a-z-]*)", text))
    expected = {name.replace("_", "-") for name in RunSpec.model_fields if name not in PYTHON_ONLY}
    expected.remove("hyperparameters")
    # Flags that are no options of their own, or another name of one; `--no-…` is never offered.
    named = {"set", "lr", "mnist", "out", "track", "track-at", "json", "help", "version"}
    assert expected <= flags
    assert flags - named == expected
