"""The batched logistic regression against scikit-learn and SciPy's general optimizer."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from envariant.analysis._logistic import class_indicators, fit_logistic, logistic_loss


def test_weighted_binary_fits_equal_scikit_learns():
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(80), rng.normal(size=(80, 2))])
    y = (x[:, 1] + rng.logistic(size=80) > 0).astype(int)
    weights = rng.integers(0, 4, (3, 80)).astype(float)
    fits = fit_logistic(x[:, None], class_indicators(y, 2), weights, precision=0.5)
    for w, coefficients, information in zip(weights, fits.coefficients, fits.information, strict=True):
        # The penalty 1/(2C) Σβ² also acts on the intercept, which is a column.
        model = LogisticRegression(C=2.0, fit_intercept=False, tol=1e-10, max_iter=1000).fit(x, y, w)
        assert coefficients == pytest.approx(model.coef_[0], abs=1e-5)
        p = model.predict_proba(x)[:, 1]
        assert information == pytest.approx((x.T * (w * p * (1 - p))) @ x + 0.5 * np.eye(3), abs=1e-3)


def test_a_multinomial_fit_equals_a_general_optimizer():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(60, 3))
    y = (z + rng.gumbel(size=(60, 3)) + [0, 1, 0]).argmax(1)
    shifted = z - z[:, :1]
    design = np.stack(
        [np.stack([np.tile(row, (60, 1)) for row in np.eye(2)], 1)[..., k] for k in range(2)], -1
    )
    design = np.concatenate([design, shifted[:, 1:, None]], axis=2)
    center, precision = np.array([0.0, 0.0, 1.0]), np.array([0.1, 0.1, 3.0])
    fit = fit_logistic(design, class_indicators(y, 3), center=center, precision=precision).coefficients[0]

    def loss(b):
        logits = np.column_stack([b[2] * z[:, 0], b[0] + b[2] * z[:, 1], b[1] + b[2] * z[:, 2]])
        return -log_softmax(logits, 1)[np.arange(60), y].sum() + 0.5 * (precision * (b - center) ** 2).sum()

    assert fit == pytest.approx(minimize(loss, center, tol=1e-10).x, abs=1e-5)
    logits = design @ fit
    full = np.column_stack([np.zeros(60), logits])
    expected = -log_softmax(full, 1)[np.arange(60), y]
    assert logistic_loss(logits, class_indicators(y, 3)) == pytest.approx(expected)


def test_separable_classes_stay_finite():
    x = np.column_stack([np.ones(20), np.repeat([-1.0, 1.0], 10)])[:, None]
    labels = np.repeat([0.0, 1.0], 10)[:, None]
    fit = fit_logistic(x, labels, precision=1e-3)
    assert 5 < fit.coefficients[0, 1] < 12
    assert np.isfinite(fit.errors).all()
