"""Numbers taken out of an algorithm and put back: what stacking replicas of different settings rests on."""

from dataclasses import dataclass

import pytest
import torch

from algorithms.problems import assert_same
from algorithms.references import ENROLLED, every_case
from envariant.algorithms import IRM, AndMask, Composition, VREx
from envariant.algorithms.hyperparameters import numbers, structure, with_numbers
from envariant.core.schedules import Constant, Step
from envariant.core.step_context import StepContext
from envariant.testing import update


def test_numbers_are_coefficients_thresholds_and_the_like_in_the_order_of_the_fields():
    algorithm = Composition(
        penalties=(IRM(3), VREx("step(1, 7, at=5)")), gradient_aggregator=AndMask(1), l2=0.5
    )
    assert numbers(algorithm) == (Constant(3), Step(1, 7, at=5), 1.0, 0.5)


def test_structure_is_everything_else():
    algorithm = Composition(penalties=(IRM(3),))
    assert structure(algorithm) == structure(Composition(penalties=(IRM("step(1, 9, at=3)"),), l2=2.0))
    assert structure(Composition(gradient_aggregator=AndMask(1))) == structure(
        Composition(gradient_aggregator=AndMask(0.5))
    )
    others = [
        Composition(penalties=(VREx(3),)),
        Composition(penalties=(IRM(3), IRM(3))),
        Composition(penalties=(IRM(3),), normalize_loss=True),
        Composition(penalties=(IRM(3),), gradient_aggregator=AndMask()),
    ]
    assert len({structure(a) for a in (algorithm, *others)}) == 5


def test_an_algorithm_of_the_users_own_is_alike_only_with_itself_unless_its_fields_can_be_compared():
    class Own:
        pass

    @dataclass
    class Mutable:
        strength: float

    one = Own()
    assert structure(one) == structure(one)
    assert structure(one) != structure(Own())
    assert structure(Mutable(1.0)) == structure(Mutable(2.0))
    assert numbers(one) == ()
    assert with_numbers(one, []) is one


@every_case()
def test_tensors_in_place_of_numbers_change_no_gradient(name, problem):
    algorithm = ENROLLED[name].built(name)
    problem, context = problem.with_networks_of(algorithm), StepContext.at(3)
    values = [n(context.step) if callable(n) else n for n in numbers(algorithm)]
    changed = with_numbers(algorithm, [torch.tensor(v, dtype=torch.float64) for v in values])
    assert_same(update(changed, problem, context=context), update(algorithm, problem, context=context), 1e-12)
    assert numbers(algorithm) == numbers(ENROLLED[name].built(name)), "the original is as it was"


def test_annotations_that_are_text_are_read_without_being_looked_up():
    @dataclass(frozen=True)
    class Elsewhere:
        strength: "float"
        ranged: "Annotated[float, NotThere]"
        other: "NotThereEither" = None
        either: "float | None" = None

    assert numbers(Elsewhere(2.0, 3.0)) == (2.0, 3.0)


def test_too_many_or_too_few_values_are_noticed():
    with pytest.raises(ValueError, match="more values"):
        with_numbers(Composition(), [torch.tensor(0.0)] * 2)
    with pytest.raises(StopIteration):
        with_numbers(Composition(), [])
