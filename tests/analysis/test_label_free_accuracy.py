"""Accuracy without labels against worked values, the authors' scan, simulations and general solvers."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import least_squares

from envariant.analysis.label_free_accuracy import (
    agreement_on_the_line,
    average_confidence,
    confidence_scores,
    difference_of_confidences,
    expected_confusion,
    solve_agreement,
    thresholded_confidence,
)
from envariant.core.errors import EnvariantError

SOURCE = [0.55, 0.6, 0.62, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99]
RIGHT = [0, 1, 0, 0, 1, 1, 1, 0, 1, 1]
TARGET = [0.5, 0.58, 0.65, 0.72, 0.74, 0.88, 0.91, 0.6, 0.97, 0.56]


def test_worked_values():
    assert thresholded_confidence(SOURCE, RIGHT, TARGET).value == 0.5
    assert thresholded_confidence(SOURCE, RIGHT, SOURCE).value == 0.6
    assert average_confidence(TARGET).value == pytest.approx(0.711)
    assert difference_of_confidences(SOURCE, RIGHT, TARGET).value == pytest.approx(0.54)
    found = expected_confusion([0.9, 0.2, 0.6, 0.45, 0.75])
    assert (found.accuracy.value, found.accuracy.sd) == pytest.approx((0.72, 0.1923538406))
    cells = (found.true_positive, found.false_positive, found.false_negative, found.true_negative)
    assert cells == pytest.approx((2.25, 0.75, 0.65, 1.35))
    assert (found.precision, found.recall) == pytest.approx((0.75, 0.7758620690))


def test_agreements_equal_the_worked_values_and_a_general_solver():
    arguments = [0.9, 0.85, 0.8], [0.88, 0.84, 0.82], [0.75, 0.70, 0.68]
    found = [estimate.value for estimate in solve_agreement(*arguments)]
    assert found == pytest.approx([0.7743466274, 0.7156847940, 0.6566386886])
    probits, x, y = (stats.norm.ppf(part) for part in arguments)
    slope = stats.linregress(x, y).slope
    assert slope == pytest.approx(0.8025198472)

    def residuals(w):
        pairs = [(0, 1), (0, 2), (1, 2)]
        return [
            (w[i] + w[j]) / 2 - y[k] - slope * ((probits[i] + probits[j]) / 2 - x[k])
            for k, (i, j) in enumerate(pairs)
        ]

    assert found == pytest.approx(stats.norm.cdf(least_squares(residuals, probits).x))


def test_agreements_are_counted_by_pair():
    rng = np.random.default_rng(0)
    source, target = rng.integers(2, size=(2, 3, 50))
    pairs = [(0, 1), (0, 2), (1, 2)]
    counts = [[np.mean(p[i] == p[j]) for i, j in pairs] for p in (source, target)]
    assert agreement_on_the_line([0.6, 0.5, 0.7], source, target) == solve_agreement([0.6, 0.5, 0.7], *counts)


def test_the_threshold_equals_the_authors_scan_with_a_strict_comparison():
    rng = np.random.default_rng(1)
    s, t = rng.random(80), rng.random(50)
    right = (rng.random(80) < s).astype(int)
    order = np.argsort(s)
    wrong_above, right_below, best, threshold = (1 - right).sum(), 0, np.inf, 0.0
    for i in order:
        wrong_above -= 1 - right[i]
        right_below += right[i]
        if abs(wrong_above - right_below) < best:
            best, threshold = abs(wrong_above - right_below), s[i]
    assert thresholded_confidence(s, right, t).value == (t > threshold).mean()
    assert thresholded_confidence(s, np.ones(80), t).value == 1


def test_calibrated_probabilities_give_the_accuracy_and_its_deviation():
    rng = np.random.default_rng(2)
    p = rng.beta(2, 2, 200)
    accuracies = [((p >= 0.5) == (rng.random(200) < p)).mean() for _ in range(2000)]
    estimate = average_confidence(confidence_scores(np.column_stack([p, 1 - p])))
    assert estimate.value == pytest.approx(np.mean(accuracies), abs=4 * estimate.sd / math.sqrt(2000))
    assert estimate.sd == pytest.approx(np.std(accuracies), rel=0.1)
    assert expected_confusion(p).accuracy.value == pytest.approx(estimate.value)


def test_negative_entropy_orders_binary_rows_as_confidence_does():
    p = np.array([0.5, 0.6, 0.9, 1.0])
    found = confidence_scores(np.column_stack([p, 1 - p]), "negative entropy")
    assert found == pytest.approx([-stats.entropy([q, 1 - q]) for q in p])


def test_every_estimate_states_its_assumption():
    estimates = [
        average_confidence(TARGET),
        difference_of_confidences(SOURCE, RIGHT, TARGET),
        thresholded_confidence(SOURCE, RIGHT, TARGET),
        expected_confusion(TARGET).accuracy,
    ]
    assert all("P(Y | X) is unchanged" in str(estimate) for estimate in estimates)


def test_wrong_input_is_an_error():
    with pytest.raises(EnvariantError, match="finite and not empty"):
        average_confidence([])
    with pytest.raises(EnvariantError, match="10 source scores, but 1 source outcomes"):
        thresholded_confidence(SOURCE, [1], TARGET)
    with pytest.raises(EnvariantError, match="got 2 models"):
        solve_agreement([0.5, 0.6], [0.7], [0.7])
    assert math.isnan(expected_confusion([0.1]).precision)
