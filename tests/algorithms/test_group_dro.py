"""GroupDRO: the spec's weights, step by step."""

import pytest
import torch

from algorithms.problems import train_context
from algorithms.spec_values import close, vector, with_risks
from envariant.algorithms import GroupDRO
from envariant.core.tasks import Regression


@pytest.mark.parametrize(
    ("rate", "updates"),
    [
        (
            0.1,
            [((0.327182, 0.361592, 0.311225), 1.20598), ((0.319873, 0.390694, 0.289433), 1.24598)],
        ),
        (0.01, [((0.332772, 0.336116, 0.331112), 1.17056), ((0.332198, 0.338909, 0.328893), 1.17446)]),
    ],
)
def test_values_of_the_specification(rate, updates):
    part, seen = GroupDRO(rate), with_risks(vector(1, 2, 0.5))
    state = part.init({"any": vector(0)}, train_context(3, Regression()))
    for weights, loss in updates:
        found, state = part.risk(seen, state)
        close(state["log_weights"].exp(), *weights)
        close(found, loss)


def test_small_weights_can_grow_again():
    """Where exp(−1000) is 0 in every precision, its logarithm is not."""
    part = GroupDRO(1.0)
    state = part.init({"any": vector(0)}, train_context(2, Regression()))
    _, state = part.risk(with_risks(vector(1000, 0)), state)
    _, state = part.risk(with_risks(vector(0, 1000)), state)
    close(state["log_weights"].exp(), 0.5, 0.5)


def test_weights_have_no_gradient():
    risks = vector(1, 2, 0.5).requires_grad_()
    part = GroupDRO(0.1)
    found, state = part.risk(with_risks(risks), part.init({"any": vector(0)}, train_context(3, Regression())))
    torch.testing.assert_close(torch.autograd.grad(found, risks)[0], state["log_weights"].exp())
