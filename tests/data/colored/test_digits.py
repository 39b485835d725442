"""Colored digits: the construction over scikit-learn's 1,797 digits, checked against those digits."""

import math
from importlib import import_module

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from envariant.core.errors import EnvariantError
from envariant.data import ColoredDigits, colored_digits

# Not by its name: the package has a function of the same.
MODULE = import_module("envariant.data.colored.digits")


@pytest.fixture(scope="module")
def drawn():
    return ColoredDigits().sample(0)


def test_three_environments_of_599_rows_share_out_all_digits(drawn):
    assert drawn.names == ("flip-0.2", "flip-0.1", "flip-0.9")
    assert [len(e) for e in drawn.environments] == [599] * 3
    assert drawn.roles() == {"flip-0.2": "train", "flip-0.1": "train", "flip-0.9": "test"}
    counts = sum(np.bincount(e.attributes["digit"], minlength=10) for e in drawn.environments)
    assert counts.tolist() == np.bincount(load_digits().target).tolist()


def test_every_image_is_its_digit_in_the_channel_of_its_color(drawn):
    bunch = load_digits()
    order = np.random.RandomState(0).permutation(1797)
    for i, environment in enumerate(drawn.environments):
        index = order[i::3]
        assert torch.equal(environment.attributes["digit"], torch.from_numpy(bunch.target[index]).long())
        digit = torch.from_numpy(bunch.images[index] / 16).float()
        assert environment.inputs.shape == (599, 2, 8, 8)
        assert torch.equal(environment.inputs.sum(dim=1), digit)
        held = environment.inputs.flatten(2).any(dim=2).long()
        assert torch.equal(held.sum(dim=1), torch.ones(599).long())
        assert torch.equal(held.argmax(dim=1), environment.attributes["color"])
        assert torch.equal(environment.attributes["shape"], (environment.attributes["digit"] < 5).long())


@pytest.mark.parametrize("seed", range(3))
def test_agreements_are_within_four_standard_errors_of_theory(seed):
    source = ColoredDigits()
    for fact in source.facts(source.sample(seed)):
        for share, expected in (
            (fact.color_agreement, fact.theory.color_only),
            (fact.shape_agreement, fact.theory.shape_only),
        ):
            assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / fact.rows)


def test_samples_depend_on_the_seed_only(drawn):
    again, other = ColoredDigits().sample(0), ColoredDigits().sample(1)
    for a, b, c in zip(drawn.environments, again.environments, other.environments, strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.targets, b.targets)
        assert not torch.equal(a.targets, c.targets)


def test_sampling_leaves_global_generators_unchanged():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    ColoredDigits().sample(3)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


def test_without_noise_the_label_is_the_shape_and_with_certain_flips_the_color_is_known():
    drawn = colored_digits(label_noise=0.0, train_flips=(0.0, 1.0), test_flips=(0.5,)).sample(0)
    never, always, _ = drawn.environments
    for environment in drawn.environments:
        assert torch.equal(environment.targets.long(), environment.attributes["shape"])
    assert torch.equal(never.attributes["color"], never.targets.long())
    assert torch.equal(always.attributes["color"], 1 - always.targets.long())


def test_gray_digits_are_the_colored_ones_with_the_colors_added_up(drawn):
    gray = colored_digits(gray=True).sample(0)
    for g, c in zip(gray.environments, drawn.environments, strict=True):
        assert torch.equal(g.inputs, c.inputs.sum(dim=1, keepdim=True))
        assert torch.equal(g.targets, c.targets)


def test_there_may_be_several_test_flips(drawn):
    more = colored_digits(train_flips=(0.1, 0.2), test_flips=(0.5, 0.8, 0.9)).sample(0)
    assert list(more.roles().values()) == ["train"] * 2 + ["test"] * 3
    assert [len(e) for e in more.environments] == [360, 360, 359, 359, 359]


def test_chance_and_optimum_are_known(drawn):
    assert (drawn.known.chance, drawn.known.optimum) == (0.5, 0.75)
    assert colored_digits(label_noise=0.9).sample(0).known.optimum == 0.9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_noise": 1.2}, "colored-digits: label_noise must lie in [0, 1]; got 1.2"),
        ({"train_flips": (-0.1, 0.2)}, "must lie in [0, 1]; got -0.1"),
        ({"test_flips": (0.9, 0.9)}, "must differ from one another"),
    ],
)
def test_invalid_settings_are_rejected(settings, message):
    with pytest.raises(EnvariantError) as refusal:
        colored_digits(**settings)
    assert str(refusal.value).startswith("colored-digits: ")
    assert message in str(refusal.value)


@pytest.mark.parametrize("found", [True, False], ids=["the file", "through scikit-learn"])
def test_the_digits_are_scikit_learns(found, monkeypatch):
    if not found:
        monkeypatch.setattr(MODULE, "find_spec", lambda name: None)
    images, target = MODULE._digits()
    theirs = load_digits()
    assert np.array_equal(images, theirs.images)
    assert np.array_equal(target, theirs.target)
