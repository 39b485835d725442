"""Adam as a pure function: PyTorch's, step by step; and the trees that procedures make of parameters."""

import pytest
import torch

from algorithms.spec_values import vector
from envariant.algorithms.training_steps import adam
from envariant.core.step_context import StepContext


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9), (0.0, 0.9)])
def test_steps_equal_those_of_pytorch(betas):
    params = {"a": vector(1, -2, 3), "b": vector(0.5), "still": vector(9)}
    leaves = {name: params[name].clone().requires_grad_() for name in ("a", "b")}
    theirs = torch.optim.Adam(leaves.values(), lr=0.1, betas=betas, weight_decay=0.3)
    context = StepContext(learning_rate=0.1, weight_decay=0.3)
    ours, memory = params, adam.moments({name: params[name] for name in ("a", "b")})
    generator = torch.Generator().manual_seed(0)
    for _ in range(7):
        for leaf in leaves.values():
            leaf.grad = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
        theirs.step()
        gradients = {name: leaf.grad for name, leaf in leaves.items()}
        ours, memory = adam.step(ours, gradients, memory, context, beta1=betas[0], beta2=betas[1])
        for name, leaf in leaves.items():
            torch.testing.assert_close(ours[name], leaf.detach(), rtol=1e-12, atol=1e-14)
    assert ours["still"] is params["still"]


def test_first_step_equals_one_step_from_zero_moments():
    params, gradients = {"a": vector(1, 2)}, {"a": vector(3, -1e-9)}
    expected, _ = adam.step(params, gradients, adam.moments(params), StepContext(learning_rate=0.1))
    found = adam.first_step(gradients, 0.1)
    torch.testing.assert_close(params["a"] - found["a"], expected["a"], rtol=1e-12, atol=0)


@pytest.mark.parametrize("count", [1, 2, 10])
def test_bias_corrections_are_exact_in_float32(count):
    """With equal gradients every step has the size of the rate; 1 − 0.999ⁿ in float32 is off by up to 1e-5."""
    params, context = {"a": torch.zeros(1)}, StepContext(learning_rate=1.0)
    memory = adam.moments(params)
    for _ in range(count):
        before, (params, memory) = params, adam.step(params, {"a": torch.ones(1)}, memory, context)
    assert float(before["a"] - params["a"]) == pytest.approx(1, abs=1e-6)


def test_parameters_are_selected_by_the_first_part_of_their_names():
    params = {"head.weight": vector(1), "head-two.weight": vector(2), "featurizer.1.bias": vector(3)}
    assert list(adam.part(params, "head")) == ["head.weight"]
    assert list(adam.without(params, ("head",))) == ["head-two.weight", "featurizer.1.bias"]
    assert adam.gradients_of(lambda p: torch.zeros(()), {}) == {}
