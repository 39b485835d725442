"""Names, texts, recipes, parts and algorithms all stand for an algorithm."""

from dataclasses import dataclass

import pytest
import torch

import envariant
from envariant.algorithms import (
    EIIL,
    IGA,
    IRM,
    MLDG,
    RECIPES,
    Algorithm,
    AndMask,
    Composition,
    Fish,
    TrainingStep,
    VREx,
    WorstCaseRisk,
    as_algorithm,
    identity,
    recipe,
    resolve_schedules,
)
from envariant.core.errors import EnvariantError
from envariant.core.schedules import Constant, Schedule, Step


@dataclass(frozen=True)
class Halved(TrainingStep):
    """A training step from outside the library: half of the gradient of the mean loss."""

    name = "halved"
    paper = "none"
    share: float = 0.5

    def gradients(self, model, params, batch, state, context):
        def loss(params):
            return self.share * batch.task.losses(model(params, batch.inputs)[1], batch.targets).mean()

        gradient, value = torch.func.grad_and_value(loss)(params)
        return gradient, state, {"risk": value.detach()}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("erm", Composition()),
        (RECIPES["vrex"], RECIPES["vrex"].default),
        (VREx(30), Composition(penalties=(VREx(30),))),
        (IGA(2), Composition(penalties=(IGA(2),))),
        (WorstCaseRisk(), Composition(WorstCaseRisk())),
        (AndMask(0.8), Composition(gradient_aggregator=AndMask(0.8))),
        (Halved(), Composition(training_step=Halved())),
        (EIIL(), Composition(environment_inference=EIIL())),
        (Composition(l2=0.5), Composition(l2=0.5)),
    ],
    ids=repr,
)
def test_everything_that_names_an_algorithm_becomes_one(given, expected):
    assert as_algorithm(given) == expected


def test_names_and_recipes_take_settings():
    expected = Composition(gradient_aggregator=AndMask(0.8))
    assert as_algorithm("and-mask", {"threshold": 0.8}) == expected
    assert as_algorithm(RECIPES["and-mask"], {"threshold": 0.8}) == expected


@pytest.mark.parametrize(
    ("given", "settings", "message"),
    [
        (IRM, {}, "algorithm: IRM is a class; pass an instance: IRM()"),
        (Composition, {}, "algorithm: Composition is a class; pass an instance: Composition()"),
        (3, {}, "algorithm must be a name such as 'vrex', a Recipe, a part such as VREx(), or an Algorithm, got 3"),
        (None, {}, "algorithm must be a name such as 'vrex', a Recipe, a part such as VREx(), or an Algorithm, got None"),
        (IRM(), {"l2": 1}, "hyperparameters can be passed only with the name of an algorithm or a recipe"),
        ("irm", {"l3": 1}, "irm: unknown setting 'l3'"),
    ],
)  # fmt: skip
def test_everything_else_is_rejected_in_one_sentence(given, settings, message):
    with pytest.raises(EnvariantError) as error:
        as_algorithm(given, settings)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "given", [Halved(), VREx(30), WorstCaseRisk(), RECIPES["and-mask"]], ids=lambda given: given.name
)
def test_train_takes_parts_and_recipes(given):
    result = envariant.train("colored-digits", given, steps=2, model="linear")
    named = envariant.train("colored-digits", as_algorithm(given), steps=2, model="linear")
    assert [row.value for row in result.rows] == [row.value for row in named.rows]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("vrex+and-mask", ("vrex", "and-mask")),
        ("vrex +and-mask(threshold=0.8)+ coral(1e+3)", ("vrex", "and-mask", "coral")),
        ("irm(coefficient=poly(k=1, p=3))+groupdro", ("irm", "groupdro")),
        ("erm++", ("erm++",)),
        ("erm++(head_steps=2)", ("erm++",)),
    ],
)
def test_texts_need_no_blanks_around_the_plus(text, names):
    assert recipe(text).name == " + ".join(names)


def test_a_plus_that_belongs_to_a_name_is_kept():
    with pytest.raises(EnvariantError, match=r"erm\+\+ \+ vrex: erm\+\+ is a training step"):
        recipe("erm+++vrex")
    with pytest.raises(EnvariantError, match=r"unknown algorithm 'vrex\+'; did you mean 'vrex'"):
        recipe("vrex+")


def test_settings_in_brackets_are_defaults_of_the_recipe():
    assert recipe("vrex(30)").default == recipe("vrex").build({"coefficient": 30})


def test_schedules_are_listed_by_part_and_field():
    algorithm = as_algorithm("vrex(30) + irm(step(1, 5, at=2)) + and-mask")
    assert algorithm.schedules() == {"vrex coefficient": Constant(30), "irm coefficient": Step(1, 5, at=2)}
    assert as_algorithm("mm-rex(7)").schedules() == {"mm-rex coefficient": Constant(7)}
    assert as_algorithm("erm").schedules() == {}


@dataclass(frozen=True)
class Late(Schedule):
    """A schedule that switches on at the middle of the run, whatever its length."""

    name = "late"
    at: float = -1.0

    def __call__(self, step):
        return float(step >= self.at)

    def resolve(self, steps):
        return Late(steps / 2)


@dataclass(frozen=True)
class Scheduled(Algorithm):
    """An algorithm from outside the library with schedules in a tuple and in a part."""

    rates: tuple[Schedule, ...]
    part: VREx
    other: int = 3
    name = "scheduled"
    minimum_environments, needs_features = 1, False

    def init(self, params, context):
        return {}

    def gradients(self, model, params, batch, state, context):
        return dict(params), state, {}


def test_relative_switch_points_are_resolved_wherever_they_are():
    algorithm = Scheduled((Late(), Constant(2)), VREx(Late()))
    resolved = resolve_schedules(algorithm, 100)
    assert resolved == Scheduled((Late(50.0), Constant(2)), VREx(Late(50.0)))
    assert algorithm.rates[0] == Late(), "the original is unchanged"
    assert resolve_schedules(as_algorithm("irm"), 100) == as_algorithm("irm")


class Stateless(Algorithm):
    """An algorithm that is not a dataclass."""

    name, minimum_environments, needs_features = "stateless", 1, False

    def __init__(self, values):
        self.values = values

    def init(self, params, context):
        return {}

    def gradients(self, model, params, batch, state, context):
        return dict(params), state, {}


def test_an_algorithm_that_is_not_a_dataclass_is_left_unchanged():
    algorithm = Stateless(3)
    assert resolve_schedules(algorithm, 10) is algorithm


def test_identity_is_that_of_the_content_whatever_the_spelling():
    assert identity(as_algorithm("vrex(30)")) == identity(as_algorithm("vrex", {"coefficient": 30.0}))
    assert identity(Composition(penalties=(VREx(1),), l2=1)) == identity(
        Composition(penalties=(VREx("constant(1)"),), l2=1.0)
    )
    assert identity(as_algorithm("vrex + coral")) == identity(as_algorithm("vrex") + as_algorithm("coral"))


def test_identity_differs_between_all_recipes_and_with_every_setting():
    described = {identity(recipe.default) for recipe in RECIPES.values()}
    # Recipes that differ in name alone do not exist.
    assert len(described) == len(RECIPES)
    base = as_algorithm("vrex")
    for settings in ({"coefficient": 3}, {"pairwise": True}, {"l2": 0.1}, {"risk_aggregator": "pooled"}):
        assert identity(as_algorithm("vrex", settings)) != identity(base)


def written(source):
    """The class that a module with this source defines."""
    namespace = {"__name__": "theirs"}
    exec(source, namespace)
    return namespace["Theirs"]


THEIRS = """
from dataclasses import dataclass
from envariant.algorithms import TrainingStep

@dataclass(frozen=True)
class Theirs(TrainingStep):
    name, paper, share = "theirs", "none", 0.5
    def gradients(self, model, params, batch, state, context):
        return {key: SCALE * value for key, value in params.items()}, state, {}
"""


def test_identity_of_an_outside_class_follows_its_code():
    first, again, edited = (
        identity(as_algorithm(written(THEIRS.replace("SCALE", scale))())) for scale in ("2", "2", "3")
    )
    assert first == again
    assert first != edited
    assert "theirs.Theirs#" in first
    assert "Halved#" in identity(as_algorithm(Halved()))
    assert identity(as_algorithm(Halved(0.4))) != identity(as_algorithm(Halved(0.5)))


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (torch.arange(3.0), torch.arange(3.0), torch.arange(3.0) + 1),
        ({"a": 1, "b": (2, None)}, {"b": (2, None), "a": 1}, {"a": 1, "b": (3, None)}),
        ({3, 1, 2}, {1, 2, 3}, {1, 2}),
        (torch.relu, torch.relu, torch.sigmoid),
        (torch.float32, torch.float32, torch.float64),
        (lambda x: x + 1, lambda x: x + 1, lambda x: x + 2),
        (Fish, Fish, MLDG),
        (Stateless(1), Stateless(1), Stateless(2)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_identity_of_attributes_is_that_of_their_content(one, same, other):
    if not callable(one) or isinstance(one, type) or one is same:
        assert identity(Stateless(one)) == identity(Stateless(same))
    assert identity(Stateless(one)) != identity(Stateless(other))


def test_a_value_without_content_is_rejected(tmp_path):
    with (
        (tmp_path / "file").open("w") as file,
        pytest.raises(EnvariantError, match="stateless: contains a value"),
    ):
        identity(Stateless(file))
