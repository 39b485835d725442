"""The construction of colored digits: its closed forms, and what painting does to every image."""

import math

import numpy as np
import pytest
import torch

from envariant.data.colored import construction
from envariant.data.colored.construction import entropy, theory


@pytest.mark.parametrize(
    ("flip", "best_accuracy", "best_risk", "color_risk"),
    [
        (0.2, 0.80, 0.415291, 0.500402),
        (0.1, 0.90, 0.276554, 0.325083),
        (0.9, 0.90, 0.276554, 0.325083),
        (0.15, 0.85, 0.354463, 0.422709),
        (0.5, 0.75, 0.562335, math.log(2)),
        (0.55, 0.75, 0.558577, 0.688139),
    ],
)
def test_theory_is_that_of_the_table(flip, best_accuracy, best_risk, color_risk):
    known = theory(0.25, flip)
    assert known.shape_only == 0.75
    assert known.color_only == pytest.approx(1 - flip, abs=1e-12)
    assert known.bayes == pytest.approx(best_accuracy, abs=1e-12)
    assert known.bayes_risk == pytest.approx(best_risk, abs=5.1e-7)
    assert entropy(flip) == pytest.approx(color_risk, abs=5.1e-7)
    assert entropy(0.25) == pytest.approx(0.562335, abs=5.1e-7)


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("flip", [0.0, 0.2, 0.25, 0.6, 1.0])
def test_theory_equals_enumeration_of_all_cases(noise, flip):
    # P(s, c, y) written out; the best rule and its risk follow from the eight numbers alone.
    joint = np.zeros((2, 2, 2))
    for s in (0, 1):
        for y in (0, 1):
            for c in (0, 1):
                joint[s, c, y] = 0.5 * (noise if y != s else 1 - noise) * (flip if c != y else 1 - flip)
    cells = joint.sum(axis=2, keepdims=True)
    given = np.divide(joint, cells, out=np.ones_like(joint), where=joint > 0)
    known = theory(noise, flip)
    assert known.bayes == pytest.approx(joint.max(axis=2).sum())
    assert known.bayes_risk == pytest.approx(-(joint * np.log(given)).sum(), abs=1e-12)


def test_knowing_both_never_beats_the_better_one_alone():
    for flip in np.linspace(0, 1, 21):
        assert theory(0.25, flip).bayes == pytest.approx(max(flip, 1 - flip, 0.75))


@pytest.fixture
def painted():
    images = torch.rand(8, 4, 4) * 0.9 + 0.1
    cases = torch.tensor([(s, a, b) for s in (0, 1) for a in (0, 1) for b in (0, 1)], dtype=torch.bool)
    shape, flipped_label, flipped_color = cases.T
    digits = torch.arange(8)
    environment = construction.colored_environment(
        "all", images, digits, shape, flipped_label=flipped_label, flipped_color=flipped_color
    )
    return images, cases.long(), environment


def test_the_label_is_shape_and_noise_and_the_color_is_label_and_flip(painted):
    _, cases, environment = painted
    shape, flipped_label, flipped_color = cases.T
    label = (shape + flipped_label) % 2
    assert environment.targets.tolist() == label.tolist()
    assert environment.attributes["shape"].tolist() == shape.tolist()
    assert environment.attributes["color"].tolist() == ((label + flipped_color) % 2).tolist()
    assert environment.attributes["digit"].tolist() == list(range(8))


def test_the_channel_of_the_color_holds_the_digit(painted):
    images, _, environment = painted
    for row, color in enumerate(environment.attributes["color"]):
        assert torch.equal(environment.inputs[row, color], images[row])
        assert not environment.inputs[row, 1 - color].any()


def test_grayscale_restores_the_digit(painted):
    images, _, environment = painted
    gray = construction.grayscale(environment)
    assert torch.equal(gray.inputs, images[:, None])
    assert torch.equal(gray.targets, environment.targets)
    assert gray.name == environment.name
    assert gray.attributes == environment.attributes


def test_rgb_is_standardized_in_red_and_green_and_empty_in_blue(painted):
    _, _, environment = painted
    rgb = construction.standardized(environment, 0.1307, 0.3081).inputs
    assert rgb.shape == (8, 3, 4, 4)
    assert torch.equal(rgb[:, :2], (environment.inputs - 0.1307) / 0.3081)
    assert not rgb[:, 2].any()


def test_downsampling_keeps_every_kth_row_and_column():
    images = np.arange(2 * 28 * 28).reshape(2, 28, 28).astype(np.uint8)
    for size in (28, 14, 7):
        k = 28 // size
        kept = construction.downsampled(images, size)
        assert kept.dtype == torch.float32
        assert kept.tolist() == (images[:, ::k, ::k].astype(np.float32) / np.float32(255)).tolist()
    assert float(construction.downsampled(np.full((1, 8, 8), 16, np.uint8), 8, most=16).max()) == 1.0
