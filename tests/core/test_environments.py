"""Environments, sets and batches; errors say what is wrong, where, and how to fix it."""

import math

import pytest
import torch

from envariant.core.conversion import joined
from envariant.core.environments import Environment, EnvironmentBatch, EnvironmentSet, ReferenceScores
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Binary, Multiclass, Regression


def environment(name="alpha", rows=4, width=3, targets=None):
    inputs = torch.arange(rows * width, dtype=torch.float32).reshape(rows, width)
    return Environment(name, inputs, torch.arange(rows) % 2 if targets is None else targets)


def pair(**settings):
    return EnvironmentSet("mine", (environment("alpha"), environment("beta", rows=7)), Binary(), **settings)


def refusal(call, *arguments, **settings):
    with pytest.raises(EnvariantError) as caught:
        call(*arguments, **settings)
    return str(caught.value)


def test_rows_returns_all_rows_or_the_requested_ones():
    e = environment(rows=5)
    assert len(e) == 5
    inputs, targets = e.rows()
    assert inputs is e.inputs
    assert targets is e.targets
    inputs, targets = e.rows(torch.tensor([4, 0]))
    assert torch.equal(inputs, e.inputs[[4, 0]])
    assert targets.tolist() == [0, 0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rows_with_missing_inputs_are_counted_and_the_first_is_named(bad):
    inputs = torch.zeros(6, 2, 3)
    inputs[2, 1, 0] = inputs[2, 0, 0] = inputs[4, 0, 2] = bad
    assert refusal(Environment, "ward 3", inputs, torch.zeros(6)) == (
        "environment 'ward 3': inputs hold NaN or infinity in 2 of 6 rows (first: row 2); "
        "fill in or remove them"
    )


def test_environment_without_rows_is_rejected():
    said = refusal(Environment, "ward 3", torch.zeros(0, 2), torch.zeros(0))
    assert said == "environment 'ward 3': has no rows; leave it out"


@pytest.mark.parametrize("shape", [(4,), (6,), ()])
def test_targets_of_another_length_are_rejected(shape):
    assert refusal(Environment, "ward 3", torch.zeros(5, 2), torch.zeros(shape)) == (
        f"environment 'ward 3': 5 rows of inputs need targets of shape (5,); got {shape}"
    )


@pytest.mark.parametrize("shape", [(5, 1), (5, 2)])
def test_targets_of_another_shape_than_the_tasks_are_rejected(shape):
    ward = Environment("ward 3", torch.zeros(5, 2), torch.zeros(shape))
    assert refusal(EnvironmentSet, "mine", (ward,), Binary()) == (
        f"environment 'ward 3': 5 rows of inputs need targets of shape (5,); got {shape}"
    )


def test_set_casts_targets_and_keeps_attributes_and_order():
    digit = torch.tensor([7, 8])
    marked = Environment("b", torch.zeros(2, 3), torch.tensor([0, 1]), {"digit": digit})
    both = EnvironmentSet("mine", (marked, environment("a")), Binary())
    assert both.names == ("b", "a")
    assert both.input_shape == (3,)
    assert both["b"].targets.dtype == torch.float32
    assert both["b"].attributes["digit"] is digit
    assert EnvironmentSet("mine", (marked,), Multiclass(2))["b"].targets.dtype == torch.int64


def test_set_samples_itself_for_every_seed():
    both = pair(test=("beta",), known=ReferenceScores(chance=0.5))
    assert both.sample(0) is both.sample(1) is both
    assert both.name == "mine"


def test_roles_follow_the_default_or_the_requested_test_environments():
    both = pair(test=("beta",))
    assert both.roles() == {"alpha": "train", "beta": "test"}
    assert both.roles(("alpha",)) == {"alpha": "test", "beta": "train"}
    assert both.roles(()) == {"alpha": "train", "beta": "train"}
    assert pair().roles() == {"alpha": "train", "beta": "train"}


UNKNOWN = "mine: unknown environment 'bta'; did you mean 'beta'? known: alpha, beta"
ALL = "mine: all environments are held out; none is left to train on"


def test_unknown_environment_is_rejected_with_a_suggestion():
    assert refusal(pair, test=("bta",)) == UNKNOWN
    assert refusal(pair().roles, ("bta",)) == UNKNOWN
    assert refusal(pair().__getitem__, "bta") == UNKNOWN


def test_holding_out_every_environment_is_rejected():
    assert refusal(pair, test=("beta", "alpha")) == ALL
    assert refusal(pair().roles, ("alpha", "beta")) == ALL


def test_inconsistent_set_is_rejected():
    make = EnvironmentSet
    assert refusal(make, "mine", (), Binary()) == "mine: has no environments"
    twice = (environment("alpha"), environment("beta"), environment("alpha"))
    assert refusal(make, "mine", twice, Binary()) == "mine: environment name 'alpha' is used twice"
    uneven = (environment("alpha"), environment("beta", width=2))
    assert refusal(make, "mine", uneven, Binary()) == (
        "mine: environment 'beta' has inputs of shape (2,), but 'alpha' has (3,)"
    )


def test_invalid_targets_are_reported_with_their_environment():
    wrong = environment("beta", targets=torch.tensor([0, 1, 2, 0]))
    assert refusal(EnvironmentSet, "mine", (environment("alpha"), wrong), Binary()) == (
        "environment 'beta': binary targets must be 0 or 1; got 0, 1, 2 "
        "(for more classes use Multiclass(classes=…))"
    )


def test_batch_splits_into_its_environments():
    parts = [environment(rows=n).rows() for n in (2, 5, 1)]
    inputs, targets = (joined(rows) for rows in zip(*parts, strict=True))
    batch = EnvironmentBatch(inputs, targets, (2, 5, 1), Binary())
    for whole, place in ((batch.inputs, 0), (batch.targets, 1)):
        for ours, part in zip(batch.split(whole), parts, strict=True):
            assert torch.equal(ours, part[place])
    assert joined([inputs]) is inputs


@pytest.mark.parametrize("sizes", [(4, 4, 4), (1, 5, 2), (3,), (1, 1)])
@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_mean_of_each_environment_equals_a_plain_loop(sizes, shape):
    values = torch.randn((sum(sizes), *shape), dtype=torch.float64)
    batch = EnvironmentBatch(values, torch.zeros(len(values)), sizes, Regression())
    expected, start = [], 0
    for size in sizes:
        expected.append(sum(values[start + i] for i in range(size)) / size)
        start += size
    torch.testing.assert_close(batch.per_environment_mean(values), torch.stack(expected))


def test_equal_and_unequal_sizes_have_the_same_mean():
    values = torch.randn(12, dtype=torch.float64)
    equal = EnvironmentBatch(values[:, None], values, (4, 4), Regression())
    padded = EnvironmentBatch(values[:, None], values, (4, 4, 1), Regression())
    torch.testing.assert_close(
        equal.per_environment_mean(values[:8]), padded.per_environment_mean(values[:9])[:2]
    )


@pytest.mark.parametrize("sizes", [(3, 3), (2, 4)])
@pytest.mark.parametrize("task", [Binary(), Multiclass(3), Regression()], ids=str)
def test_predicted_batch_has_losses_risks_and_derivatives(task, sizes):
    rows = sum(sizes)
    logits = torch.randn((rows,) if task.outputs == 1 else (rows, task.outputs))
    targets = task.cast(torch.arange(rows) % 2, "here")
    batch = EnvironmentBatch(torch.zeros(rows, 2), targets, sizes, task)
    predicted = batch.predicted(torch.zeros(rows, 0), logits)
    losses = task.losses(logits, targets)
    assert torch.equal(predicted.losses, losses)
    torch.testing.assert_close(predicted.risks, torch.stack([part.mean() for part in losses.split(sizes)]))
    derivatives = task.multiplier_derivatives(logits, targets)
    assert torch.equal(predicted.multiplier_derivatives(), derivatives)
