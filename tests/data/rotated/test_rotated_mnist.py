"""Rotated MNIST: the images and digits that DomainBed draws with the same seed."""

import hashlib

import numpy as np
import pytest
import torch

from envariant import data
from envariant.core.errors import EnvariantError
from envariant.data.rotated.mnist import RotatedMNIST

DIGITS = {
    "0": [0, 1, 9, 5, 4, 5],
    "15": [9, 2, 5, 2, 2, 2],
    "30": [2, 5, 4, 8, 9, 2],
    "45": [9, 1, 8, 4, 6, 4],
    "60": [9, 2, 5, 0, 4, 1],
    "75": [0, 9, 0, 7, 2, 7],
}
# Sum and first 16 digits of the SHA-256 digest of the first 1,000 images.
IMAGES = {
    "bilinear": [
        (26016679, "bf47481fd97afed2"),
        (26215557, "ee29ac2eee812a18"),
        (26109211, "b10727e0f2b7b73e"),
        (26749920, "afc79d7e476411f4"),
        (26257805, "287787c0276bd6d8"),
        (26279368, "3d82758f0bd8f2d4"),
    ],
    "bicubic": [
        (26016679, "bf47481fd97afed2"),
        (26512794, "9d5e63164be6a976"),
        (26418633, "1dbe60a480a202ba"),
        (27053379, "a6e3ec1d5e99a617"),
        (26565912, "4ecafca234b145c6"),
        (26577662, "f5d8a284f1a78823"),
    ],
}


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_digits_and_images_are_those_of_the_fixture(interpolation):
    sample = RotatedMNIST(interpolation, rows=1000).sample(0)
    assert {e.name: e.targets[:6].tolist() for e in sample.environments} == DIGITS
    pixels = [e.input_store.gather().numpy() for e in sample.environments]
    measured = [(int(p.sum()), hashlib.sha256(p.tobytes()).hexdigest()[:16]) for p in pixels]
    assert measured == IMAGES[interpolation]


def test_environments_contain_all_digits():
    # Angle 0 and half turns need no interpolation, so this is fast.
    whole = RotatedMNIST(angles=(0, 360, 720, -360, 1080, -720), size=7).sample(0)
    assert [len(e) for e in whole.environments] == [11667] * 4 + [11666] * 2
    counts = torch.bincount(whole.environments[0].targets).tolist()
    assert counts == [1139, 1351, 1110, 1226, 1123, 1063, 1132, 1230, 1132, 1161]


def test_smaller_images_are_every_second_pixel_of_the_rotated_ones():
    large, small = (RotatedMNIST(size=size, rows=20).sample(3) for size in (28, 14))
    for before, after in zip(large.environments, small.environments, strict=True):
        assert np.array_equal(after.inputs, before.inputs[:, :, ::2, ::2])
        assert np.array_equal(after.targets, before.targets)


def test_the_name_states_the_settings():
    name = "rotated-mnist(interpolation=bicubic, size=14, rows=100)"
    assert data.source(name).name == name
    assert data.source("rotated-mnist(rows=5)").sample(0).test == ("75",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 20}, "size must be 28, 14 or 7; got 20"),
        ({"angles": (0, 0)}, "angles must be at least two different numbers"),
        ({"angles": (5,)}, "angles must be at least two different numbers"),
        ({"interpolation": "cubic"}, "interpolation"),
        ({"rows": 0}, "rows"),
    ],
)
def test_invalid_settings_are_errors(settings, message):
    with pytest.raises(EnvariantError, match=message):
        RotatedMNIST(**settings)
