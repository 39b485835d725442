"""Rotation of 8-bit images: digests of Pillow's results, and Pillow itself where it is installed."""

import hashlib

import numpy as np
import pytest

from envariant.data.rotated.rotation import rotated

NOISE = np.random.RandomState(0).randint(0, 256, (1, 28, 28)).astype(np.uint8)
RAMP = np.arange(0, 250, 10, dtype=np.uint8).reshape(1, 5, 5)


@pytest.mark.parametrize(
    ("interpolation", "digests"),
    [
        (
            "bilinear",
            "61504c74693d34c4 91f67c425a6a0537 b0699fe963a0f6e2 9f7931f14c6f433e 2f42839a0dbae71b "
            "3b6422c957319cf0",
        ),
        (
            "bicubic",
            "61504c74693d34c4 98ba6b5c0bed9320 9ad78c8521b45f01 0e75ecaa7010480e 9c5c9d9f89b6860c "
            "4057f555a8655da4",
        ),
    ],
)
def test_digests_of_a_rotated_random_image(interpolation, digests):
    images = (rotated(NOISE, angle, interpolation) for angle in (0, 15, 30, 45, 60, 75))
    assert [hashlib.sha256(image.tobytes()).hexdigest()[:16] for image in images] == digests.split()


def test_a_ramp_is_rotated_as_by_pillow():
    assert rotated(RAMP, 15)[0].tolist() == [
        [5, 15, 28, 51, 69],
        [29, 51, 74, 96, 117],
        [74, 97, 120, 142, 165],
        [122, 143, 165, 188, 210],
        [170, 188, 211, 224, 234],
    ]
    assert rotated(RAMP, 45)[0].tolist() == [
        [0, 27, 63, 104, 0],
        [12, 49, 91, 134, 175],
        [35, 77, 120, 162, 204],
        [64, 105, 148, 190, 227],
        [0, 135, 176, 212, 0],
    ]
    assert rotated(RAMP, 15, "bicubic")[0, 0].tolist() == [0, 9, 28, 48, 63]
    assert rotated(RAMP, 45, "bicubic")[0, 0].tolist() == [0, 21, 57, 109, 0]


@pytest.mark.parametrize("shape", [(28, 28), (7, 12), (2, 3), (1, 1)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_no_pixel_differs_from_pillow(shape, interpolation):
    pil = pytest.importorskip("PIL.Image")
    images = np.random.default_rng(1).integers(0, 256, (3, *shape), dtype=np.uint8)
    mode = getattr(pil.Resampling, interpolation.upper())
    for angle in (15, 33.3, 75, 90, 123, 180, 270, -20, 360, 719):
        reference = [np.asarray(pil.fromarray(image).rotate(angle, resample=mode)) for image in images]
        assert np.array_equal(rotated(images, angle, interpolation), np.stack(reference))


def test_many_images_are_rotated_like_single_ones():
    images = np.random.default_rng(2).integers(0, 256, (1030, 4, 4), dtype=np.uint8)
    together = rotated(images, 30)
    assert np.array_equal(together[[0, 1023, 1024, 1029]], rotated(images[[0, 1023, 1024, 1029]], 30))
