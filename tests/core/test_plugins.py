"""Models and data sources of other installed packages: found by name, listed, and reported if broken."""

import sys

import pytest
import torch

import envariant
from envariant import data, models
from envariant.core.errors import EnvariantError

PACKAGE = '''
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import nn

from envariant.core.environments import Environment, EnvironmentSet, EnvironmentSource
from envariant.core.specs import Spec
from envariant.core.tasks import Binary
from envariant.data import SpecSource
from envariant.models import FeaturizerAndHead, ModelConfig


@final
@dataclass(frozen=True)
class Wide(ModelConfig):
    """One hidden layer."""

    name: ClassVar[str] = "wide"
    width: int = 7

    def build(self, input_shape, outputs):
        featurizer = nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0], self.width), nn.ReLU())
        return FeaturizerAndHead(featurizer, nn.Linear(self.width, outputs))


def sampled(name, rows, seed):
    generator = torch.Generator().manual_seed(seed)
    environments = []
    for environment in ("a", "b", "c"):
        inputs = torch.randn(rows, 2, generator=generator)
        environments.append(Environment(environment, inputs, (inputs[:, 0] > 0).float()))
    return EnvironmentSet(name, tuple(environments), Binary(), test=("c",))


@final
@dataclass(frozen=True)
class Coins(SpecSource):
    """Random points."""

    base: ClassVar[str] = "coins"
    rows: int = 20

    def sample(self, seed):
        return sampled(self.name, self.rows, seed)


@final
@dataclass(frozen=True)
class Plain(EnvironmentSource):
    """The same without the base class for sources written as text."""

    rows: int = 20

    @property
    def name(self):
        return str(Spec("plain", (), {"rows": self.rows}))

    def sample(self, seed):
        return sampled(self.name, self.rows, seed)


number = 3
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return a function that installs a package with these entry points, as an installer does."""

    def install(group, **entries):
        (tmp_path / "theirs.py").write_text(PACKAGE)
        (tmp_path / "broken.py").write_text("1 / 0")
        (tmp_path / "ends.py").write_text("raise SystemExit(7)")
        info = tmp_path / "theirs-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
        lines = "\n".join(f"{name} = {place}" for name, place in entries.items())
        with (info / "entry_points.txt").open("a") as file:
            file.write(f"[{group}]\n{lines}\n")
        monkeypatch.syspath_prepend(tmp_path)
        for name in ("theirs", "broken", "ends"):
            monkeypatch.delitem(sys.modules, name, raising=False)

    return install


def test_an_installed_package_adds_models_and_sources_that_train(package):
    package(models.ENTRY_POINTS, wide="theirs:Wide")
    package(data.ENTRY_POINTS, coins="theirs:Coins", plain="theirs:Plain")
    built = models.model_config("wide(width=3)")
    assert str(built) == "wide(width=3)"
    assert models.model_config(str(built)) == built
    assert built.build((2,), 1)(torch.zeros(5, 2)).shape == (5, 1)
    for text in ("coins(rows=12)", "plain(rows=12)"):
        source = data.source(text)
        assert source.name == text
        assert data.source(source.name) == source
        result = envariant.train(text, "erm", model="wide(width=3)", steps=2)
        assert result.record.sizes == {"a": 12, "b": 12, "c": 12}
    assert data.source("coins").name == "coins"


def test_unknown_names_suggest_plugins(package):
    package(models.ENTRY_POINTS, wide="theirs:Wide")
    package(data.ENTRY_POINTS, coins="theirs:Coins")
    with pytest.raises(EnvariantError, match="unknown model 'Wide'; did you mean 'wide'"):
        models.model_config("Wide")
    with pytest.raises(EnvariantError, match="unknown data set 'coin'; did you mean 'coins'"):
        data.source("coin")
    with pytest.raises(EnvariantError, match="coins: unknown setting 'row'; did you mean 'rows'"):
        data.source("coins(row=3)")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("theirs:missing", "theirs:missing cannot be imported: module 'theirs' has no attribute 'missing'"),
        ("nowhere:X", "nowhere:X cannot be imported: No module named 'nowhere'"),
        ("broken:X", "broken:X cannot be imported: division by zero"),
        ("ends:X", "ends:X cannot be imported: SystemExit(7)"),
        ("a b:::X", "a b:::X cannot be imported: "),
        ("theirs:number", "theirs:number must be "),
        ("builtins:int", "builtins:int must be "),
    ],
)
def test_a_broken_plugin_is_reported_and_harms_nothing_else(package, place, message):
    package(models.ENTRY_POINTS, wide="theirs:Wide", bad=place)
    package(data.ENTRY_POINTS, coins="theirs:Coins", bad=place)
    for kind, build, installed, good in (
        ("model", models.model_config, models.installed_models, "wide"),
        ("data set", data.source, data.installed_sources, "coins"),
    ):
        with pytest.raises(EnvariantError) as error:
            build("bad")
        assert str(error.value).startswith(f"{kind} 'bad': {message}")
        loaded, failures = installed()
        assert list(loaded) == [good]
        assert [failure.startswith(f"{kind} 'bad': {message}") for failure in failures] == [True]
        assert "\n" not in failures[0]
        assert build(good)


def test_a_broken_algorithm_is_not_called_a_misspelled_predictor(package):
    # `mine` is similar to `linear`.
    package("envariant.algorithms", mine="broken:X")
    with pytest.raises(
        EnvariantError, match="algorithm 'mine': broken:X cannot be imported: division by zero"
    ):
        envariant.train("colored-digits", "mine", steps=1)


def test_an_interruption_while_a_plugin_is_imported_ends_the_command(package, tmp_path):
    package(models.ENTRY_POINTS, slow="interrupted:X")
    (tmp_path / "interrupted.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        models.installed_models()


def test_a_package_with_damaged_metadata_is_reported_and_harms_nothing_else(package, tmp_path):
    package(models.ENTRY_POINTS, wide="theirs:Wide")
    damaged = tmp_path / "damaged-1.0.dist-info"
    damaged.mkdir()
    (damaged / "METADATA").write_text("Metadata-Version: 2.1\nName: damaged\nVersion: 1.0\n")
    (damaged / "entry_points.txt").write_bytes(b"[envariant.models]\n\xff = x:y\n")
    loaded, failures = models.installed_models()
    assert list(loaded) == ["wide"]
    assert len(failures) == 1
    assert "damaged-1.0.dist-info: its entry points cannot be read" in failures[0]
    assert models.model_config("wide")


def test_a_plugin_of_another_name_is_rejected(package):
    package(models.ENTRY_POINTS, other="theirs:Wide")
    package(data.ENTRY_POINTS, other="theirs:Coins")
    with pytest.raises(
        EnvariantError, match="theirs:Wide must be a ModelConfig and a frozen dataclass of that"
    ):
        models.model_config("other")
    with pytest.raises(
        EnvariantError, match="data set 'other': the name of its source must begin with 'other'; got 'coins'"
    ):
        data.source("other")


def test_a_plugin_cannot_replace_a_built_in(package):
    package(models.ENTRY_POINTS, mlp="theirs:Wide")
    package(data.ENTRY_POINTS, **{"colored-digits": "theirs:Coins"})
    assert type(models.model_config("mlp")) is models.MLP
    assert type(data.source("colored-digits")) is data.ColoredDigits
    assert models.installed_models() == data.installed_sources() == ({}, ())


def test_listing_names_imports_nothing(package):
    package(models.ENTRY_POINTS, wide="theirs:Wide")
    assert models.PLUGINS.names() == ("wide",)
    assert "theirs" not in sys.modules
