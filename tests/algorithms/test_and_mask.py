"""AND-mask: the spec's numbers, the report's example, and what decides at the edge of the threshold."""

from fractions import Fraction

import hypothesis.extra.numpy as arrays
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algorithms.spec_values import G, vector
from envariant.algorithms import AndMask
from envariant.core.errors import EnvariantError
from envariant.core.step_context import START
from envariant.training.optimizers import StackedOptimizer, optimizer_config


def combine(gradients, threshold, mean="arithmetic", scaled=False):
    return AndMask(threshold, mean, scaled).combine({"w": gradients}, {}, START)[0]["w"]


@pytest.mark.parametrize(
    ("mean", "threshold", "scaled", "expected"),
    [
        ("arithmetic", 1, False, (2, -2, 0, 0)),
        ("arithmetic", 1, True, (4, -4, 0, 0)),
        ("arithmetic", 0.6, False, (2, -2, 0, 0.133333)),
        ("arithmetic", 0.6, True, (2.66667, -2.66667, 0, 0.177778)),
        ("arithmetic", 0.3, True, (2, -2, 0.333333, 0.133333)),
        ("geometric", 1, False, (1.81712, -1.81712, 0, 0)),
        ("geometric", 1, True, (3.63424, -3.63424, 0, 0)),
        ("geometric", 0.6, False, (1.81712, -1.81712, 0, 0.000144225)),
        ("geometric", 0.6, True, (2.42283, -2.42283, 0, 0.000192300)),
        ("geometric", 0, False, (1.81712, -1.81712, 0.629961, 0.000144225)),
    ],
)
def test_values_of_the_specification(mean, threshold, scaled, expected):
    torch.testing.assert_close(combine(G, threshold, mean, scaled), vector(*expected), rtol=1e-5, atol=0)


def test_an_empty_mask_gives_a_zero_gradient():
    found = combine(torch.stack([vector(1, -1), vector(-1, 1)]), 1, scaled=True)
    assert found.tolist() == [0.0, 0.0]


def test_one_environment_masks_only_zeros():
    torch.testing.assert_close(combine(vector(1, -1)[None], 1, scaled=True), vector(1, -1))
    torch.testing.assert_close(combine(vector(1, 0, -3, 0)[None], 1), vector(1, 0, -3, 0))
    torch.testing.assert_close(combine(vector(1, 0, -3, 0)[None], 1, scaled=True), vector(2, 0, -6, 0))


def test_example_of_the_course_report():
    """Three images' layers R, G and B, τ = 0.5: only the middle column is kept."""
    m1 = [[0.5, 1.3, -2.1], [3, 3.4, -5], [-6, 3.5, -2.8]]
    m2 = [[-1, 1, -2], [-3, 4, -5], [-6, 7, -8]]
    m3 = [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    found = combine(torch.tensor([m1, m2, m3], dtype=torch.float64), 0.5)
    assert (found != 0).tolist() == [[False, True, False]] * 3
    torch.testing.assert_close(found[:, 1], vector(3.3 / 3, 11.4 / 3, 17.5 / 3))


def test_each_tensor_is_scaled_by_its_own_sparsity():
    found, state, told = AndMask().combine({"half": G[:, :2], "all": G[:, :3], "none": G[:, 2:]}, {}, START)
    assert state == {}
    # Both of half, two of all, none of none; of all entries together.
    assert told["and-mask kept"].item() == pytest.approx(4 / 7)
    torch.testing.assert_close(found["half"], vector(2, -2))
    torch.testing.assert_close(found["all"], vector(3, -3, 0))
    assert found["none"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("environments", range(1, 13))
def test_a_threshold_of_k_of_e_is_independent_of_rounding(environments, dtype):
    for k in range(1, environments + 1):
        # In column j, j environments say up and the others nothing: |Σ sign| = j.
        columns = torch.arange(environments + 1)
        gradients = (torch.arange(environments)[:, None] < columns).to(dtype)
        kept = combine(gradients, k / environments) != 0
        assert kept.tolist() == [j >= k for j in range(environments + 1)]


@pytest.mark.parametrize(("typed", "kept"), [(0.666667, True), (0.66667, False)])
def test_a_threshold_with_six_digits_counts_as_two_of_three(typed, kept):
    """The tolerance of 1e-6 is for thresholds such as these, which lie a little above 2/3."""
    found = combine(torch.stack([vector(1), vector(1), vector(0)]), typed)
    assert bool(found != 0) is kept


@given(
    arrays.arrays(float, st.tuples(st.integers(1, 7), st.integers(1, 5)), elements=st.integers(-3, 3)),
    st.integers(0, 84),
    st.booleans(),
)
def test_result_equals_the_definition_entry_by_entry(gradients, threshold, scaled):
    tau, (environments, entries) = Fraction(threshold, 84), gradients.shape
    signs = [sum((x > 0) - (x < 0) for x in gradients[:, j].tolist()) for j in range(entries)]
    kept = [Fraction(abs(s), environments) >= tau for s in signs]
    scale = entries / max(1, sum(kept)) if scaled else 1.0
    expected = [k * gradients[:, j].mean() * scale for j, k in enumerate(kept)]
    found = combine(torch.from_numpy(gradients), float(tau), scaled=scaled)
    torch.testing.assert_close(found, vector(*expected), rtol=1e-9, atol=0)


@pytest.mark.parametrize(("threshold", "shown"), [(1.7, "1.7"), (-0.1, "-0.1"), (float("nan"), "nan")])
def test_a_threshold_out_of_range_is_rejected(threshold, shown):
    with pytest.raises(EnvariantError) as error:
        AndMask(threshold=threshold)
    assert str(error.value) == f"AndMask: threshold must be in [0, 1], got {shown}"


def test_an_unknown_mean_is_rejected():
    with pytest.raises(EnvariantError, match="AndMask: mean must be arithmetic or geometric; got harmonic"):
        AndMask(mean="harmonic")


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_weight_decay_is_applied_after_the_mask(weight_decay):
    """Adam's first step has length lr: a masked weight takes it towards 0 if it decays, and none if not."""
    weights = vector(1, -1, 1, -1)[None].float()
    adam = StackedOptimizer(optimizer_config("adam"), weights, [0.01], [weight_decay])
    adam.apply(combine(G, 1)[None].float(), torch.tensor([True]), 0)
    masked = vector(0.99, -0.99) if weight_decay else vector(1, -1)
    torch.testing.assert_close(weights[0, 2:], masked.float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(weights[0, :2], vector(0.99, -0.99).float(), rtol=1e-6, atol=0)


def test_values_of_the_specification_for_the_unit_tests_form():
    """Squared error; rows of two environments; a step of rate 1 without decay."""
    weight, bias = vector(0.5, -1.0), vector(0.1)
    rows = [
        (torch.tensor([[1, 0], [0, 1]], dtype=torch.float64), vector(1, 2)),
        (torch.tensor([[1, 1], [-1, 2]], dtype=torch.float64), vector(-1, 1)),
    ]
    each = []
    for x, y in rows:
        residual = 2 * (x @ weight + bias - y) / len(y)
        each.append({"weight": residual @ x, "bias": residual.sum()[None]})
    torch.testing.assert_close(each[0]["weight"], vector(-0.4, -2.9))
    torch.testing.assert_close(each[1]["weight"], vector(4, -6.2))
    gradients = {name: torch.stack([g[name] for g in each]) for name in each[0]}

    def step(threshold):
        return AndMask(threshold, inverse_sparsity=False, strict=True).combine(gradients, {}, START)[0]

    torch.testing.assert_close(step(0.9)["weight"], vector(0, -0.915459), rtol=1e-5, atol=0)
    torch.testing.assert_close(step(0.9)["bias"], vector(-3.05), rtol=1e-5, atol=0)
    assert not any(bool(g.any()) for g in step(1.0).values())
