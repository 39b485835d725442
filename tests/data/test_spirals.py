"""Spirals: bit-identical to the authors' program, and what can be learned from them."""

import hashlib

import numpy as np
import pytest
import torch

from envariant.algorithms import recipe
from envariant.core.errors import EnvariantError
from envariant.data import source
from envariant.data.spirals import Spirals
from envariant.models import MLP, model_config


def sha(tensors):
    return hashlib.sha256(torch.cat(tensors).numpy().tobytes()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("signature", "inputs", "labels", "ones", "test_inputs", "test_ones", "first"),
    [
        (8, "ce34c0dceae717c4", "9a3a0252bb9c3517", 8169, "13da662cd0b8c931", 1010,
         [-0.190582, -1.716216, 1.764052, 0.400157]),
        (16, "8370476aaa4c2449", "a279319bbcdde729", 8227, "beb273f6f4b15cd0", 995,
         [-0.702205, 0.199409, 1.764052, 0.400157]),
    ],
)  # fmt: skip
def test_numbers_are_those_of_the_authors_program(
    signature, inputs, labels, ones, test_inputs, test_ones, first
):
    drawn = Spirals(signature=signature).sample(0)
    training = [each for each in drawn.environments if each.name != "test"]
    assert sha([each.inputs for each in training]) == inputs
    assert sha([each.targets for each in training]) == labels
    assert sum(each.targets.sum() for each in training) == ones
    assert sha([drawn["test"].inputs]) == test_inputs
    assert drawn["test"].targets.sum() == test_ones
    assert training[0].inputs[0, :4].tolist() == pytest.approx(first, abs=1e-6)


def test_shortcut_holds_in_training_only_and_the_spiral_everywhere():
    drawn = Spirals(environments=3, signature=5, rows=300, deviation=0.1).sample(4)
    for each in drawn.environments:
        signs = 2 * each.targets - 1
        signature = (signs[:, None] * each.inputs[:, 2:]).numpy()
        assert (np.ptp(signature, axis=0) < 1e-7).all() == (each.name != "test")
        assert 0.02 < np.abs(signature).mean() < 0.2
        assert each.inputs[:, :2].std(dim=0, unbiased=False).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert [len(each) for each in drawn.environments] == [300, 300, 300, 2000]


def test_source_by_name_has_bounds_and_suggests_settings():
    assert source("spirals") == Spirals()
    assert source("spirals(environments=32, deviation=0.1)").name == "spirals(environments=32, deviation=0.1)"
    with pytest.raises(EnvariantError, match="spirals: environments must be"):
        source("spirals(environments=0)")
    suggested = source("spirals").default_settings("and-mask")
    assert model_config(suggested.model) == MLP(256, 3, activation="leaky-relu", init="kaiming-normal")
    assert recipe("and-mask").build(suggested.hyperparameters)
