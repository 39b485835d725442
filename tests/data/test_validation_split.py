"""Validation split: which rows are held out, how many, and that nothing is trained on them."""

import pytest
import torch

import envariant
from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Binary
from envariant.data import colored_digits
from envariant.data.validation_split import SUFFIX, ValidationSplit


def test_a_share_of_every_training_environment_is_held_out_and_no_row_is_lost():
    plain, parted = colored_digits().sample(3), ValidationSplit(colored_digits(), 0.25).sample(3)
    assert parted.roles() == {
        "flip-0.2": "train",
        "flip-0.2" + SUFFIX: "validation",
        "flip-0.1": "train",
        "flip-0.1" + SUFFIX: "validation",
        "flip-0.9": "test",
    }
    for name in ("flip-0.2", "flip-0.1"):
        kept, rest = parted[name + SUFFIX], parted[name]
        assert len(kept) == round(len(plain[name]) / 4)
        together = sorted(map(tuple, torch.cat([kept.inputs, rest.inputs]).flatten(1).tolist()))
        assert together == sorted(map(tuple, plain[name].inputs.flatten(1).tolist()))
        assert {k: len(v) for k, v in kept.attributes.items()} == dict.fromkeys(kept.attributes, len(kept))
    assert torch.equal(parted["flip-0.9"].inputs, plain["flip-0.9"].inputs)


def test_the_split_depends_on_the_data_seed_only():
    one, again, other = (
        ValidationSplit(colored_digits(), 0.2).sample(seed)["flip-0.1" + SUFFIX] for seed in (1, 1, 2)
    )
    assert torch.equal(one.inputs, again.inputs)
    assert not torch.equal(one.inputs, other.inputs)


def test_test_environments_are_not_split():
    roles = ValidationSplit(colored_digits(), 0.2, ("flip-0.1",)).sample(0).roles()
    assert [name for name, role in roles.items() if role == "validation"] == [
        "flip-0.2" + SUFFIX,
        "flip-0.9" + SUFFIX,
    ]


def test_validation_environments_of_the_data_keep_their_role():
    rows = [Environment(name, torch.zeros(20, 1), torch.zeros(20)) for name in ("a", "v", "t")]
    own = EnvironmentSet("own", tuple(rows), Binary(), test=("t",), validation=("v",))
    roles = ValidationSplit(own, 0.5).sample(0).roles()
    assert roles == {"a": "train", "a" + SUFFIX: "validation", "v": "validation", "t": "test"}


def test_held_out_rows_are_evaluated_and_not_trained_on():
    """Training with held-out rows equals training without them."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 3, generator=generator)
    rows = [Environment(n, inputs, (inputs[:, 0] > 0).float()) for n in ("a", "b", "t")]
    own = EnvironmentSet("own", tuple(rows), Binary(), test=("t",))
    result = envariant.train(own, "erm", holdout_fraction=0.3, steps=4, evaluate_every=4, model="linear")
    assert result.record.sizes == {"a": 140, "a (validation)": 60, "b": 140, "b (validation)": 60, "t": 200}
    assert {r.environment for r in result.rows if r.role == "validation"} == {"a", "b"}
    # The same as training on the other rows alone.
    parted = ValidationSplit(own, 0.3).sample(result.record.seeds[0].data)
    alone = EnvironmentSet("own", (parted["a"], parted["b"], parted["t"]), Binary(), test=("t",))
    other = envariant.train(alone, "erm", steps=4, evaluate_every=4, model="linear")
    assert [r for r in result.rows if r.role != "validation"] == other.rows


@pytest.mark.parametrize("share", [-0.1, 1.0, 1e-6])
def test_a_share_that_leaves_a_part_empty_is_rejected(share):
    with pytest.raises(EnvariantError, match="holdout_fraction"):
        envariant.train("colored-digits", "erm", steps=1, holdout_fraction=share)
