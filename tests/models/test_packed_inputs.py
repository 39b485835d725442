"""Inputs of several tensors: they train as the same network on one tensor, or one error says what to do."""

import pytest
import torch
from torch import nn

import envariant
from envariant import Environment, EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.models import pack_inputs

GENERATOR = torch.Generator().manual_seed(0)
IMAGE, AGE = torch.randn(30, 2, 2, generator=GENERATOR), torch.randn(30, generator=GENERATOR)
Y, WHERE = (AGE > 0).float(), ["a", "b", "c"] * 10
QUICK = {"steps": 3, "learning_rate": 0.05, "precision": "float32"}


class Two(nn.Module):
    """Network of an image and a number."""

    def __init__(self):
        super().__init__()
        self.image, self.age = nn.Linear(4, 1), nn.Linear(1, 1)

    def forward(self, inputs):
        assert inputs["image"].shape[1:] == (2, 2)
        return {"logits": self.image(inputs["image"].flatten(1)) + self.age(inputs["age"][:, None])}


class One(Two):
    """The same network for one tensor."""

    def forward(self, inputs):
        return self.image(inputs[:, :4]) + self.age(inputs[:, 4:])


@pytest.mark.parametrize("execution", ["sequential", "stacked"])
def test_network_of_a_dictionary_trains_as_one_of_a_tensor(execution):
    packed, packing = pack_inputs({"image": IMAGE, "age": AGE})
    data = EnvironmentSet.from_arrays(packed, Y, WHERE, test="c")
    options = {"replicas": 2, "execution": execution, **QUICK}
    result = envariant.train(data, "irm", model=lambda: packing.model(Two()), **options)
    assert result.rows == envariant.train(data, "irm", model=One, **options).rows
    assert isinstance(result.model(1).module, Two)
    assert {name: part.tolist() for name, part in packing.unpack(packed).items()} == {
        "image": IMAGE.tolist(), "age": AGE.tolist(),
    }  # fmt: skip


def test_dictionaries_are_one_error_that_names_the_remedy():
    inputs = {"image": IMAGE, "age": AGE}
    for build in (
        lambda: Environment("a", inputs, Y),
        lambda: EnvironmentSet.from_arrays(inputs, Y, WHERE),
        lambda: EnvironmentSet.from_datasets({"a": [({"image": IMAGE[0]}, 1.0)]}),
    ):
        with pytest.raises(
            EnvariantError, match="; combine a dictionary of tensors with envariant.models.pack_"
        ):
            build()
    with pytest.raises(EnvariantError, match="^inputs: lengths must be equal; got 30 image, 29 age$"):
        pack_inputs({"image": IMAGE, "age": AGE[1:]})
    with pytest.raises(EnvariantError, match="^inputs must be a dictionary of tensors; got list$"):
        pack_inputs([IMAGE, AGE])
    with pytest.raises(EnvariantError, match="^inputs: the dictionary is empty"):
        pack_inputs({})
    with pytest.raises(EnvariantError, match=r"^inputs: 'age' must have the shape \[rows, …\]"):
        pack_inputs({"age": 3.0})


def test_network_of_two_arguments_is_one_error():
    class Pair(nn.Linear):
        def forward(self, image, age):
            return super().forward(image)

    data = EnvironmentSet.from_arrays(IMAGE.flatten(1), Y, WHERE)
    with pytest.raises(EnvariantError, match=r"^model Pair: cannot take inputs of shape \(4,\) .*'age'"):
        envariant.train(data, "erm", model=lambda: Pair(4, 1), **QUICK)
