"""Every metric is scikit-learn's own number, and says so where it is not defined."""

import numpy as np
import pytest
from sklearn import metrics as sk

from envariant.core.errors import EnvariantError
from envariant.core.metrics import METRICS, metric, probabilities
from envariant.core.tasks import Binary, Multiclass, Regression

RNG = np.random.default_rng(0)
Z = RNG.normal(size=300).astype(np.float32)
Y = (Z + RNG.normal(size=300) > 0.4).astype(np.float32)
MANY = RNG.normal(size=(300, 4)).astype(np.float32)
OF_FOUR = np.where(RNG.random(300) < 0.5, MANY.argmax(axis=1), RNG.integers(4, size=300))
REAL = (2 * Z + RNG.normal(size=300)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "binary", "four"),
    [
        ("accuracy", lambda p, y: sk.accuracy_score(y, p.argmax(1)), None),
        ("balanced accuracy", lambda p, y: sk.balanced_accuracy_score(y, p.argmax(1)), None),
        (
            "AUROC",
            lambda p, y: sk.roc_auc_score(y, p[:, 1]),
            lambda p, y: sk.roc_auc_score(y, p, multi_class="ovr", average="macro"),
        ),
        ("log loss", lambda p, y: sk.log_loss(y, p), None),
    ],
)
def test_metrics_of_classes_are_scikit_learns(name, binary, four):
    for task, z, y, truth in ((Binary(), Z, Y, binary), (Multiclass(4), MANY, OF_FOUR, four or binary)):
        shares = probabilities(task, z.astype(np.float64))
        assert metric(name, task).of(task, z, y) == pytest.approx(truth(shares, y), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("RMSE", lambda f, y: np.sqrt(sk.mean_squared_error(y, f))),
        ("squared error", lambda f, y: sk.mean_squared_error(y, f)),
        ("R²", lambda f, y: sk.r2_score(y, f)),
    ],
)
def test_metrics_of_numbers_are_scikit_learns_in_the_targets_own_unit(name, truth):
    plain, scaled = Regression(), Regression(scale=10.0, center=3.0)
    assert metric(name, plain).of(plain, Z, REAL) == pytest.approx(truth(Z, REAL), rel=1e-5)
    assert metric(name, scaled).of(scaled, Z, REAL) == pytest.approx(
        truth(10 * Z + 3, 10 * REAL + 3), rel=1e-5
    )


def test_calibration_is_0_where_certainty_is_success_and_the_gap_where_it_is_not():
    task, of = Binary(), METRICS["calibration error"].of
    # Three quarters right, said with certainty 0.75; then with certainty 0.95.
    y = np.array([1, 1, 1, 0], dtype=np.float32)
    for sure, gap in ((0.75, 0.0), (0.95, 0.2)):
        z = np.full(4, np.log(sure / (1 - sure)), dtype=np.float32)
        assert of(task, z, y) == pytest.approx(gap, abs=1e-6)


@pytest.mark.parametrize("name", ["AUROC", "balanced accuracy"])
def test_of_one_class_alone_there_is_no_number(name):
    assert np.isnan(METRICS[name].of(Binary(), Z, np.ones_like(Y)))


def test_a_class_that_is_missing_is_left_out_of_the_mean():
    shares = probabilities(Multiclass(4), MANY[OF_FOUR < 3])
    y = OF_FOUR[OF_FOUR < 3]
    truth = np.mean([sk.roc_auc_score(y == k, shares[:, k]) for k in range(3)])
    assert METRICS["AUROC"].of(Multiclass(4), MANY[OF_FOUR < 3], y) == pytest.approx(truth)


def test_a_metric_nobody_knows_or_for_another_task_is_refused():
    with pytest.raises(EnvariantError, match=r"unknown metric 'acuracy'; did you mean 'accuracy'\?"):
        metric("acuracy", Binary())
    with pytest.raises(EnvariantError, match="metric 'RMSE': is not for binary; take one of accuracy, "):
        metric("RMSE", Binary())
    with pytest.raises(
        EnvariantError, match="metric 'AUROC': is not for regression; take one of squared error"
    ):
        metric("AUROC", Regression())
