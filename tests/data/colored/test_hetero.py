"""Colored MNIST with label noise by digit: counts of a second implementation (NumPy and torch seed 0)."""

import numpy as np
import pytest
import torch

from envariant.data import source
from envariant.data.colored import hetero, mnist
from envariant.data.colored.hetero import HARD_DIGITS, HeteroskedasticMNIST, shifted_rows


def counts(environment):
    """Hard rows, rows with label 1, rows whose color is the label, rows whose label is the shape."""
    label, color = environment.targets.long(), environment.attributes["color"]
    hard = torch.isin(environment.attributes["digit"], torch.tensor(HARD_DIGITS))
    agree = [hard, label == 1, color == label, label == environment.attributes["shape"]]
    return [int(rows.sum()) for rows in agree]


def test_shifted_environments_are_those_of_the_fixture():
    drawn = HeteroskedasticMNIST().sample(0)
    assert drawn.names == ("flip-0.2", "flip-0.1", "flip-0.9")
    assert [len(each) for each in drawn.environments] == [25_000, 25_000, 10_000]
    assert list(map(counts, drawn.environments)) == [
        [7_226, 12_635, 19_987, 20_316],
        [17_469, 12_629, 22_505, 17_358],
        [4_937, 4_967, 1_000, 7_465],
    ]
    assert drawn.known.optimum == pytest.approx(0.752, abs=5e-4)


def test_the_fourth_environment_of_the_code_is_not_shifted():
    digits, generator = mnist.cached(None), torch.Generator().manual_seed(0)
    order = np.random.RandomState(0).permutation(50_000)
    tests = np.arange(50_000, 60_000)
    for rows, flip, share in zip(
        (order[::2], order[1::2], tests), (0.2, 0.1, 0.9), (0.3, 0.7, 0.5), strict=True
    ):
        shifted = rows[shifted_rows(digits.train_labels[rows], share, generator)]
        hetero.colored("earlier", digits, shifted, flip, generator)
    assert counts(hetero.colored("fourth", digits, tests, 0.9, generator)) == [1_906, 5_051, 989, 8_419]


def test_dropped_rows_are_replaced_by_rows_of_the_other_kind():
    labels = np.repeat([0, 1, 5, 2], 500)
    for share, grown in ((0.7, True), (0.1, False)):
        rows = shifted_rows(labels, share, torch.Generator().manual_seed(1))
        assert len(rows) == len(labels)
        hard = np.isin(labels[rows], HARD_DIGITS)
        kept = np.flatnonzero(np.diff(rows) <= 0)[0] + 1
        assert np.all(hard[kept:] == grown)
        assert set(np.flatnonzero(np.isin(labels, HARD_DIGITS) == grown)) <= set(rows[:kept])


def test_the_source_is_found_by_name():
    assert source("colored-mnist-hetero") == HeteroskedasticMNIST()
    plain = source("colored-mnist-hetero(digit_shift=false)")
    assert plain == HeteroskedasticMNIST(digit_shift=False)
