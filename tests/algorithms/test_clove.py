"""CLOvE: the spec's calibration errors."""

import pytest
import torch

from algorithms.problems import train_context
from algorithms.spec_values import close, predicted, vector
from envariant.algorithms import CLOvE, Composition
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Binary, Regression

P, Y = vector(0.9, 0.6, 0.2, 0.7), vector(1, 0, 0, 1)
SEEN = predicted(Binary(), torch.logit(P), Y, (4,))


def test_values_of_the_specification():
    sure, right = Binary().confidence(SEEN.logits, Y)
    close(right, 1, 0, 1, 1)
    close(sure, 0.9, 0.6, 0.8, 0.7)
    close(CLOvE(1.0, width=0.4).penalty(SEEN, {})[0], 0.0111488)
    close(CLOvE(1.0, width=0.2).penalty(SEEN, {})[0], 0.0178562)


def test_the_gradient_is_finite_for_undecided_predictions():
    z = vector(0.0, 1.0)
    found = torch.func.grad(lambda z: CLOvE(1.0).penalty(predicted(Binary(), z, Y[:2], (2,)), {})[0])(z)
    assert bool(torch.isfinite(found).all())


def test_regression_is_rejected():
    seen = predicted(Regression(), P, Y, (4,))
    with pytest.raises(
        EnvariantError, match="'clove' needs class probabilities, which regression does not produce"
    ):
        CLOvE().penalty(seen, {})
    with pytest.raises(
        EnvariantError, match="clove: needs a classification task, but the task is regression"
    ):
        Composition(penalties=(CLOvE(),)).init({}, train_context(2, Regression()))
