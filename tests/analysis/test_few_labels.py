"""Refits to a few labels against general optimizers and a loop over resamples."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax

from envariant.analysis.few_labels import gain_from_labels, recalibrate
from envariant.core.errors import EnvariantError


def penalty(intercepts, slope):
    return (np.square(intercepts) / 1.5**2).sum() / 2 + (slope - 1) ** 2 / 0.5**2 / 2


def test_a_binary_refit_equals_a_general_optimizer():
    rng = np.random.default_rng(0)
    z = rng.normal(size=30)
    y = (z + 1 + rng.logistic(size=30) > 0).astype(int)

    def loss(b, slope=None):
        b = [*b, 1.0][:2]
        return np.logaddexp(0, -(2 * y - 1) * (b[0] + b[1] * z)).sum() + penalty(b[:1], b[1])

    adapted = recalibrate(z, y)
    assert adapted.intercepts == pytest.approx(minimize(loss, [0.0]).x, abs=1e-4)
    both = recalibrate(z, y, refit="intercept and slope")
    assert (*both.intercepts, both.slope) == pytest.approx(tuple(minimize(loss, [0.0, 1.0]).x), abs=1e-4)
    assert both.apply(z) == pytest.approx(both.intercepts[0] + both.slope * z)


def test_a_multiclass_refit_equals_a_general_optimizer():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(40, 3))
    y = (z + np.arange(3) + rng.gumbel(size=(40, 3))).argmax(1)
    adapted = recalibrate(z, y, refit="intercept and slope")

    def loss(b):
        logits = np.array([0, *b[:2]]) + b[2] * z
        return -log_softmax(logits, 1)[np.arange(40), y].sum() + penalty(b[:2], b[2])

    best = minimize(loss, [0, 0, 1])
    assert (*adapted.intercepts, adapted.slope) == pytest.approx(tuple(best.x), abs=1e-4)
    assert adapted.apply(z) == pytest.approx(np.array([0, *best.x[:2]]) + best.x[2] * z, abs=1e-3)


def test_a_linear_refit_minimizes_its_penalized_loss():
    rng = np.random.default_rng(2)
    z = 5 + rng.normal(size=25)
    y = 3 + 0.7 * z + 0.4 * rng.normal(size=25)
    adapted = recalibrate(z, y, refit="intercept and slope", regression=True)
    variance = (y - z).var()

    def loss(b):
        level = b[0] + (b[1] - 1) * z.mean()
        return ((y - b[0] - b[1] * z) ** 2).sum() + level**2 / 1.5**2 + (b[1] - 1) ** 2 * variance / 0.5**2

    best = minimize(loss, [0, 1], tol=1e-10)
    assert (*adapted.intercepts, adapted.slope) == pytest.approx(tuple(best.x), abs=1e-3)
    assert recalibrate(z, y, regression=True).slope == 1
    assert recalibrate(z, y, regression=True).intercepts[0] == pytest.approx(
        (y - z).sum() / (25 + 1 / 1.5**2)
    )


def test_one_label_is_enough():
    for refit in ("intercept", "intercept and slope"):
        adapted = recalibrate([0.3], [1], refit=refit)
        assert 0 < adapted.intercepts[0] < 3
    assert math.isfinite(recalibrate([0.3], [4.0], regression=True).intercepts[0])


def test_gains_equal_a_loop_over_resamples():
    rng = np.random.default_rng(3)
    z = rng.normal(size=60)
    y = (z + 2 + rng.logistic(size=60) > 0).astype(int)
    gain = gain_from_labels(z, y, sizes=[20], n_resamples=5, seed=4)[1]
    order = np.random.default_rng(4).random((5, 60)).argsort(1).argsort(1)
    before, after, losses = [], [], []
    for ranks in order:
        labeled = ranks < 20
        adapted = recalibrate(z[labeled], y[labeled], refit="intercept and slope")
        rest = adapted.apply(z[~labeled])
        before.append(((z[~labeled] > 0) == y[~labeled]).mean())
        after.append(((rest > 0) == y[~labeled]).mean())
        losses.append(np.logaddexp(0, -(2 * y[~labeled] - 1) * rest).mean())
    assert gain.refit == "intercept and slope"
    assert gain.accuracy.before == pytest.approx(np.mean(before))
    assert (gain.accuracy.after, gain.accuracy.sd) == pytest.approx((np.mean(after), np.std(after, ddof=1)))
    assert gain.loss.after == pytest.approx(np.mean(losses))


def test_gains_of_several_classes_and_of_regression():
    rng = np.random.default_rng(5)
    z = rng.normal(size=(300, 3))
    y = (z + np.array([0, 0, 3]) + rng.gumbel(size=(300, 3))).argmax(1)
    assert all(g.accuracy.after > g.accuracy.before + 0.2 for g in gain_from_labels(z, y, n_resamples=20))
    truth = z[:, 0] + 5 + rng.normal(size=300)
    gains = gain_from_labels(z[:, 0], truth, regression=True, n_resamples=20)
    assert all(g.accuracy is None and g.loss.after < 1.5 < 20 < g.loss.before for g in gains)
    assert "loss" in str(gains[0])


def test_labels_do_little_harm_where_nothing_changed():
    rng = np.random.default_rng(6)
    z = 2 * rng.normal(size=1000)
    y = (z + rng.logistic(size=1000) > 0).astype(int)
    for gain in gain_from_labels(z, y, n_resamples=30):
        assert gain.accuracy.after > gain.accuracy.before - (0.05 if gain.n_labels == 10 else 0.03)


def test_small_environments_and_wrong_sizes():
    assert gain_from_labels(np.zeros(15), np.zeros(15, dtype=int)) == ()
    assert {g.n_labels for g in gain_from_labels(np.zeros(40), np.arange(40) % 2, n_resamples=2)} == {10, 20}
    with pytest.raises(EnvariantError, match="did you mean 'intercept'"):
        recalibrate([0.1], [1], refit="intercepts")
    with pytest.raises(EnvariantError, match="at least 1"):
        gain_from_labels(np.zeros(40), np.zeros(40, dtype=int), sizes=[0])
