"""Losses by name against PyTorch's, torchvision's formula and SciPy; tasks with several targets per row."""

import functools

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn import metrics as sk

from envariant.core.environments import EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.losses import LOSSES, Huber, content, loss_named
from envariant.core.metrics import METRICS, default_metric
from envariant.core.multi_target import MultiLabel, MultiOutputRegression, task_named
from envariant.core.tasks import Binary, Multiclass, Regression
from envariant.data.tables import table as tables
from envariant.data.with_loss import with_loss

GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape):
    return 2 * torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


Z, Z3 = normal(30), normal(30, 3)
Y = torch.randint(2, (30,), generator=GENERATOR).double()
Y3 = torch.randint(3, (30,), generator=GENERATOR)
LABELS = torch.randint(2, (30, 3), generator=GENERATOR).double()
COUNTS = torch.poisson(torch.full((30,), 2.0, dtype=torch.float64), generator=GENERATOR)


def sigmoid_focal_loss(z, y, gamma):
    """Formula of `torchvision.ops.sigmoid_focal_loss` with alpha = −1."""
    p = torch.sigmoid(z)
    cross_entropy = F.binary_cross_entropy_with_logits(z, y, reduction="none")
    return cross_entropy * (1 - (p * y + (1 - p) * (1 - y))) ** gamma


def softmax_focal_loss(z, y, gamma):
    p = torch.softmax(z, 1)[torch.arange(len(y)), y]
    return -((1 - p) ** gamma) * p.log()


def smoothed(z, y, amount):
    return F.binary_cross_entropy_with_logits(z, y * (1 - amount) + amount / 2, reduction="none")


def pinball(f, y, level):
    each = [sk.mean_pinball_loss([b], [a], alpha=level) for a, b in zip(f, y, strict=True)]
    return torch.tensor(each, dtype=torch.float64)


def smoothed_classes(z, y, amount):
    return F.cross_entropy(z, y, reduction="none", label_smoothing=amount)


REFERENCES = [
    ("focal(gamma=2)", Binary(), Z, Y, sigmoid_focal_loss(Z, Y, 2)),
    ("focal(0.5)", Binary(), Z, Y, sigmoid_focal_loss(Z, Y, 0.5)),
    ("focal", Multiclass(3), Z3, Y3, softmax_focal_loss(Z3, Y3, 2)),
    ("focal", MultiLabel(3), Z3, LABELS, sigmoid_focal_loss(Z3, LABELS, 2).mean(1)),
    ("label-smoothing(0.2)", Binary(), Z, Y, smoothed(Z, Y, 0.2)),
    ("label-smoothing(0.2)", Multiclass(3), Z3, Y3, smoothed_classes(Z3, Y3, 0.2)),
    ("label-smoothing", MultiLabel(3), Z3, LABELS, smoothed(Z3, LABELS, 0.1).mean(1)),
    ("huber(delta=0.7)", Regression(), Z, COUNTS, F.huber_loss(Z, COUNTS, reduction="none", delta=0.7)),
    ("huber", MultiOutputRegression(3), Z3, LABELS, F.huber_loss(Z3, LABELS, reduction="none").mean(1)),
    ("quantile(0.9)", Regression(), Z, COUNTS, pinball(Z, COUNTS, 0.9)),
    ("poisson", Regression(), Z, COUNTS, F.poisson_nll_loss(Z, COUNTS, reduction="none")),
    ("cross-entropy", MultiLabel(3), Z3, LABELS, smoothed(Z3, LABELS, 0.0).mean(1)),
    ("mse", MultiOutputRegression(3), Z3, LABELS, F.mse_loss(Z3, LABELS, reduction="none").mean(1)),
]


@pytest.mark.parametrize(("loss", "task", "z", "y", "expected"), REFERENCES, ids=lambda v: str(v)[:25])
def test_losses_and_derivatives_equal_a_second_implementation(loss, task, z, y, expected):
    own = with_loss(task, loss)
    torch.testing.assert_close(own.losses(z, y), expected)
    leaf, scale = z.clone().requires_grad_(), torch.ones((), dtype=torch.float64, requires_grad=True)
    risk = own.losses(scale * leaf, y).sum()
    slope, residuals = torch.autograd.grad(risk, [scale, leaf])
    torch.testing.assert_close(own.residuals(z, y), residuals)
    torch.testing.assert_close(own.multiplier_derivatives(z, y).sum(), slope)


def test_irms_slope_is_that_of_the_given_loss():
    """With cross-entropy's slope, IRM would push towards other logits: −0.47 instead of −0.11."""
    z, y = torch.tensor([[4.12] + [0.0] * 8], dtype=torch.float64), torch.tensor([0])
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    slopes = {}
    for loss, smoothing in (("cross-entropy", 0.0), ("label-smoothing(0.1)", 0.1)):
        own = with_loss(Multiclass(9), loss)
        slopes[loss] = float(own.multiplier_derivatives(z, y).mean())
        risk = F.cross_entropy(scale * z, y, label_smoothing=smoothing)
        assert slopes[loss] == pytest.approx(float(torch.autograd.grad(risk, scale)[0]), abs=1e-12)
    assert [round(slope, 2) for slope in slopes.values()] == [-0.47, -0.11]


class Declared:
    """Squared error with a derivative in closed form, which is wrong on purpose."""

    def __call__(self, logits, targets):
        return (logits - targets).square()

    def residuals(self, logits, targets):
        return torch.full_like(logits, 7.0)


def test_declared_closed_form_is_used():
    assert with_loss(Regression(), Declared()).residuals(Z, Y).eq(7).all()


def test_poisson_predicts_counts_in_the_unit_of_the_targets():
    plain, scaled = (with_loss(Regression(s, c), "poisson") for s, c in ((1.0, 0.0), (2.0, 3.0)))
    torch.testing.assert_close(plain.predictions(Z), Z.exp())
    standardized = (COUNTS - 3) / 2
    torch.testing.assert_close(scaled.losses(Z, standardized), plain.losses(Z, COUNTS))
    torch.testing.assert_close(
        scaled.scores(scaled.predictions(Z), standardized), plain.scores(plain.predictions(Z), COUNTS)
    )
    with pytest.raises(EnvariantError, match="^here: the loss poisson needs targets of at least 0; got -1$"):
        plain.cast(torch.tensor([-1.0, 2.0]), "here")


def test_constant_loss_is_the_smallest_one():
    level = with_loss(Regression(), "quantile(0.9)")
    assert level.constant_loss(Z) == pytest.approx(
        float(pinball([Z.quantile(0.9)] * 30, Z, 0.9).mean()), abs=0.02
    )
    best = [float(smoothed(torch.logit(p).expand(30), y, 0).mean()) for y in LABELS.T for p in [y.mean()]]
    assert MultiLabel(3).constant_loss(LABELS) == pytest.approx(sum(best) / 3, abs=1e-6)
    assert MultiOutputRegression(3).constant_loss(Z3) == pytest.approx(float(Z3.var(0, correction=0).mean()))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            "mse",
            "^loss mse: is for numbers, but the task is binary; use one of cross-entropy, focal, label-sm",
        ),
        ("quantile(0.9)", "^loss quantile: is for numbers"),
        (Huber(), "^loss huber: is for numbers"),
        ("mse(2)", "^mse: takes no settings$"),
        ("focl", "^unknown loss 'focl'; did you mean 'focal'"),
        ("focal(gamma=-1)", "^focal: gamma must be at least 0, got -1$"),
        ("label-smoothing(1)", r"^label-smoothing: amount must be in \[0, 1\), got 1$"),
        (Binary, r"^loss must be a name .* or a Task, as in Binary\(…\); got"),
        (3, "^loss must be a name such as focal"),
    ],
)
def test_wrong_losses_are_one_sentence(loss, message):
    with pytest.raises(EnvariantError, match=message):
        with_loss(Binary(), loss)


class Own(Binary):
    """Task with its own loss."""

    def losses(self, logits, targets):
        return (logits - targets).square()


def test_loss_of_a_users_task_is_not_replaced():
    with pytest.raises(EnvariantError, match="the task Own of the data has its own loss"):
        with_loss(Own(), "focal")
    assert isinstance(with_loss(Binary(), Own()), Own)


class Shifted(Regression):
    """Regression with another loss."""

    def losses(self, logits, targets):
        return (logits - targets).abs()


def test_task_as_a_loss_keeps_the_unit_of_the_targets():
    own = with_loss(Regression(2.0, 3.0), Shifted())
    assert (type(own), own.scale, own.center) == (Shifted, 2.0, 3.0)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (torch.nn.BCEWithLogitsLoss(), r'got \(\); with PyTorch\'s losses, set reduction="none"'),
        (lambda z, y: z.detach(), "losses must be differentiable in the logits"),
        (lambda z, y: 1 / 0, "losses fails: division by zero"),
    ],
)
def test_functions_that_are_no_losses_are_one_error(loss, message):
    rows = {"inputs": torch.zeros(4, 1), "targets": [0, 1, 0, 1], "environments": [0, 0, 1, 1]}
    with pytest.raises(EnvariantError, match=message):
        EnvironmentSet.from_arrays(**rows, task=Binary(loss=loss))


def test_content_of_losses_tells_their_settings_apart():
    def scaled(factor):
        return lambda z, y: factor * (z - y).square()

    smooth = [torch.nn.CrossEntropyLoss(label_smoothing=s) for s in (0.1, 0.2)]
    pairs = [(scaled(1.0), scaled(2.0)), smooth, [functools.partial(scaled, k) for k in (1, 2)]]
    for first, second in pairs:
        assert content(first) == content(first) != content(second)
    for name in LOSSES:
        assert Binary(loss=loss_named(name)).identity() not in ("", Binary().identity())


def test_several_targets_are_read_from_arrays_and_frames():
    inputs, environments = np.arange(12.0).reshape(6, 2), [0, 0, 0, 1, 1, 1]
    labels = np.array([[0, 1], [1, 1], [0, 0]] * 2)
    read = EnvironmentSet.from_arrays(inputs, labels, environments)
    assert read.task == MultiLabel(2) == task_named("multi-label", 2)
    assert read["1"].targets.tolist() == labels[3:].tolist()
    assert EnvironmentSet.from_arrays(inputs, inputs + 0.5, environments).task == MultiOutputRegression(2)
    frame = {"a": inputs[:, 0], "y": inputs[:, 0], "z": inputs[:, 1], "where": environments}
    names = {"inputs": "a", "environment": "where"}
    both = EnvironmentSet.from_huggingface(frame, target=["y", "z"], **names)
    assert both["0"].targets.tolist() == inputs[:3].tolist()
    with pytest.raises(
        EnvariantError, match="a table has one target column; EnvironmentSet.from_huggingface"
    ):
        tables.read(pd.DataFrame(frame), ["y", "z"], "where")
    items = [(torch.zeros(2), torch.tensor([0.5, 1.0])), (torch.ones(2), torch.tensor([2.0, 3.0]))]
    assert EnvironmentSet.from_datasets({"a": items}).task == MultiOutputRegression(2)
    with pytest.raises(
        EnvariantError, match=r"needs one target per row; got shape \(6, 2\), which fits Multi"
    ):
        EnvironmentSet.from_arrays(inputs, labels, environments, task=Binary())
    with pytest.raises(EnvariantError, match=r"targets are missing in 1 of 6 rows \(first: row 0\)"):
        EnvironmentSet.from_arrays(inputs, np.where(inputs == 0, np.nan, inputs), environments)
    with pytest.raises(EnvariantError, match="^environment '0': multi-label targets must be 0 or 1; got 2$"):
        EnvironmentSet.from_arrays(inputs, labels * 2 - (labels > 1), environments, task=MultiLabel(2))


def test_metrics_of_several_targets_equal_scikit_learns():
    z, y, labels, task = Z3.numpy(), normal(30, 3).numpy(), LABELS.numpy(), MultiLabel(3)
    expected = {
        "label accuracy": 1 - sk.hamming_loss(labels, z > 0),
        "exact match": sk.accuracy_score(labels, z > 0),
        "AUROC": sk.roc_auc_score(labels, z),
        "log loss": np.mean(
            [sk.log_loss(a, 1 / (1 + np.exp(-b))) for a, b in zip(labels.T, z.T, strict=True)]
        ),
    }
    for name, value in expected.items():
        assert METRICS[name].compute(task, z, labels) == pytest.approx(value)
    regression = MultiOutputRegression(3)
    expected = {"squared error": sk.mean_squared_error(y, z), "R²": sk.r2_score(y, z)}
    for name, value in {**expected, "RMSE": expected["squared error"] ** 0.5}.items():
        assert METRICS[name].compute(regression, z, y) == pytest.approx(value)
    assert [default_metric(each).name for each in (task, regression)] == ["label accuracy", "squared error"]
