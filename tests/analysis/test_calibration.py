"""Calibration and the parts of a drop against general optimizers, known truth and simulations."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LinearRegression, LogisticRegression

from envariant.analysis.calibration import measure_calibration, split_drop
from envariant.core.errors import EnvariantError


def binary(rng, n, level=0.0, slope=1.0, scale=1.5):
    z = scale * rng.normal(size=n)
    return z, (level + slope * z + rng.logistic(size=n) > 0).astype(int)


def test_intercept_and_slope_equal_scikit_learns():
    z, y = binary(np.random.default_rng(0), 300, level=0.7, slope=0.5)
    calibration = measure_calibration(z, y)
    model = LogisticRegression(C=1e6, tol=1e-10).fit(z[:, None], y)
    assert calibration.slope == pytest.approx(model.coef_[0, 0], abs=1e-3)
    p = model.predict_proba(z[:, None])[:, 1]
    x = np.column_stack([np.ones(300), z])
    errors = np.sqrt(np.diag(np.linalg.inv((x.T * (p * (1 - p))) @ x)))
    assert calibration.slope_error == pytest.approx(errors[1], rel=1e-3)
    assert calibration.bias[0] == pytest.approx((1 / (1 + np.exp(-z)) - y).mean())
    assert calibration.slope_p_value < 0.01
    # At the fitted intercept, mean probability and share agree.
    assert (1 / (1 + np.exp(-z - calibration.intercepts[0]))).mean() == pytest.approx(y.mean(), abs=1e-4)


def test_several_classes_equal_a_general_optimizer():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(400, 3))
    y = (0.6 * z + [0, 1, -0.5] + rng.gumbel(size=(400, 3))).argmax(1)
    calibration = measure_calibration(z, y)

    def loss(b, slope=None):
        logits = np.column_stack([np.zeros(400), np.tile(b[:2], (400, 1))]) + (slope or b[2]) * z
        return -log_softmax(logits, 1)[np.arange(400), y].sum()

    assert calibration.intercepts == pytest.approx(minimize(loss, [0, 0], (1.0,)).x, abs=2e-3)
    assert calibration.slope == pytest.approx(minimize(loss, [0, 0, 1]).x[2], abs=2e-3)
    assert calibration.bias == pytest.approx((softmax(z, 1) - np.eye(3)[y]).mean(0)[1:])
    assert "class 1" in str(calibration)


def test_regression_equals_least_squares():
    rng = np.random.default_rng(2)
    z = rng.normal(size=100)
    y = 2 + 0.5 * z + 0.3 * rng.normal(size=100)
    calibration = measure_calibration(z, y, regression=True)
    assert calibration.slope == pytest.approx(LinearRegression().fit(z[:, None], y).coef_[0])
    assert calibration.bias[0] == pytest.approx((z - y).mean())
    assert str(calibration) == "predictions are 2 too low"
    parts = split_drop((z, z + rng.normal(size=100)), (z, y), regression=True)
    assert parts.error_rate is None
    assert parts.loss.level.mean == pytest.approx(4, abs=0.5)
    assert parts.loss.slope.mean == pytest.approx(0.25, abs=0.1)


def test_p_values_are_uniform_where_scores_are_calibrated():
    rng = np.random.default_rng(3)
    found = [measure_calibration(*binary(rng, 60)) for _ in range(100)]
    # Four standard deviations of a share of 100 coins of 0.05.
    assert np.mean([c.intercept_p_value < 0.05 for c in found]) < 0.05 + 4 * 0.022
    assert np.mean([c.slope_p_value < 0.05 for c in found]) < 0.05 + 4 * 0.022


@pytest.mark.parametrize(
    ("change", "part"), [({"level": 2}, "level"), ({"slope": 0.3}, "slope"), ({"slope": 0.0}, "ranking")]
)
def test_a_drop_is_explained_by_its_cause(change, part):
    rng = np.random.default_rng(4)
    split = split_drop(binary(rng, 600), binary(rng, 600, **change), n_resamples=100)
    assert getattr(split.loss, part).low > 0.02
    names = ("level", "slope", "ranking", "outcome")
    for parts in (split.loss, split.error_rate):
        assert sum(getattr(parts, name).mean for name in names) == pytest.approx(parts.total.mean)
    if part != "slope":
        assert split.loss.slope.low > 0 or part == "level"


def test_parts_equal_a_direct_computation():
    rng = np.random.default_rng(5)
    first, second = binary(rng, 80), binary(rng, 50, level=1)
    split = split_drop(first, second, n_resamples=2)

    def losses(z, y):
        signs = 2 * y - 1
        raw, optimism = np.logaddexp(0, -signs * z).mean(), 1 / (2 * len(z))
        level = minimize(lambda a: np.logaddexp(0, -signs * (z + a)).mean(), [0.0]).fun + optimism
        both = (
            minimize(lambda b: np.logaddexp(0, -signs * (b[0] + b[1] * z)).mean(), [0.0, 1.0]).fun
            + 2 * optimism
        )
        p = y.mean()
        constant = -p * np.log(p) - (1 - p) * np.log(1 - p) + optimism
        return np.array([raw, raw - level, level - both, both - constant, constant])

    expected = losses(*second) - losses(*first)
    names = ("total", "level", "slope", "ranking", "outcome")
    assert [getattr(split.loss, name).mean for name in names] == pytest.approx(expected, abs=1e-4)
    accuracy = [((z > 0) == y).mean() for z, y in (first, second)]
    assert split.error_rate.total.mean == pytest.approx(accuracy[0] - accuracy[1])


def test_parts_are_zero_on_average_without_a_shift_in_small_environments():
    rng = np.random.default_rng(6)
    splits = [split_drop(binary(rng, 400), binary(rng, 25), n_resamples=40) for _ in range(15)]
    for part in ("level", "slope"):
        values = [getattr(s.loss, part) for s in splits]
        assert abs(np.mean([v.mean for v in values])) < 0.03
        assert np.mean([v.contains(0) for v in values]) > 0.75


def test_an_environment_with_one_class_is_finite():
    z, y = binary(np.random.default_rng(7), 100)
    split = split_drop((z, y), (z[:20], np.ones(20, dtype=int)), n_resamples=20)
    assert np.isfinite([split.loss.total.high, split.loss.level.high, split.loss.ranking.high]).all()
    assert split.loss.level.low > 0


def test_wrong_input_is_an_error():
    with pytest.raises(EnvariantError, match="class indices from 0 to 1"):
        measure_calibration([0.1, 0.2], [0, 2])
    with pytest.raises(EnvariantError, match="one row of scores per target"):
        measure_calibration([0.1, 0.2], [0])
    with pytest.raises(EnvariantError, match="must be finite"):
        measure_calibration([0.1, np.nan], [0, 1])
