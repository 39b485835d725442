"""SAND-mask: the spec's masks."""

import pytest
import torch

from algorithms.spec_values import G, close, vector
from envariant.algorithms import SandMask
from envariant.algorithms.gradient_aggregators.sand_mask import sand_masked
from envariant.core.errors import EnvariantError


@pytest.mark.parametrize(
    ("threshold", "steepness", "expected"),
    [
        (1.0, 10.0, (0, 0, 0, 0)),
        (0.5, 10.0, (2.66659, -2.66659, 0, 0.177789)),
        (0.5, 0.1, (0.560327, -0.560327, 0, 0.458623)),
        (0.0, 0.01, (0.263237, -0.263237, 0.0250707, 0.488207)),
    ],
)
def test_values_of_the_specification(threshold, steepness, expected):
    close(sand_masked(G, threshold, steepness), *expected)


def test_single_and_identical_environments():
    close(sand_masked(vector(1, -2, 0.5, 0)[None], 0.5, 10.0), 1.33333, -2.66667, 0.666667, 0)
    twice = torch.stack([vector(1, 2)] * 2)
    close(sand_masked(twice, 0.5, 10.0), 1, 2)
    close(sand_masked(twice, 1.0, 10.0), 1e-7, 2e-7)


def test_the_published_threshold_is_rejected():
    with pytest.raises(EnvariantError, match=r"SandMask: threshold must be in \[0, 1\), got"):
        SandMask(threshold=1.0)
