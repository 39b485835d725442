"""Accuracy of batches without labels: values by hand, and intervals that contain the truth as often as stated."""

import numpy as np
import pytest

from envariant.analysis.batch_score import BatchScore, fit_batch_error, fit_batch_score
from envariant.analysis.label_free_accuracy import difference_of_confidences, thresholded_confidence
from envariant.core.errors import EnvariantError


def environments(draw, count, rows=100, spread=0.0, shift=0.0):
    """Return confidences and outcomes: each environment has its own overconfidence and its own inputs."""
    p = draw.uniform(0.5, 1, size=(count, rows)) ** np.exp(shift * draw.normal(size=(count, 1)))
    truth = np.clip(p + spread * draw.normal(size=(count, 1)), 0, 1)
    return p, draw.random((count, rows)) < truth


def test_the_difference_of_confidences_is_that_of_pooled_rows():
    draw = np.random.default_rng(0)
    c, right = environments(draw, 5, shift=1.0)
    reference = fit_batch_score(c.ravel(), right.ravel(), np.repeat(range(5), 100))
    assert reference.method == "difference of confidences"
    batch = draw.uniform(0.4, 0.8, size=50)
    expected = difference_of_confidences(c.ravel(), right.ravel(), batch).value
    assert reference.estimate(batch).mean == pytest.approx(expected)


def test_the_threshold_is_that_of_pooled_rows():
    # Rows above 0.8 are right, and the others wrong: only a threshold is exact.
    draw = np.random.default_rng(0)
    c = np.stack([draw.uniform(low, 1, size=100) for low in (0.2, 0.4, 0.6, 0.7)])
    right = c > 0.8
    reference = fit_batch_score(c.ravel(), right.ravel(), np.repeat(range(4), 100))
    assert reference.method == "thresholded confidence"
    batch = draw.uniform(0.6, 1, size=80)
    expected = thresholded_confidence(c.ravel(), right.ravel(), batch).value
    assert reference.estimate(batch).mean == pytest.approx(expected) == np.mean(batch > 0.8)


def test_confidence_that_says_nothing_is_not_used():
    draw = np.random.default_rng(0)
    c = draw.uniform(0.5, 1, size=(8, 200)) * draw.uniform(0.5, 1, size=(8, 1))
    right = draw.random((8, 200)) < 0.7
    reference = fit_batch_score(c.ravel(), right.ravel(), np.repeat(range(8), 200))
    assert reference.method == "mean of environments"
    assert reference.estimate(c[0]).mean == pytest.approx(right.mean())
    assert reference.spread < 0.03


@pytest.mark.parametrize(("count", "spread"), [(4, 0.1), (12, 0.1), (12, 0.0)])
def test_intervals_contain_the_accuracy_of_a_new_environment(count, spread):
    draw, hits = np.random.default_rng(1), []
    for _ in range(100):
        c, right = environments(draw, count + 1, spread=spread)
        reference = fit_batch_score(c[:-1].ravel(), right[:-1].ravel(), np.repeat(range(count), 100))
        hits.append(reference.estimate(c[-1]).contains(right[-1].mean()))
    assert np.mean(hits) >= 0.9


@pytest.mark.parametrize(("count", "spread"), [(4, 0.3), (12, 0.0)])
def test_intervals_contain_the_rmse_of_a_new_environment(count, spread):
    draw, hits = np.random.default_rng(1), []
    for _ in range(200):
        r = np.exp(spread * draw.normal(size=(count + 1, 1))) * draw.normal(size=(count + 1, 100))
        reference = fit_batch_error(r[:-1].ravel(), np.repeat(range(count), 100))
        hits.append(reference.estimate(np.zeros(100)).contains(np.sqrt(np.square(r[-1]).mean())))
    assert 0.91 <= np.mean(hits) <= 0.995


def test_estimates_are_possible_values():
    assert BatchScore("difference of confidences", 0.5, 0.1, 3).estimate([0.9]).mean == 1.0
    tiny = BatchScore("mean of environments", 1.0, 0.0, 3).estimate(np.ones(10))
    assert (tiny.mean, tiny.high) == (1.0, 1.0)
    assert tiny.low < 0.9


def test_three_environments_are_needed():
    for fit in (
        lambda: fit_batch_score([0.9, 0.8], [1, 0], [0, 1]),
        lambda: fit_batch_error([1.0, 2], [0, 1]),
    ):
        with pytest.raises(EnvariantError, match="needs at least 3 environments, got 2"):
            fit()
    with pytest.raises(EnvariantError, match="every row needs a score, an outcome and an environment"):
        fit_batch_score([0.9], [1, 0], [0, 1])
