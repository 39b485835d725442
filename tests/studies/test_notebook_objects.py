"""A study of a notebook's own data, network and penalty, trained by two processes."""

import linecache
import re
from pathlib import Path

import pytest

from envariant import EnvariantError
from envariant.training.content_hash import content_hash

CELL = """
from dataclasses import dataclass
import torch
from envariant import EnvironmentSet, Study
from envariant.algorithms.base import Penalty
from envariant.core.schedules import Constant, Schedule

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.featurizer, self.head = torch.nn.Linear(3, 4), torch.nn.Linear(4, 1)
    def forward(self, inputs):
        return self.head(torch.relu(self.featurizer(inputs))).flatten()

@dataclass(frozen=True)
class MeanLogit(Penalty):
    name = "mean-logit"
    coefficient: Schedule = Constant(1.0)
    def penalty(self, predicted, state):
        return predicted.logits.mean().square(), state

def half(risk):
    return risk / 2

x = torch.randn(90, 3, generator=torch.Generator().manual_seed(0))
data = EnvironmentSet.from_arrays(x, (x[:, 0] > 0).long(), ["a", "b", "c"] * 30, test=("c",))
settings = {"model": Net, "steps": 4, "batch_size": 8}
study = Study((data,), ("erm", MeanLogit()), replicas=2, settings=settings)
"""


def notebook(name, cell=CELL):
    """Run a cell as a notebook does: its source is only in the cache of lines."""
    file = f"<{name}>"
    linecache.cache[file] = (len(cell), None, cell.splitlines(keepends=True), file)
    # A module that other processes cannot import.
    names = {"__name__": "cells_of_a_notebook"}
    exec(compile(cell, file, "exec"), names)
    return names


def test_the_example_of_the_docs_trains_in_two_processes():
    page = (Path(__file__).parents[2] / "docs" / "studies.md").read_text(encoding="utf-8")
    cell = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[1]
    names = notebook("cell-1", cell.replace('"steps": 100', '"steps": 5').replace("replicas=3", "replicas=2"))
    assert set(names["results"].table().columns) >= {"north", "south", "west"}
    assert "groupdro + vrex" in str(names["results"].table())


def test_the_content_of_a_class_without_source_counts():
    cells = [CELL.replace("torch.relu", f"torch.{name}") for name in ("relu", "relu", "tanh")]
    hashes = [content_hash(notebook(f"cell-{k}", cell)["Net"]) for k, cell in enumerate(cells)]
    assert hashes[0] == hashes[1] != hashes[2]
    halves = [notebook(f"half-{k}", CELL.replace("risk / 2", f"risk / {k}"))["half"] for k in (2, 3)]
    assert content_hash(halves[0]) != content_hash(halves[1])


def test_objects_that_cannot_be_sent_are_one_error(tmp_path):
    names, numbers = notebook("cell-1"), (k for k in range(3))

    def net():
        next(numbers)
        return names["Net"]()

    study = names["Study"]((names["data"],), ("erm",), replicas=2, settings={"model": net, "steps": 1})
    with pytest.raises(EnvariantError, match="cannot be sent to other processes"):
        study.run(tmp_path, workers=2, progress=False)
