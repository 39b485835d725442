"""IGA against the spec's numbers: a three-class head, and a logistic model of one output."""

import pytest
import torch

from algorithms.problems import train_context
from algorithms.spec_values import Bare, close, vector
from envariant.algorithms import IGA, Composition
from envariant.core.environments import EnvironmentBatch
from envariant.core.step_context import START
from envariant.core.tasks import Binary, Multiclass

X1, Y1 = [[1, 2], [0, 1], [-1, 1]], [0, 1, 1]
X2, Y2 = [[2, 0], [1, -1], [0, 0.5]], [1, 0, 1]


def step(algorithm, task, params, rows):
    inputs = torch.tensor([x for xs, _ in rows for x in xs], dtype=torch.float64)
    targets = task.cast(torch.tensor([y for _, ys in rows for y in ys]), "rows")
    sizes = tuple(len(ys) for _, ys in rows)

    def forward(params, inputs):
        logits = task.logits(inputs @ params["W"].T + params["b"])
        return inputs.new_zeros(len(inputs), 0), logits

    batch = EnvironmentBatch(inputs, targets, sizes, task)
    state = algorithm.init(params, train_context(len(sizes), batch.task))
    gradients, _, metrics = algorithm.gradients(Bare(forward), params, batch, state, START)
    return gradients, metrics


def test_values_of_the_specification_for_two_classes():
    params = {"W": torch.tensor([[0.5, -0.2], [0.1, 0.3]], dtype=torch.float64), "b": vector(0, 0.1)}
    for rows, weight, bias in (
        ((X1, Y1), (-0.312376, -0.237697, 0.312376, 0.237697), (-0.0149676, 0.0149676)),
        ((X2, Y2), (0.342117, 0.172239, -0.342117, -0.172239), (0.257182, -0.257182)),
    ):
        own, _ = step(Composition(), Multiclass(2), params, [rows])
        close(own["W"], *weight)
        close(own["b"], *bias)
    gradients, metrics = step(
        Composition(penalties=(IGA(1000),)), Multiclass(2), params, [(X1, Y1), (X2, Y2)]
    )
    assert float(metrics["risk"]) == pytest.approx(0.643601, rel=2e-6)
    assert float(metrics["iga penalty"]) == pytest.approx(0.670474, rel=2e-6)
    expected = torch.tensor([[286.578, -659.101], [-286.578, 659.101]], dtype=torch.float64)
    torch.testing.assert_close(gradients["W"], expected, rtol=3e-6, atol=0)
    torch.testing.assert_close(gradients["b"], vector(18.8454, -18.8454), rtol=3e-6, atol=0)


def test_values_of_the_specification_for_a_logistic_model():
    params = {"W": vector(0.5, -1)[None], "b": vector(0.1)}
    rows = [([[1, 0], [0, 1]], [1, 0]), ([[1, 1], [-1, 2]], [1, 0])]
    risks = [float(step(Composition(), Binary(), params, [own])[1]["risk"]) for own in rows]
    assert risks == pytest.approx([0.389321, 0.499926], rel=5e-6)
    gradients, metrics = step(Composition(penalties=(IGA(10),)), Binary(), params, rows)
    assert float(metrics["iga penalty"]) == pytest.approx(0.103797, rel=5e-6)
    torch.testing.assert_close(gradients["W"][0], vector(-0.416230, -0.931243), rtol=3e-6, atol=0)
    torch.testing.assert_close(gradients["b"], vector(-0.297346), rtol=3e-6, atol=0)
