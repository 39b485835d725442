"""CAD and CondCAD: the spec's contrasts."""

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
        (False, False, False, -8.57718),
        (False, False, True, -3.33712),
        (True, True, False, 0.00191867),
        (True, True, True, 0.00328246),
        (True, False, False, -17.8619),
        (True, False, True, -9.59135),
    ],
)
def test_values_of_the_specification(conditional, flipped, normalized, expected):
    part = CAD(1.0, 0.1, conditional, flipped, normalized)
    close(part.of_rows(Q, LABELS_Q, OWNERS_Q), expected)


def test_rows_without_partners_leave_no_nan_in_the_gradient():
    part = CAD(1.0)
    found = torch.func.grad(lambda q: part.of_rows(q, LABELS_Q, torch.zeros(5, dtype=torch.long)))(Q)
    assert not bool(found.any())
    lonely = torch.arange(5)
    assert not bool(torch.func.grad(lambda q: part.of_rows(q, lonely, OWNERS_Q))(Q).any())


def test_a_temperature_of_zero_is_rejected():
    with pytest.raises(EnvariantError, match="CAD: temperature must be positive, got 0"):
        CAD(temperature=0.0)
