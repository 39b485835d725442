"""DISDE against worked values, exact discrete distributions and a plain loop."""

import math

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from envariant.analysis.disde import decompose_drop, measure_disde
from envariant.core.errors import EnvariantError

P = np.array([0.2, 0.3, 0.5, 0.6, 0.1]), 1 - np.array([1, 1, 0, 1, 1])
Q = np.array([0.7, 0.4, 0.9, 0.8]), 1 - np.array([1, 0, 0, 1])


def test_worked_values():
    parts = decompose_drop(*P, *Q)
    means = (parts.harder_inputs.mean, parts.changed_relation.mean, parts.new_inputs.mean)
    assert means == pytest.approx((0.0898631681, 0.3078904582, -0.0977536264))
    assert parts.errors == pytest.approx((0.0786302264, 0.3625232157, 0.1310772688))
    assert (parts.source_rows, parts.target_rows) == pytest.approx((3.9617344936, 2.7711283989))
    assert (parts.source_loss, parts.target_loss) == pytest.approx((0.2, 0.5))
    assert "cannot be decomposed" in str(parts)


def test_minimum_weights():
    parts = decompose_drop(*P, *Q, density="minimum")
    w, v = (
        np.array([0.3125, 0.5357142857, 1, 1, 0.1388888889]),
        np.array([0.3428571429, 1, 0.0888888889, 0.2]),
    )
    assert parts.source_rows == pytest.approx(w.sum() ** 2 / (w**2).sum())
    expected = (v * Q[1]).sum() / v.sum() - (w * P[1]).sum() / w.sum()
    assert parts.changed_relation.mean == pytest.approx(expected)


def test_the_parts_equal_those_of_discrete_distributions():
    # Inputs 0, 1, 2; 2 occurs in the target only.
    p, q = np.array([0.8, 0.2, 0.0]), np.array([0.3, 0.3, 0.4])
    risk_p, risk_q = np.array([0.1, 0.3, 0.0]), np.array([0.1, 0.6, 0.9])
    s = p * q / (p + q)
    s /= s.sum()
    expected = (s @ risk_p - p @ risk_p, s @ risk_q - s @ risk_p, q @ risk_q - s @ risk_q)
    rows_p, rows_q = np.repeat(np.arange(3), [800, 200, 0]), np.repeat(np.arange(3), [300, 300, 400])
    pi = q / (p + q)
    parts = decompose_drop(pi[rows_p], risk_p[rows_p], pi[rows_q], risk_q[rows_q])
    assert (parts.harder_inputs.mean, parts.changed_relation.mean, parts.new_inputs.mean) == pytest.approx(
        expected
    )
    found = measure_disde((np.eye(3)[rows_p], risk_p[rows_p]), (np.eye(3)[rows_q], risk_q[rows_q]))
    assert (found.harder_inputs.mean, found.changed_relation.mean, found.new_inputs.mean) == pytest.approx(
        expected, abs=0.01
    )


def test_cross_fitting_equals_a_plain_loop():
    rng = np.random.default_rng(0)
    x_p, x_q = rng.normal(size=(60, 2)), rng.normal(0.5, 1, size=(40, 2))
    r_p, r_q = rng.random(60), rng.random(40)
    found = measure_disde((x_p, r_p), (x_q, r_q), classifier=LogisticRegression(), n_folds=4, seed=3)
    generator = np.random.default_rng(3)
    folds = [generator.permutation(60) % 4, generator.permutation(40) % 4]
    pi = [np.zeros(60), np.zeros(40)]
    for k in range(4):
        x = np.concatenate([x_p[folds[0] != k], x_q[folds[1] != k]])
        t = np.repeat([0, 1], [(folds[0] != k).sum(), (folds[1] != k).sum()])
        model = LogisticRegression().fit(x, t)
        for side, rows in enumerate((x_p, x_q)):
            pi[side][folds[side] == k] = model.predict_proba(rows[folds[side] == k])[:, 1]
    assert found.changed_relation.mean == pytest.approx(
        decompose_drop(pi[0], r_p, pi[1], r_q).changed_relation.mean
    )


def test_the_bootstrap_agrees_with_the_plug_in_errors():
    rng = np.random.default_rng(1)
    x, noise = rng.normal(size=(2, 300, 2)), rng.random((2, 300))
    errors = (noise < 0.3).astype(float)
    plug_in = measure_disde((x[0], errors[0]), (x[1], errors[1]))
    resampled = measure_disde((x[0], errors[0]), (x[1], errors[1]), n_folds=2, n_resamples=30)
    assert resampled.errors[1] == pytest.approx(plug_in.errors[1], rel=0.5)
    assert resampled.changed_relation.low < 0 < resampled.changed_relation.high


def test_disjoint_inputs_have_no_overlap():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(100, 1))
    parts = measure_disde((x, np.zeros(100)), (x + 20, np.ones(100)))
    assert not parts.has_overlap
    assert "no overlap" in str(parts)
    assert parts.auc == pytest.approx(1)


def test_any_classifier_with_sample_weights():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(2, 80, 1))
    model = HistGradientBoostingClassifier(max_iter=5)
    parts = measure_disde((x[0], np.zeros(80)), (x[1], np.ones(80)), classifier=model, n_folds=2)
    assert parts.changed_relation.mean == pytest.approx(1)
    assert math.isfinite(parts.auc)


def test_wrong_input_is_an_error():
    with pytest.raises(EnvariantError, match="at least 5 rows"):
        measure_disde((np.zeros((3, 1)), [0, 0, 0]), (np.zeros((9, 1)), np.zeros(9)))
    with pytest.raises(EnvariantError, match="fill them first"):
        measure_disde((np.full((9, 1), np.nan), np.zeros(9)), (np.zeros((9, 1)), np.zeros(9)))
    with pytest.raises(EnvariantError, match="one probability per loss"):
        decompose_drop([0.5], [1, 0], [0.5], [1])
