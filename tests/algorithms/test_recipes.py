"""The named algorithms: what they are made of, how they are set and how their settings are stored."""

import json
import sys

import numpy as np
import pytest
import torch

import envariant
from envariant.algorithms import (
    CORAL,
    IRM,
    RECIPES,
    AndMask,
    Composition,
    GroupDRO,
    InformationBottleneck,
    MeanRisk,
    MMREx,
    PCGrad,
    PooledMean,
    SumRisk,
    VREx,
    all_recipes,
    recipe,
    settings_of,
)
from envariant.core.errors import EnvariantError
from envariant.core.schedules import Constant, Step

every_recipe = pytest.mark.parametrize("name", RECIPES)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("erm", Composition()),
        ("irm", Composition(MeanRisk(), (IRM(),), normalize_loss=True)),
        ("vrex", Composition(MeanRisk(), (VREx(),), normalize_loss=True)),
        ("mm-rex", Composition(MMREx(), normalize_loss=True)),
        ("and-mask", Composition(gradient_aggregator=AndMask())),
    ],
)
def test_a_recipe_is_its_parts(name, expected):
    assert recipe(name).build({}) == expected


def test_recipes_that_accept_one_environment():
    alone = {name for name, r in RECIPES.items() if r.default.minimum_environments == 1}
    assert alone == {
        "erm", "sd", "ib-erm", "clove", "selfreg", "mixup", "rsc", "sagnet", "mtl", "arm", "erm++", "urm", "miro",
        "eiil",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("erm", {"risk_aggregator": "mean | pooled | sum | worst-case"}),
        (
            "irm",
            {
                "coefficient": "100 … 1e+06, log",
                "form": None,
                "risk_aggregator": "mean | pooled | sum | worst-case",
            },
        ),
        (
            "vrex",
            {
                "coefficient": "100 … 1e+06, log",
                "pairwise": None,
                "risk_aggregator": "mean | pooled | sum | worst-case",
            },
        ),
        ("mm-rex", {"coefficient": "100 … 1e+06, log"}),
        (
            "and-mask",
            {
                "threshold": "0.5 … 1",
                "mean": "arithmetic | geometric",
                "inverse_sparsity": "True | False",
                "strict": None,
                "risk_aggregator": "mean | pooled | sum | worst-case",
            },
        ),
    ],
)
def test_settings_are_listed_with_their_ranges(name, expected):
    listed = {h.name: h.range and str(h.range) for h in recipe(name).hyperparameters}
    assert listed == expected | {"l2": None, "normalize_loss": None}


@every_recipe
def test_every_recipe_has_a_summary_and_a_paper(name):
    assert recipe(name).summary.endswith(".")
    assert "arXiv" in recipe(name).paper or name in ("erm", "mmd", "urm")


@every_recipe
def test_defaults_listed_are_the_defaults_built(name):
    listed = {h.name: h.default for h in recipe(name).hyperparameters}
    assert recipe(name).build(listed) == recipe(name).default


@every_recipe
def test_stored_settings_build_the_same_algorithm(name):
    """Through JSON, as in a run's record, for settings drawn from the declared ranges."""
    generator = np.random.default_rng(0)
    for _ in range(5):
        drawn = {h.name: h.range.sample(generator) for h in recipe(name).hyperparameters if h.range}
        listed = {h.name for h in recipe(name).hyperparameters}
        extras = {key: value for key, value in {"l2": 0.25, "normalize_loss": True}.items() if key in listed}
        built = recipe(name).build({**drawn, **extras})
        stored = json.loads(json.dumps(settings_of(name, built)))
        assert stored.keys() == {h.name for h in recipe(name).hyperparameters}
        assert recipe(name).build(stored) == built
    built = recipe(name).build({})
    assert recipe(name).build(settings_of(name, built)) == built


def test_schedules_are_read_from_numbers_and_text_and_survive_storage():
    for value, expected in [(30, Constant(30)), ("step(1, 1e4, at=190)", Step(1, 1e4, 190))]:
        built = recipe("irm").build({"coefficient": value})
        assert built.penalties[0].coefficient == expected
        assert recipe("irm").build(settings_of("irm", built)) == built


def test_a_setting_changes_its_own_part_and_nothing_else():
    built = recipe("and-mask").build({"threshold": 1, "l2": 2})
    assert built == Composition(gradient_aggregator=AndMask(1.0), l2=2.0)
    assert isinstance(built.gradient_aggregator.threshold, float)


@pytest.mark.parametrize(
    ("word", "part"), [("mean", MeanRisk()), ("pooled", PooledMean()), ("sum", SumRisk())]
)
def test_a_risk_aggregator_is_set_by_its_name(word, part):
    built = recipe("vrex").build({"risk_aggregator": word})
    assert built == Composition(part, (VREx(),), normalize_loss=True)
    assert settings_of("vrex", built)["risk_aggregator"] == word


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "imr",
            {},
            "unknown algorithm 'imr'; did you mean 'irm'? known: adrmx, and-mask, arm, cad,",
        ),
        ("irm", {"coeficient": 3}, "irm: unknown setting 'coeficient'; did you mean 'coefficient'?"),
        (
            "erm",
            {"quantile": 1.0},
            "erm: unknown setting 'quantile'; known: l2, normalize_loss, risk_aggregator",
        ),
        ("irm", {"normalize_loss": 1}, "irm: normalize_loss must be true or false; got 1"),
        ("irm", {"l2": "big"}, "irm: l2 must be a number; got big"),
        ("irm", {"l2": True}, "irm: l2 must be a number; got true"),
        ("irm", {"l2": -1}, "Composition: l2 must be at least 0, got -1"),
        ("irm", {"coefficient": "stpe(1, 2, at=3)"}, "unknown schedule 'stpe'; did you mean 'step'?"),
        ("irm", {"coefficient": True}, "constant: value must be a number; got 'true'"),
        ("and-mask", {"threshold": 1.7}, "AndMask: threshold must be in [0, 1], got 1.7"),
        (
            "erm",
            {"risk_aggregator": "men"},
            "erm: unknown risk_aggregator 'men'; did you mean 'mean'? known: mean, pooled, sum, worst-case",
        ),
    ],
)
def test_a_wrong_name_or_value_is_rejected_in_one_sentence(name, settings, message):
    with pytest.raises(EnvariantError) as error:
        recipe(name).build(settings)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_settings_with_the_same_name_are_prefixed_by_their_part():
    built = recipe("ib-irm").build(
        {"irm_coefficient": 7, "ib_coefficient": "step(0, 3, at=5)", "form": "halves"}
    )
    assert built.penalties == (IRM(7, form="halves"), InformationBottleneck("step(0, 3, at=5)"))
    assert recipe("ib-irm").build(settings_of("ib-irm", built)) == built


def test_texts_compose_algorithms_in_order():
    known = recipe("vrex(coefficient=30) + and-mask(threshold=0.8)")
    assert known.default == Composition(MeanRisk(), (VREx(30),), AndMask(threshold=0.8), normalize_loss=True)
    assert known.name == "vrex + and-mask"
    three = recipe("irm(coefficient=poly(k=1, p=3, after=190)) + coral(1.0) + groupdro")
    assert three.default == Composition(
        GroupDRO(), (IRM("poly(k=1, p=3, after=190)"), CORAL(1.0)), normalize_loss=True
    )
    assert three.build({"irm_coefficient": 5}).penalties == (IRM(5), CORAL(1.0))
    assert three.build(settings_of("irm + coral + groupdro", three.default)) == three.default


def test_algorithms_compose_in_python():
    assert Composition(penalties=(IRM(1),), l2=0.1) + Composition(
        gradient_aggregator=PCGrad()
    ) == Composition(MeanRisk(), (IRM(1),), PCGrad(), l2=0.1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "groupdro + eqrm",
            "groupdro + eqrm: only one risk_aggregator is possible, but both parts set one (groupdro and eqrm)",
        ),
        (
            "and-mask + pcgrad",
            "and-mask + pcgrad: only one gradient_aggregator is possible, but both parts set one (and-mask and pcgrad)",
        ),
        ("irm + ib-irm", "irm + irm + ib: the penalty irm occurs twice"),
        ("vrex + corla", "unknown algorithm 'corla'; did you mean 'coral'?"),
        ("vrex + coral(1, 2)", "coral: settings must be named, as in coral(l2=0.001)"),
        ("coral(1, coefficient=2)", "coral: 'coefficient' occurs twice"),
        ("pcgrad(1)", "pcgrad: settings must be named"),
        ("vrex + ", "cannot read"),
    ],
)
def test_invalid_compositions_are_rejected(text, message):
    with pytest.raises(EnvariantError) as error:
        recipe(text)
    assert str(error.value).startswith(message)


def test_a_composition_trains_with_the_default_settings_of_its_first_term(tmp_path):
    result = envariant.train(
        "colored-digits", "vrex(coefficient=30) + and-mask(threshold=0.5)", steps=5, out=tmp_path / "run"
    )
    assert result.record.spec.algorithm == "vrex + and-mask"
    assert result.record.spec.hyperparameters["coefficient"] == "30"
    assert envariant.TrainingResult.load(tmp_path / "run").summary().loc["worst", "replicas"] == 1


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Installs a package whose entry points are these, as an installer leaves it."""

    def installed(code, **entries):
        (tmp_path / "theirs.py").write_text(code)
        info = tmp_path / "theirs-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
        lines = "\n".join(f"{name} = {place}" for name, place in entries.items())
        (info / "entry_points.txt").write_text(f"[envariant.algorithms]\n{lines}\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "theirs", raising=False)

    return installed


THEIRS = """
from envariant.algorithms import Composition, Recipe, VREx

gentle = Recipe("gentle", "V-REx with a small weight.", Composition(penalties=(VREx(0.5),)))
other = Recipe("another", "Of another name.", Composition())
number = 3
"""


def test_a_plugin_registers_algorithms(package):
    package(THEIRS, gentle="theirs:gentle")
    assert recipe("gentle").default.penalties == (VREx(0.5),)
    assert recipe("gentle(coefficient=2) + coral(1.0)").default.penalties[0] == VREx(2.0)
    assert list(all_recipes()) == [*RECIPES, "gentle"]
    result = envariant.train("colored-digits", "gentle", steps=3, model="linear")
    assert result.record.spec.hyperparameters["coefficient"] == "0.5"
    assert result.model(0)(torch.zeros(1, 2, 8, 8)).shape == (1, 1)
    with pytest.raises(EnvariantError, match="did you mean 'gentle'"):
        recipe("gentel")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("theirs:missing", "algorithm 'gentle': theirs:missing cannot be imported: module 'theirs' has no"),
        (
            "nowhere:gentle",
            "algorithm 'gentle': nowhere:gentle cannot be imported: No module named 'nowhere'",
        ),
        ("theirs:number", "algorithm 'gentle': theirs:number must be a Recipe of that name; got 3"),
        ("theirs:other", "must be a Recipe of that name; got Recipe\\(name='another'"),
    ],
)
def test_an_invalid_plugin_is_rejected(package, place, message):
    package(THEIRS, gentle=place)
    with pytest.raises(EnvariantError, match=message):
        recipe("gentle")
    assert recipe("irm"), "and does no harm to the rest"


BROKEN = {
    "missing module": "",
    "syntax error": "def (",
    "any exception": "raise RuntimeError('no licence\\nfound')",
    "invalid part": "from envariant.algorithms import Composition\nComposition(l2=-1)",
    "exit": "raise SystemExit(7)",
    "not describable": "from envariant.algorithms import Recipe\ngentle = Recipe('gentle', '', None)",
    "part without a paper": """
from dataclasses import dataclass
from envariant.algorithms import Composition, Penalty, Recipe

@dataclass(frozen=True)
class Silent(Penalty):
    name = "silent"
    coefficient: float = 1.0
    def penalty(self, made, given): return 0.0

gentle = Recipe("gentle", "No paper.", Composition(penalties=(Silent(),)))
""",
    "no text": "class Odd:\n    def __repr__(self): raise SystemExit(1)\ngentle = Odd()",
}


@pytest.mark.parametrize("code", BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_reported_in_one_line_and_the_others_are_listed(package, code):
    package(code, gentle="theirs:gentle" if code else "nowhere:gentle")
    lines = []
    assert list(all_recipes(lines.append)) == list(RECIPES)
    assert len(lines) == 1
    assert lines[0].startswith("algorithm 'gentle': ")
    assert "\n" not in lines[0]
    with pytest.warns(UserWarning, match="algorithm 'gentle': .* cannot be imported"):
        all_recipes()


@pytest.mark.parametrize(
    ("code", "message"),
    [("raise RuntimeError('no licence')", "no licence"), ("raise SystemExit(7)", "SystemExit(7)")],
)
def test_the_command_lists_algorithms_beside_a_broken_plugin(package, here, code, message):
    package(code, gentle="theirs:gentle")
    listed = here("algorithms")
    assert listed.returncode == 0
    assert "vrex" in listed.stdout
    assert listed.stderr == f"algorithm 'gentle': theirs:gentle cannot be imported: {message}\n"
    trained = here("train", "--data", "colored-digits", "--steps", 1, "--algorithm", "gentle")
    assert trained.returncode == 2
    assert trained.stderr == f"envariant: algorithm 'gentle': theirs:gentle cannot be imported: {message}\n"


def test_a_part_without_a_description_is_listed(package, here):
    code = """
from dataclasses import dataclass
from envariant.algorithms import Composition, Penalty, Recipe
from envariant.core.schedules import Schedule

@dataclass(frozen=True)
class Silent(Penalty):
    name = "silent"
    paper = ""
    coefficient: Schedule | float | str = 1.0
    def penalty(self, made, given): return 0.0

Silent.__doc__ = " "
gentle = Recipe("gentle", "", Composition(penalties=(Silent(),)))
"""
    package(code, gentle="theirs:gentle")
    listed = here("algorithms")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "gentle" in listed.stdout
    assert here("algorithms", "gentle").returncode == 0
