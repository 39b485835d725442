"""Small differences of large numbers: kept by float32, or refused, and never lost without a word."""

import numpy as np
import pytest
import torch

from envariant import EnvironmentSet, Regression
from envariant.core.errors import EnvariantError
from envariant.core.single_precision import single_precision


@pytest.mark.parametrize(
    "column",
    [
        1.7e9 + np.arange(40),
        np.array([712345001, 712345002] * 20),
        1e6 + 1e-3 * np.arange(40),
        -(2**40) - np.arange(40),
    ],
)
def test_differences_that_float32_cannot_represent_are_refused(column):
    rows = np.stack([np.arange(40.0), column], axis=1)
    with pytest.raises(
        EnvariantError, match=r"'a': inputs are numbers near -?[\d.e+]+ in column 1 with deviations of"
    ):
        EnvironmentSet.from_arrays(rows, np.arange(40) % 2, ["a"] * 40)
    with pytest.raises(
        EnvariantError, match=r"'a': targets are numbers near .*, which float32 is too coarse to tell apart"
    ):
        EnvironmentSet.from_arrays(rows[:, :1], column, ["a"] * 40, task=Regression())


@pytest.mark.parametrize(
    "column",
    [
        np.full(40, 1.7e9),
        np.full(40, 0.1),
        np.array([0.3, 0.1 + 0.2] * 20),
        1.7e9 + 86_400 * np.arange(40),
        2020 + np.arange(40) % 2,
        1e-30 * np.arange(40),
        2**24 - np.arange(40),
    ],
)
def test_other_numbers_are_rounded(column):
    for values in (column, column[:, None]):
        rounded = single_precision(torch.from_numpy(np.asarray(values)), "x")
        torch.testing.assert_close(rounded, torch.from_numpy(np.asarray(values)).float(), rtol=0, atol=0)
