"""Metrics equal scikit-learn's, and are NaN where they are undefined."""

import numpy as np
import pytest
from sklearn import metrics as sk

from envariant.core.errors import EnvariantError
from envariant.core.metrics import METRICS, default_metric, metric, probabilities
from envariant.core.multi_target import MultiLabel, MultiOutputRegression
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
def test_classification_metrics_equal_scikit_learn(name, binary, four):
    for task, z, y, truth in ((Binary(), Z, Y, binary), (Multiclass(4), MANY, OF_FOUR, four or binary)):
        shares = probabilities(z.astype(np.float64))
        assert metric(name, task).compute(task, z, y) == pytest.approx(truth(shares, y), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("RMSE", lambda f, y: np.sqrt(sk.mean_squared_error(y, f))),
        ("squared error", lambda f, y: sk.mean_squared_error(y, f)),
        ("R²", lambda f, y: sk.r2_score(y, f)),
    ],
)
def test_regression_metrics_equal_scikit_learn_in_the_unit_of_the_target(name, truth):
    plain, scaled = Regression(), Regression(scale=10.0, center=3.0)
    assert metric(name, plain).compute(plain, Z, REAL) == pytest.approx(truth(Z, REAL), rel=1e-5)
    assert metric(name, scaled).compute(scaled, Z, REAL) == pytest.approx(
        truth(10 * Z + 3, 10 * REAL + 3), rel=1e-5
    )


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    task, compute = Binary(), METRICS["calibration error"].compute
    # Three quarters correct, with confidence 0.75 and then 0.95.
    y = np.array([1, 1, 1, 0], dtype=np.float32)
    for confidence, gap in ((0.75, 0.0), (0.95, 0.2)):
        z = np.full(4, np.log(confidence / (1 - confidence)), dtype=np.float32)
        assert compute(task, z, y) == pytest.approx(gap, abs=1e-6)


@pytest.mark.parametrize("name", ["AUROC", "balanced accuracy"])
def test_a_single_class_gives_nan(name):
    assert np.isnan(METRICS[name].compute(Binary(), Z, np.ones_like(Y)))


def test_a_missing_class_is_left_out_of_the_mean():
    shares = probabilities(MANY[OF_FOUR < 3])
    y = OF_FOUR[OF_FOUR < 3]
    truth = np.mean([sk.roc_auc_score(y == k, shares[:, k]) for k in range(3)])
    assert METRICS["AUROC"].compute(Multiclass(4), MANY[OF_FOUR < 3], y) == pytest.approx(truth)


def test_an_unknown_or_inapplicable_metric_is_rejected():
    with pytest.raises(EnvariantError, match=r"unknown metric 'acuracy'; did you mean 'accuracy'\?"):
        metric("acuracy", Binary())
    with pytest.raises(
        EnvariantError, match="metric 'RMSE' does not apply to binary tasks; use one of accuracy, "
    ):
        metric("RMSE", Binary())
    with pytest.raises(
        EnvariantError, match="'AUROC' does not apply to regression tasks; use one of squared error"
    ):
        metric("AUROC", Regression())


@pytest.mark.parametrize("written", ["auroc", "Auroc", "AUROC"])
def test_the_case_of_a_metric_name_does_not_matter(written):
    assert metric(written, Binary()) is METRICS["AUROC"]
    assert metric("r2", Regression()) is metric("R²", Regression()) is METRICS["R²"]


def test_direction_decides_gain_best_and_worst():
    accuracy, loss = METRICS["accuracy"], METRICS["log loss"]
    assert accuracy.gain(0.9, 0.7) == pytest.approx(0.2)
    assert loss.gain(0.9, 0.7) == pytest.approx(-0.2)
    assert (accuracy.best([1, 2]), accuracy.worst([1, 2])) == (2, 1)
    assert (loss.best([1, 2]), loss.worst([1, 2])) == (1, 2)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_complete_and_better_for_better_predictions(name):
    entry = METRICS[name]
    task, z, y = (Regression(), Z, REAL) if entry.for_regression else (Binary(), Z, Y)
    perfect = REAL if entry.for_regression else 40 * (2 * Y - 1)
    assert entry.name == name
    assert entry.gain(entry.compute(task, perfect, y), entry.compute(task, z, y)) > 0
    assert entry.format(entry.compute(task, z, y))
    assert entry.format(float("nan")) == "–"


@pytest.mark.parametrize("task", [Binary(), Multiclass(3), Regression()])
def test_the_default_metric_of_a_task_agrees_with_the_task(task):
    assert default_metric(task).name == task.metric
    assert default_metric(task).higher_is_better == task.higher_is_better
    assert isinstance(task, default_metric(task).tasks)


@pytest.mark.parametrize("name", METRICS)
def test_values_of_many_samples_equal_those_of_one_at_a_time(name):
    draw = np.random.default_rng(0)
    metric = METRICS[name]
    tasks = (Regression(2.0, 3.0), Binary(), Multiclass(3), MultiLabel(2), MultiOutputRegression(2))
    for task in (each for each in tasks if isinstance(each, metric.tasks)):
        # Rounded logits are tied; samples of three rows have only one class now and then.
        logits = draw.normal(size=(12, *task.logits_shape)).round(1).astype(np.float32)
        kind = np.int64 if isinstance(task, Multiclass) else np.float32
        targets = draw.integers(max(2, task.outputs), size=(12, *task.target_shape)).astype(kind)
        samples = draw.integers(12, size=(40, 3))
        one_at_a_time = [metric.compute(task, logits[rows], targets[rows]) for rows in samples]
        np.testing.assert_allclose(
            metric.of_samples(task, logits, targets, samples), one_at_a_time, rtol=1e-12
        )
