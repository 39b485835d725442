"""Label shift: worked values, a general optimizer, bootstrap errors, and rates of the tests."""

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize_scalar

from envariant.analysis.label_shift import (
    adjust_probabilities,
    assess_conditional_shift,
    assess_label_shift,
    assess_output_shift,
    estimate_prior_bbse,
    estimate_prior_em,
    solve_bbse,
)
from envariant.core.errors import EnvariantError

P = np.array([0.9, 0.6, 0.05, 0.3, 0.1, 0.7])
ROWS = np.column_stack([P, 1 - P])


def draw(rng, share, n):
    """Return labels and calibrated probabilities of two normal classes, for training shares of one half."""
    y = (rng.random(n) < share).astype(int)
    x = rng.normal(size=n) + 2 * y - 1
    p = 1 / (1 + np.exp(-2 * x))
    return y, np.column_stack([1 - p, p])


def test_adjusted_probabilities():
    found = adjust_probabilities([[0.7, 0.2, 0.1]], [0.5, 2, 1])
    assert found[0] == pytest.approx([0.4117647059, 0.4705882353, 0.1176470588])


@pytest.mark.parametrize(
    ("rounds", "share"), [(1, 0.4416666667), (2, 0.3476700385), (3, 0.2918683574), (10_000, 0.1836663913)]
)
def test_em_equals_the_worked_values(rounds, share):
    estimate = estimate_prior_em(ROWS, [0.6, 0.4], max_iterations=rounds)
    assert estimate.shares[0] == pytest.approx(share)
    assert estimate.converged == (rounds > 3)
    if estimate.converged:
        adjusted = adjust_probabilities(ROWS, estimate.weights)[:, 0]
        expected = [0.5744565450, 0.1836663913, 0.0078325313, 0.0604000054, 0.0163926814, 0.2592501934]
        assert adjusted == pytest.approx(expected)


def test_em_maximizes_the_likelihood_and_its_error_is_that_of_resamples():
    rng = np.random.default_rng(0)
    _, p = draw(rng, 0.8, 400)
    estimate = estimate_prior_em(p, [0.5, 0.5])

    def loss(q):
        return -np.log(p @ [2 * (1 - q), 2 * q]).sum()

    best = minimize_scalar(loss, bounds=(0, 1), method="bounded", options={"xatol": 1e-9})
    assert estimate.shares[1] == pytest.approx(best.x, abs=1e-6)
    draws = [
        estimate_prior_em(draw(rng, 0.8, 400)[1], [0.5, 0.5], tolerance=1e-6).shares[1] for _ in range(60)
    ]
    assert estimate.errors[1] == pytest.approx(np.std(draws), rel=0.4)
    assert np.mean(draws) == pytest.approx(0.8, abs=0.02)


def test_bbse_equals_the_worked_values():
    shares, weights = solve_bbse([[0.25, 0.10], [0.05, 0.60]], [0.55, 0.45])
    assert weights == pytest.approx([1.9655172414, 0.5862068966])
    assert shares == pytest.approx([0.5896551724, 0.4103448276])
    shares, _ = solve_bbse([[0.25, 0.2, 0], [0.03, 0.1, 0.02], [0.02, 0.1, 0.28]], [0.7, 0.02, 0.28])
    assert shares == pytest.approx([0.7647058824, 0, 0.2352941176])


@pytest.mark.parametrize("soft", [False, True])
def test_bbse_is_unbiased_and_its_error_is_that_of_resamples(soft):
    rng = np.random.default_rng(1)

    def estimate():
        labels, source = draw(rng, 0.5, 300)
        return estimate_prior_bbse(source, labels, draw(rng, 0.8, 200)[1], soft=soft)

    found = [estimate() for _ in range(120)]
    shares = [e.shares[1] for e in found]
    assert np.mean(shares) == pytest.approx(0.8, abs=4 * np.std(shares) / np.sqrt(120))
    assert np.mean([e.errors[1] for e in found]) == pytest.approx(np.std(shares), rel=0.25)
    assert found[0].weights[1] == pytest.approx(found[0].shares[1] / 0.5, rel=0.2)


def test_chance_predictions_are_refused():
    rng = np.random.default_rng(2)
    p = rng.random(300)
    with pytest.raises(EnvariantError, match="do not separate the classes"):
        estimate_prior_bbse(
            np.column_stack([p, 1 - p]), rng.integers(2, size=300), np.column_stack([p, 1 - p])
        )
    with pytest.raises(EnvariantError, match="at least one labeled row"):
        estimate_prior_bbse(ROWS, np.zeros(6, dtype=int), ROWS)


def test_class_shares_are_compared_as_by_scipy():
    rng = np.random.default_rng(3)
    y, e = rng.integers(3, size=200), rng.integers(2, size=200)
    table = np.array([[((y == c) & (e == k)).sum() for c in range(3)] for k in range(2)])
    found = assess_label_shift(y, e)
    assert (found.statistic, found.p_value) == pytest.approx(
        stats.chi2_contingency(table, correction=False)[:2]
    )
    small = assess_label_shift([0, 0, 0, 1, 1, 1], ["a"] * 3 + ["b"] * 3)
    # Exact: 2 of 20 assignments are as extreme.
    assert small.p_value == pytest.approx(0.1, abs=0.03)
    assert assess_label_shift([1, 1], ["a", "b"]).p_value == 1


def test_outputs_are_compared_by_kolmogorov_smirnov():
    rng = np.random.default_rng(4)
    p, q = rng.dirichlet([1, 1, 1], 100), rng.dirichlet([1, 1, 2], 80)
    expected = min(1, 3 * min(stats.ks_2samp(p[:, c], q[:, c]).pvalue for c in range(3)))
    assert assess_output_shift(p, q).p_value == pytest.approx(expected)
    assert assess_output_shift(ROWS, ROWS).p_value == 1


def test_conditional_shift_has_its_level_and_power():
    rng = np.random.default_rng(5)
    e = np.repeat(np.arange(3), 60)

    def p_value(shift, seed):
        # Class shares differ between environments in any case.
        y = (rng.random(180) < np.array([0.3, 0.5, 0.7])[e]).astype(int)
        x = rng.normal(size=(180, 2)) + y[:, None]
        x[:, 0] += shift * np.where(e == 2, 2 * y - 1, 0)
        return assess_conditional_shift(x, y, e, seed=seed).p_value

    # Four standard deviations of a share of 30 coins of 0.05.
    assert np.mean([p_value(0, k) < 0.05 for k in range(30)]) < 0.05 + 4 * 0.04
    assert np.mean([p_value(1.5, k) < 0.05 for k in range(5)]) == 1


def test_wrong_input_is_an_error():
    with pytest.raises(EnvariantError, match="positive share per class"):
        estimate_prior_em(ROWS, [1.0, 0.0])
    with pytest.raises(EnvariantError, match="2 labels, but environments for 1 rows"):
        assess_label_shift([0, 1], ["a"])
    with pytest.raises(EnvariantError, match="without missing values"):
        assess_conditional_shift([[np.nan]], [0], ["a"])
    with pytest.raises(EnvariantError, match="classes"):
        assess_output_shift(ROWS, P[:, None])
