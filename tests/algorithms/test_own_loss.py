"""Own losses: a task with another loss is trained with the derivatives of that loss, in every algorithm."""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F

import envariant
from envariant.algorithms import EIIL, IRM, RECIPES, Fishr, TrainContext
from envariant.core.environments import EnvironmentBatch
from envariant.core.metrics import METRICS
from envariant.core.tasks import Binary, Multiclass, Regression, Task
from envariant.testing import update
from envariant.testing.problem import Problem

SMOOTHING = 0.3


class Smoothed(Binary):
    """Label smoothing for one logit."""

    def losses(self, logits, targets):
        smooth = targets * (1 - SMOOTHING) + SMOOTHING / 2
        return F.binary_cross_entropy_with_logits(logits, smooth, reduction="none")


@dataclass(frozen=True)
class SmoothedClasses(Multiclass):
    """PyTorch's label smoothing."""

    def losses(self, logits, targets):
        return F.cross_entropy(logits, targets, reduction="none", label_smoothing=SMOOTHING)


class Huber(Regression):
    """Huber's loss."""

    def losses(self, logits, targets):
        return F.huber_loss(logits, targets, reduction="none", delta=0.5)


class Focal:
    """Loss as a mixin."""

    def losses(self, logits, targets):
        probability = torch.sigmoid((2 * targets - 1) * logits)
        return -((1 - probability) ** 2) * probability.log()


class FocalBinary(Focal, Binary):
    """Binary task whose loss comes from a mixin."""


class Again(Smoothed):
    """Subclass of a task with another loss."""


OWN = [Smoothed(), SmoothedClasses(3), Huber(), FocalBinary(), Again()]
names = [type(task).__name__ for task in OWN]


def rows(task, count=40):
    generator = torch.Generator().manual_seed(3)
    shape = (count,) if task.outputs == 1 else (count, task.outputs)
    logits = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    if isinstance(task, Regression):
        return logits, torch.randn(count, generator=generator, dtype=torch.float64)
    targets = torch.randint(max(2, task.outputs), (count,), generator=generator)
    return logits, targets if task.outputs > 1 else targets.double()


def slopes_of(task, logits, targets):
    """Derivatives of the losses with respect to a multiplier and to the logits, row by row, by autograd."""
    multiplier = torch.ones(len(logits), dtype=torch.float64, requires_grad=True)
    z = logits.detach().clone().requires_grad_()
    losses = task.losses(z * multiplier.reshape(-1, *[1] * (z.dim() - 1)), targets)
    return torch.autograd.grad(losses.sum(), [multiplier, z])


@pytest.mark.parametrize("task", OWN, ids=names)
def test_derivatives_are_those_of_the_given_loss(task):
    logits, targets = rows(task)
    multiplier, residuals = slopes_of(task, logits, targets)
    torch.testing.assert_close(task.multiplier_derivatives(logits, targets), multiplier)
    torch.testing.assert_close(task.residuals(logits, targets), residuals)


@pytest.mark.parametrize("task", OWN, ids=names)
@pytest.mark.parametrize("form", ["squared", "halves", "dummies"])
def test_irms_penalty_and_its_gradient_are_those_of_the_given_loss(task, form):
    logits, targets = rows(task)
    batch = EnvironmentBatch(logits[:, None], targets, (16, 24), task)

    def reference(z):
        total = torch.zeros((), dtype=torch.float64)
        for part, y in zip(z.split((16, 24)), targets.split((16, 24)), strict=True):
            scale, shift = (torch.ones((), dtype=torch.float64, requires_grad=True) for _ in range(2))
            losses = task.losses(scale * part + (shift - 1), y)
            if form == "halves":
                even, odd = (
                    torch.autograd.grad(each.mean(), scale, create_graph=True)[0]
                    for each in (losses[::2], losses[1::2])
                )
                total = total + even * odd / 2
                continue
            slopes = torch.autograd.grad(losses.mean(), [scale, shift], create_graph=True)
            total = total + sum(s.square() for s in slopes[: 1 if form == "squared" else 2]) / 2
        return total

    z, same = (logits.clone().requires_grad_() for _ in range(2))
    penalty, _ = IRM(1.0, form).penalty(batch.predicted(logits[:, :0] if z.dim() > 1 else z[:, None], z), {})
    expected = reference(same)
    torch.testing.assert_close(penalty, expected)
    torch.testing.assert_close(torch.autograd.grad(penalty, z), torch.autograd.grad(expected, same))


@pytest.mark.parametrize("task", OWN, ids=names)
def test_fishrs_variances_are_those_of_per_row_gradients_of_the_given_loss(task):
    logits, targets = rows(task)
    features = torch.randn(40, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    batch = EnvironmentBatch(features, targets, (16, 24), task)
    context = TrainContext(("a", "b"), (16, 24), task, features=4)
    part = Fishr(memory=0.0)
    penalty, _ = part.penalty(batch.predicted(features, logits), part.init({"w": logits}, context))
    residuals = slopes_of(task, logits, targets)[1].reshape(40, -1)
    rows_of_gradients = torch.cat([residuals[:, :, None] * features[:, None], residuals[:, :, None]], dim=2)
    variances = [g.flatten(1).var(dim=0, correction=0) for g in rows_of_gradients.split((16, 24))]
    mean = (variances[0] + variances[1]) / 2
    torch.testing.assert_close(penalty, sum((v - mean).square().mean() for v in variances) / 2)


@pytest.mark.parametrize("task", [Smoothed(), Huber(), FocalBinary()], ids=lambda t: type(t).__name__)
def test_eiil_separates_rows_by_the_slope_of_the_given_loss(task):
    logits, targets = rows(task)
    expected = slopes_of(task, logits, targets)[0] > 0
    assert torch.equal(EIIL().environments(logits, targets, task), expected.long())


@dataclass(frozen=True)
class ByHand(Binary):
    """Label smoothing with derivatives worked out by hand."""

    def losses(self, logits, targets):
        return Smoothed.losses(self, logits, targets)

    def residuals(self, logits, targets):
        return torch.sigmoid(logits) - targets * (1 - SMOOTHING) - SMOOTHING / 2


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_algorithm_takes_the_same_step_with_derivatives_by_hand_and_by_autograd(name):
    problem = Problem.example(Binary())
    steps = []
    for task in (Smoothed(), ByHand()):
        own = replace(problem, task=task, batch=replace(problem.batch, task=task))
        algorithm = RECIPES[name].default
        steps.append(update(algorithm, own.with_networks_of(algorithm)))
    for key, value in steps[0].items():
        torch.testing.assert_close(value, steps[1][key], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("task", OWN, ids=names)
def test_constant_loss_is_the_smallest_of_a_fine_grid(task):
    _, targets = rows(task)
    best = task.constant_loss(targets)
    grid = torch.randn(4000, task.outputs, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    means = [float(task.losses(task.logits(each.expand(len(targets), -1)), targets).mean()) for each in grid]
    assert best <= min(means) + 1e-9
    assert best == pytest.approx(min(means), abs=2e-2)


def test_probability_of_the_true_class_in_rsc_does_not_depend_on_the_loss():
    problem = Problem.example(Binary())
    own = replace(problem, task=Smoothed(), batch=replace(problem.batch, task=Smoothed()))
    part = RECIPES["rsc"].default.training_step
    masks = []
    for each in (problem, own):
        features, logits = each(each.params, each.batch.inputs)
        masks.append(part.mask(each, each.params, features, logits, each.batch))
    assert torch.equal(*masks)


def test_scores_and_log_loss_do_not_depend_on_the_loss():
    for own, plain in ((Smoothed(), Binary()), (SmoothedClasses(3), Multiclass(3)), (Huber(), Regression())):
        logits, targets = rows(own)
        assert torch.equal(own.scores(logits, targets), plain.scores(logits, targets))
        if not isinstance(own, Regression):
            values = [METRICS["log loss"].compute(t, logits.numpy(), targets.numpy()) for t in (own, plain)]
            assert values[0] == values[1]


class Minimal(Task):
    """Task from scratch that defines no derivatives."""

    name, metric, higher_is_better, chance, outputs = "minimal", "absolute error", False, None, 1

    def losses(self, logits, targets):
        return (logits - targets).abs()

    def confidence(self, logits, targets):
        raise NotImplementedError

    def scores(self, logits, targets):
        return (logits - targets).abs()

    def cast(self, targets, where):
        return targets.float()


def test_task_from_scratch_needs_no_derivatives():
    task = Minimal()
    logits, targets = torch.tensor([1.0, 4.0, -2.0]), torch.zeros(3)
    assert task.residuals(logits, targets).tolist() == [1, 1, -1]
    assert task.constant_loss(torch.tensor([0.0, 1.0, 5.0])) == pytest.approx(5 / 3, abs=1e-6)


def data(task):
    digits = envariant.data.colored_digits().sample(0)
    return envariant.EnvironmentSet("own", digits.environments, task, test=digits.test)


def test_another_loss_is_another_run(tmp_path):
    """A folder with a run of one loss is not resumed with another."""
    options = {"model": "linear", "steps": 2, "out": tmp_path}
    envariant.train(data(Binary()), "erm", **options)
    with pytest.raises(envariant.EnvariantError, match="other data under the same name"):
        envariant.train(data(Smoothed()), "erm", **options)
    assert data(Smoothed()).identity() == data(Smoothed()).identity() != data(Binary()).identity()
