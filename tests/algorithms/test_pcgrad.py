"""PCGrad: what is given up, worked by hand."""

import torch

from algorithms.spec_values import close, vector
from envariant.algorithms import PCGrad
from envariant.core.step_context import START, StepContext


def combined(*gradients, context=START):
    return PCGrad().combine({"w": torch.stack(gradients)}, {}, context)[0]["w"]


def test_conflicting_gradients_are_projected():
    """(1, 0) and (−1, 1): each loses its part along the other: (½, ½) and (0, 1)."""
    close(combined(vector(1, 0), vector(-1, 1)), 0.25, 0.75)


def test_agreeing_gradients_are_averaged():
    close(combined(vector(1, 0), vector(1, 1), vector(0, 2)), 2 / 3, 1)


def test_opposite_and_zero_gradients_give_zero():
    close(combined(vector(1, -2), vector(-1, 2)), 0, 0)
    close(combined(vector(0, 0), vector(0, 0)), 0, 0)


def test_the_order_is_random():
    found = {
        tuple(combined(vector(1, 0), vector(-1, 1), vector(-1, -3), context=StepContext.at(step)).tolist())
        for step in range(40)
    }
    assert len(found) > 1
