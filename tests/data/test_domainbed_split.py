"""Splits of DomainBed: seeds and rows of its program, and roles of both parts."""

import numpy as np
import pandas as pd
import pytest
import torch

from envariant import data
from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Binary, Multiclass
from envariant.data.domainbed_split import DomainBedSplit, both_parts, seed_hash, split
from envariant.data.tables.source import TableSource
from envariant.data.tables.table import read


def test_seeds_and_first_rows_are_those_of_the_program():
    assert [seed_hash(0, k) for k in (0, 1, 2, 5)] == [894182419, 1514274641, 1325548499, 1833038383]
    assert seed_hash("ColoredMNIST", "ERM", [2], 0, 0) == 1563456041
    assert seed_hash("RotatedMNIST", "ERM", [0], 0, 0) == 8951917
    assert split(11667, 0, 0)[1][:5].tolist() == [1367, 5249, 10747, 2251, 3341]
    assert split(23334, 0, 0)[1][:5].tolist() == [15031, 12047, 6066, 5519, 1761]


def test_the_order_is_that_of_a_shuffled_list():
    keys = list(range(103))
    np.random.RandomState(seed_hash(2, 1)).shuffle(keys)
    rows, out_rows = split(103, 2, 1)
    assert [*out_rows.tolist(), *rows.tolist()] == keys
    assert len(out_rows) == 20


def numbered():
    rows = torch.arange(60.0)[:, None]
    parts = [Environment(name, rows[k::3], rows[k::3, 0] % 2) for k, name in enumerate("abc")]
    return EnvironmentSet("numbered", tuple(parts), Binary(), test=("c",))


def test_test_environments_are_split_too():
    sample = DomainBedSplit(numbered()).sample(0)
    assert sample.names == ("a", "a out", "b", "b out", "c", "c out")
    assert [len(e) for e in sample.environments] == [16, 4] * 3
    assert [*sample.roles().values()] == ["train", "validation"] * 2 + ["test"] * 2
    assert [*sample.roles(both_parts("a", "b")).values()] == ["test"] * 4 + ["train", "validation"]
    assert sorted(torch.cat([sample["a"].inputs, sample["a out"].inputs])[:, 0].tolist()) == list(
        range(0, 60, 3)
    )


def test_only_the_first_rows_may_be_used():
    sample = DomainBedSplit(numbered(), rows=10).sample(0)
    assert [len(e) for e in sample.environments] == [8, 2] * 3
    assert sample["a"].inputs.max() < 30


def test_the_name_can_be_read_again():
    text = "domainbed-split('rotated-mnist(size=14)', trial=1)"
    assert data.source(text).name == text
    assert data.source("domainbed-split(rotated-mnist(size=14), trial=1)") == data.source(text)
    colored = data.source("domainbed-split('colored-mnist:domainbed(size=7, two_logits=true)')")
    assert colored.source.two_logits
    assert "two_logits=true" in colored.name


def test_two_logits_change_the_task_only():
    one, two = (
        data.source(f"colored-mnist:domainbed(size=7, two_logits={k})").sample(0) for k in ("false", "true")
    )
    assert isinstance(two.task, Multiclass)
    assert two.task.outputs == 2
    assert two.environments[0].targets.dtype == torch.int64
    for before, after in zip(one.environments, two.environments, strict=True):
        assert torch.equal(before.targets.long(), after.targets)
        assert torch.equal(before.inputs, after.inputs)


def test_invalid_settings_are_errors():
    with pytest.raises(EnvariantError, match="fraction must lie above 0 and below 1; got 1"):
        DomainBedSplit(numbered(), fraction=1)
    with pytest.raises(EnvariantError, match="source must be a data source or its name"):
        DomainBedSplit(3)
    with pytest.raises(EnvariantError, match=r"0.01 of the 20 rows of 'a' are less than one row"):
        DomainBedSplit(numbered(), fraction=0.01).sample(0)


def test_preprocessing_is_not_fitted_on_test_environments():
    frame = pd.DataFrame(
        {
            "x": [k * 7 % 11 / 3 for k in range(60)],
            "y": [0.7 * k + 1000 * (k >= 40) for k in range(60)],
            "site": ["a"] * 20 + ["b"] * 20 + ["c"] * 20,
        }
    )
    split_source = DomainBedSplit(TableSource(read(frame, "y", "site", min_rows=20), "numbers"))
    chosen = split_source.with_test_environments(both_parts("c"))
    assert chosen.source.test == ("c",)
    assert chosen.sample(0).task != split_source.sample(0).task
    assert chosen.identity() != split_source.identity()
