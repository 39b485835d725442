"""CAD and CondCAD: the spec's contrasts."""

import math

import pytest
import torch

from algorithms.spec_values import LABELS_Q, OWNERS_Q, Q, close
from envariant.algorithms import CAD
from envariant.core.errors import EnvariantError


@pytest.mark.parametrize(
    ("conditional", "flipped", "normalized", "expected"),
    [
        (False, True, False, 2.85909),
        (False, True, True, 2.09535),
        (True, True, False, 0.00191867),
        (True, True, True, 0.00328246),
        (True, False, False, -17.8619),
        (True, False, True, -9.59135),
    ],
)
def test_values_of_the_specification(conditional, flipped, normalized, expected):
    part = CAD(1.0, 0.1, conditional, flipped, normalized)
    close(part.of_rows(Q, LABELS_Q, OWNERS_Q), expected)


@pytest.mark.parametrize("conditional", [False, True])
def test_without_flipping_a_row_is_not_among_the_rows_of_its_environment(conditional):
    """In the specification's numbers, which are the released code's, it is."""
    values = []
    for i in range(5):
        others = [k for k in range(5) if k != i]
        alike = [k for k in others if LABELS_Q[k] == LABELS_Q[i]]
        among = alike if conditional else others
        near = [k for k in among if OWNERS_Q[k] == OWNERS_Q[i]]
        if alike and near:
            up, down = (sum(math.exp(float(Q[i] @ Q[k]) / 0.1) for k in some) for some in (near, among))
            values.append(0.1 / 0.07 * math.log(up / down))
    part = CAD(1.0, 0.1, conditional, flipped=False)
    close(part.of_rows(Q, LABELS_Q, OWNERS_Q), sum(values) / len(values))


def test_without_flipping_a_row_alone_in_its_environment_is_left_out():
    owners = torch.tensor([0, 1, 1, 1, 1])
    part = CAD(1.0, 0.1, flipped=False)
    short, long = (torch.cat([scale * Q[:1], Q[1:]]) for scale in (1.0, 1e-6))
    slopes = [
        torch.func.grad(lambda q: part.of_rows(q, LABELS_Q, owners))(rows)[1:] for rows in (short, long)
    ]
    assert all(bool(slope.isfinite().all()) for slope in slopes)
    assert float(part.of_rows(short, LABELS_Q, owners)) < 0


def test_rows_without_partners_leave_no_nan_in_the_gradient():
    part = CAD(1.0)
    found = torch.func.grad(lambda q: part.of_rows(q, LABELS_Q, torch.zeros(5, dtype=torch.long)))(Q)
    assert not bool(found.any())
    lonely = torch.arange(5)
    assert not bool(torch.func.grad(lambda q: part.of_rows(q, lonely, OWNERS_Q))(Q).any())


def test_a_temperature_of_zero_is_rejected():
    with pytest.raises(EnvariantError, match="CAD: temperature must be positive, got 0"):
        CAD(temperature=0.0)
