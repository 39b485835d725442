"""Fishr: the spec's variances and penalties with memory, and gradients of rows as PyTorch finds them."""

import pytest
import torch

from algorithms.problems import train_context
from algorithms.spec_values import LABELS_1, LABELS_2, M_BIAS, M_WEIGHT, X1, X2, close, predicted, vector
from envariant.algorithms import Composition, Fishr
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Multiclass

TASK = Multiclass(2)
ROWS, LABELS = torch.cat([X1, X2]), torch.cat([LABELS_1, LABELS_2])
SEEN = predicted(TASK, ROWS @ M_WEIGHT.T + M_BIAS, LABELS, (3, 3), ROWS)
START_OF = Fishr(1.0).init({"any": vector(0)}, train_context(2, TASK, features=2, linear_head=True))


def test_values_of_the_specification_for_variances():
    close(SEEN.risks.mean(), 0.643601)
    found = Fishr(1.0).variances(SEEN)
    close(found["weight"][0], 0.0753558, 0.604763, 0.0753558, 0.604763)
    close(found["bias"][0], 0.214564, 0.214564)
    close(found["weight"][1], 0.510295, 0.0166128, 0.510295, 0.0166128)
    close(found["bias"][1], 0.171683, 0.171683)


def test_values_of_the_specification_for_the_penalty_with_memory():
    part, state = Fishr(1.0, memory=0.95), START_OF
    for expected in (0.0447443, 0.170140, 0.364073):
        value, state = part.penalty(SEEN, state)
        close(value, expected)
    for _ in range(600):
        value, state = part.penalty(SEEN, state)
    close(value, 17.8977)
    close(Fishr(1.0, memory=0.0).penalty(SEEN, state)[0], 0.0447443)


def test_the_closed_form_is_the_variance_of_per_row_gradients():
    def loss(head, h, y):
        return TASK.losses((h @ head[0].T + head[1])[None], y[None])[0]

    rows = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))((M_WEIGHT, M_BIAS), ROWS, LABELS)
    for centered in (True, False):
        found = Fishr(1.0, centered=centered).variances(SEEN)
        for key, g in zip(("weight", "bias"), rows, strict=True):
            for e, own in enumerate(g.split(3)):
                expected = own.var(dim=0, correction=0) if centered else own.square().mean(dim=0)
                torch.testing.assert_close(found[key][e], expected, rtol=1e-12, atol=1e-14)


def test_the_penalty_may_be_summed_over_environments_and_entries():
    v = Fishr(1.0).variances(SEEN)
    each = [torch.cat([v[key][e].flatten() for key in ("weight", "bias")]) for e in (0, 1)]
    found, _ = Fishr(1.0, memory=0.0, summed=True).penalty(SEEN, START_OF)
    # Of two, each is half of the difference away from the mean.
    torch.testing.assert_close(found, (each[0] - each[1]).square().sum() / 2)


def test_a_head_that_is_not_linear_is_rejected():
    with pytest.raises(EnvariantError, match="fishr: the model's head must be one linear layer"):
        Composition(penalties=(Fishr(),)).wrap_model(torch.nn.Identity(), train_context(2, TASK, features=2))


def test_a_memory_of_one_is_rejected():
    with pytest.raises(EnvariantError, match=r"Fishr: memory must be in \[0, 1\), got 1"):
        Fishr(memory=1.0)
