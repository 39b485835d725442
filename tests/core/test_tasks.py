"""Tasks against PyTorch's own losses and derivatives, and against the closed forms of the data's theory."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.functional import jacobian

from envariant.core.errors import EnvariantError
from envariant.core.tasks import Binary, Multiclass, Regression

ROWS = 40


def problem(task):
    """Logits and targets in float64."""
    generator = torch.Generator().manual_seed(0)
    shape = (ROWS,) if task.outputs == 1 else (ROWS, task.outputs)
    logits = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    targets = {
        "binary": torch.randint(2, (ROWS,), generator=generator).double(),
        "multiclass": torch.randint(task.outputs, (ROWS,), generator=generator),
        "regression": torch.randn(ROWS, generator=generator, dtype=torch.float64),
    }
    return logits, targets[task.name]


REFERENCES = [
    (Binary(), lambda z, y: F.binary_cross_entropy_with_logits(z, y, reduction="none")),
    (Multiclass(2), lambda z, y: F.cross_entropy(z, y, reduction="none")),
    (Multiclass(10), lambda z, y: -z.log_softmax(1)[torch.arange(len(y)), y]),
    (Regression(), lambda z, y: F.mse_loss(z, y, reduction="none")),
]
TASKS = [task for task, _ in REFERENCES]


@pytest.mark.parametrize(("task", "reference"), REFERENCES, ids=map(str, TASKS))
def test_losses_equal_pytorchs_for_each_row(task, reference):
    logits, targets = problem(task)
    torch.testing.assert_close(task.losses(logits, targets), reference(logits, targets))


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_multiplier_derivatives_are_the_derivatives_of_the_losses_at_a_multiplier_of_one(task):
    logits, targets = problem(task)
    one = torch.ones((), dtype=torch.float64)
    expected = jacobian(lambda s: task.losses(s * logits, targets), one)
    torch.testing.assert_close(task.multiplier_derivatives(logits, targets), expected)


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_irms_penalty_has_the_gradient_of_a_double_backward(task):
    logits, targets = problem(task)
    logits.requires_grad_()
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    risk = task.losses(scale * logits, targets).mean()
    (slope,) = torch.autograd.grad(risk, [scale], create_graph=True)
    (expected,) = torch.autograd.grad(slope**2, [logits])
    ours = task.multiplier_derivatives(logits, targets).mean() ** 2
    torch.testing.assert_close(torch.autograd.grad(ours, [logits])[0], expected)


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_extreme_logits_give_finite_losses_and_derivatives(task):
    logits, targets = problem(task)
    logits = 1e3 * logits.float()
    targets = targets.float() if targets.is_floating_point() else targets
    for values in (task.losses(logits, targets), task.multiplier_derivatives(logits, targets)):
        assert bool(torch.isfinite(values).all())


# The eight kinds of row of Colored MNIST: shape, color, label.
S, C, Y = (
    torch.tensor(v, dtype=torch.float64) for v in zip(*itertools.product((0, 1), repeat=3), strict=True)
)


def weights(flip):
    shape, color = (S == Y).double(), (C == Y).double()
    return 0.5 * (0.25 + 0.5 * shape) * (flip + (1 - 2 * flip) * color)


def signed(value):
    return 2 * value - 1


def pooled_optimum():
    """log P(y = 1 | s, c) / P(y = 0 | s, c) at the mean flip 0.15."""
    return signed(S) * math.log(3) + signed(C) * math.log(0.85 / 0.15)


@pytest.mark.parametrize(
    ("logits", "risks", "gradients"),
    [
        (0 * S, (0.693147, 0.693147), (0, 0)),
        (signed(S) * math.log(3), (0.562335, 0.562335), (0, 0)),
        (signed(C) * math.log(17 / 3), (0.335979, 0.509439), (-0.0867301, 0.0867301)),
        (pooled_optimum(), (0.286005, 0.422921), (-0.0576960, 0.0576960)),
    ],
    ids=["zero", "shape only", "color only", "pooled optimum"],
)
def test_risks_and_irm_gradients_of_known_predictors_at_flips_0_1_and_0_2(logits, risks, gradients):
    losses, slopes = Binary().losses(logits, Y), Binary().multiplier_derivatives(logits, Y)
    for flip, risk, gradient in zip((0.1, 0.2), risks, gradients, strict=True):
        assert float(weights(flip) @ losses) == pytest.approx(risk, abs=5e-7)
        assert float(weights(flip) @ slopes) == pytest.approx(gradient, abs=5e-8)


def test_pooled_optimum_fails_where_the_color_misleads():
    risk = weights(0.9) @ Binary().losses(pooled_optimum(), Y)
    assert float(risk) == pytest.approx(1.381331, abs=5e-7)
    assert float(weights(0.9) @ Binary().scores(pooled_optimum(), Y).double()) == pytest.approx(0.1)


def test_binary_scores_count_a_logit_above_zero_as_one():
    scores = Binary().scores(torch.tensor([0.1, 0.0, -0.1, 0.1]), torch.tensor([1.0, 0.0, 1.0, 0.0]))
    assert scores.tolist() == [1, 1, 0, 0]


def test_multiclass_scores_count_the_largest_logit():
    scores = Multiclass(3).scores(torch.tensor([[0.0, 2, 1], [0, 2, 1]]), torch.tensor([1, 2]))
    assert scores.tolist() == [1, 0]


def test_regression_scores_are_squared_errors():
    assert Regression().scores(torch.tensor([1.0, -1.0]), torch.tensor([3.0, -1.0])).tolist() == [4, 0]


def test_two_classes_with_opposite_logits_are_the_binary_task():
    logits, targets = problem(Binary())
    pair, numbers = torch.stack([-logits / 2, logits / 2], dim=1), targets.long()
    for measure in ("losses", "multiplier_derivatives", "scores"):
        ours = getattr(Multiclass(2), measure)(pair, numbers)
        torch.testing.assert_close(ours, getattr(Binary(), measure)(logits, targets))


def test_chance_is_equal_odds_and_undefined_for_regression():
    assert [t.chance for t in (Binary(), Multiclass(2), Multiclass(10))] == [0.5, 0.5, 0.1]
    assert Regression().chance is None


def test_raw_output_gets_the_shape_of_the_tasks_logits():
    assert Binary().logits(torch.zeros(5, 1)).shape == (5,)
    assert Regression().logits(torch.zeros(5)).shape == (5,)
    assert Multiclass(3).logits(torch.zeros(5, 3)).shape == (5, 3)


@pytest.mark.parametrize(
    ("task", "given", "cast"),
    [
        (Binary(), torch.tensor([0, 1]), torch.tensor([0.0, 1.0])),
        (Binary(), torch.tensor([False, True]), torch.tensor([0.0, 1.0])),
        (Multiclass(3), torch.tensor([0.0, 2.0]), torch.tensor([0, 2])),
        (Multiclass(3), torch.tensor([0, 2], dtype=torch.int8), torch.tensor([0, 2])),
        (Regression(), torch.tensor([1, 2]), torch.tensor([1.0, 2.0])),
        (Regression(), torch.tensor([0.5]), torch.tensor([0.5])),
    ],
)
def test_targets_are_cast_to_the_tasks_type(task, given, cast):
    ours = task.cast(given, "here")
    assert ours.dtype == cast.dtype
    assert torch.equal(ours, cast)


@pytest.mark.parametrize(
    ("task", "targets", "message"),
    [
        (Binary(), [0, 1, 2], "here: binary targets must be 0 or 1; got 0, 1, 2 "
         "(for more classes use Multiclass(classes=…))"),
        (Binary(), [-1.0, 1.0], "here: binary targets must be 0 or 1; got -1, 1 "
         "(for more classes use Multiclass(classes=…))"),
        (Multiclass(3), [0, 3], "here: targets must be whole numbers from 0 to 2; got 0, 3"),
        (Multiclass(3), [0.5, 1.0], "here: targets must be whole numbers from 0 to 2; got 0.5, 1"),
        (Multiclass(3), [-1, 0, 1, 2, 3, 4], "here: targets must be whole numbers from 0 to 2; "
         "got -1, 0, 1, 2, 3, …"),
        (Regression(), [0.0, math.nan], "here: targets hold NaN or infinity; remove those rows"),
        (Regression(), [math.inf], "here: targets hold NaN or infinity; remove those rows"),
    ],
)  # fmt: skip
def test_invalid_targets_are_rejected(task, targets, message):
    with pytest.raises(EnvariantError) as refusal:
        task.cast(torch.tensor(targets), "here")
    assert str(refusal.value) == message


@pytest.mark.parametrize("task", [Binary(), Multiclass(3)], ids=str)
def test_missing_label_is_rejected(task):
    with pytest.raises(EnvariantError, match=r"^here: .*targets must be .*got 0, nan"):
        task.cast(torch.tensor([0.0, math.nan]), "here")


def test_targets_of_one_class_are_valid():
    with pytest.raises(EnvariantError, match=r"^Multiclass: classes must be at least 2, got 1$"):
        Multiclass(1)


@pytest.mark.parametrize(
    ("task", "targets", "outputs"),
    [
        (Binary(), torch.tensor([0.0, 1, 1, 1]), 1),
        (Multiclass(3), torch.tensor([0, 1, 1, 2, 2, 2]), 3),
        (Regression(), torch.tensor([1.0, 2, 6]), 1),
    ],
)
def test_constant_loss_is_the_smallest_of_any_constant_prediction(task, targets, outputs):
    said = torch.zeros(outputs, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([said], max_iter=200, tolerance_grad=1e-12)

    def loss():
        optimizer.zero_grad()
        same = said.expand(len(targets), outputs)
        value = task.losses(same[:, 0] if outputs == 1 else same, targets).mean()
        value.backward()
        return value

    optimizer.step(loss)
    assert task.constant_loss(targets) == pytest.approx(loss().item(), abs=1e-8)


def test_constant_loss_of_one_class_is_zero():
    assert Binary().constant_loss(torch.ones(5)) == 0
