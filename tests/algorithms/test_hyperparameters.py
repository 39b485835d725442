"""Numbers taken out of an algorithm and put back: what stacking replicas of different settings rests on."""

from dataclasses import dataclass

import pytest
import torch

from envariant.algorithms import IRM, AndMask, Composition, VREx
from envariant.algorithms.hyperparameters import numbers, structure, with_numbers
from envariant.core.schedules import Constant, Step


def test_numbers_are_float_fields_and_schedules_in_the_order_of_the_fields():
    algorithm = Composition(
        penalties=(IRM(3), VREx("step(1, 7, at=5)")), gradient_aggregator=AndMask(1), l2=0.5
    )
    assert numbers(algorithm) == (Constant(3), Step(1, 7, at=5), 1.0, 0.5)


def test_structure_is_everything_except_numbers():
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


def test_an_outside_algorithm_without_fields_has_only_its_own_structure():
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


def test_annotations_as_text_are_not_evaluated():
    @dataclass(frozen=True)
    class Elsewhere:
        strength: "float"
        ranged: "Annotated[float, NotThere]"
        other: "NotThereEither" = None
        either: "float | None" = None

    assert numbers(Elsewhere(2.0, 3.0)) == (2.0, 3.0)


def test_too_many_or_too_few_values_are_rejected():
    with pytest.raises(ValueError, match="more values"):
        with_numbers(Composition(), [torch.tensor(0.0)] * 2)
    with pytest.raises(StopIteration):
        with_numbers(Composition(), [])
