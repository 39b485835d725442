"""Kinds of shift on tables with known truth, and their statistics against direct computations."""

import numpy as np
import pytest

from envariant.analysis import _two_sample, shift_kind
from envariant.analysis.shift_kind import name_shifts
from envariant.core.errors import EnvariantError

ENVIRONMENTS = np.repeat(["A", "B", "C", "D", "E"], 300)
LAST = ENVIRONMENTS == "E"


def table(kind, seed):
    """Return inputs and targets in which environment E has the given kind of shift."""
    rng = np.random.default_rng(seed)
    n = len(LAST)
    x, noise = rng.normal(size=(n, 4)), rng.logistic(size=n)
    if kind in ("label", "flip of an effect of Y"):
        y = (rng.random(n) < np.where(LAST & (kind == "label"), 0.85, 0.4)).astype(int)
        sign = np.where(LAST & (kind != "label"), -1, 1)
        return x + np.column_stack([y, 0.7 * y, sign * (2 * y - 1), 0 * y]), y
    if kind in ("covariate", "covariate, nonlinear"):
        x[LAST] = x[LAST] * [1.6, 1, 1, 1] + [0, 1.5, 0, 0]
    slopes = np.where(
        (LAST & (kind == "flip of an effect on Y"))[:, None], [-1.2, -1, 0.3, 0], [1.2, -1, 0.3, 0]
    )
    score = (slopes * x).sum(1)
    if kind == "covariate, nonlinear":
        score = 2 * np.sin(1.5 * x[:, 0]) + 1.5 * (x[:, 1] > 0)
    return x, (score + noise > 0).astype(int)


TRUTH = {
    "none": "none",
    "label": "label",
    "covariate": "covariate",
    "covariate, nonlinear": "covariate",
    "flip of an effect on Y": "concept",
    "flip of an effect of Y": "concept",
}


@pytest.mark.parametrize("kind", TRUTH)
def test_every_kind_is_named(kind):
    found = [name_shifts(*table(kind, seed), ENVIRONMENTS, seed=seed) for seed in range(2)]
    assert [shifts[-1].kind for shifts in found] == [TRUTH[kind]] * 2
    # The other environments agree with each other; a false alarm has probability 0.05 in each table.
    assert sum(shift.kind != "none" for shifts in found for shift in shifts[:-1]) <= 1


@pytest.mark.verify
@pytest.mark.parametrize("kind", TRUTH)
def test_kinds_are_named_in_nearly_all_tables(kind):
    found = [name_shifts(*table(kind, seed), ENVIRONMENTS, seed=seed) for seed in range(20)]
    assert sum(shifts[-1].kind == TRUTH[kind] for shifts in found) >= 18
    assert sum(any(shift.kind != "none" for shift in shifts[:-1]) for shifts in found) <= 4


def test_kinds_for_real_targets_and_for_several_classes():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1500, 3))
    y = x @ np.array([1.0, 1.0, 0.0]) + 0.7 * rng.normal(size=1500)
    flipped = np.where(LAST, y - 2 * x[:, 0], y)
    assert [s.kind for s in name_shifts(x, flipped, ENVIRONMENTS, regression=True)] == ["none"] * 4 + [
        "concept"
    ]
    moved = x + 1.5 * LAST[:, None]
    y = moved @ np.array([1.0, 1.0, 0.0]) + 0.7 * rng.normal(size=1500)
    assert name_shifts(moved, y, ENVIRONMENTS, regression=True)[-1].kind == "covariate"
    classes = np.where(LAST, rng.choice(3, 1500, p=[0.7, 0.2, 0.1]), rng.choice(3, 1500))
    centers = np.array([[0, 0, 0], [2, 0, 0], [0, 2, 0]])
    names = np.array(["low", "middle", "high"])
    assert name_shifts(x + centers[classes], names[classes], ENVIRONMENTS)[-1].kind == "label"
    other = np.where(LAST, (classes + 1) % 3, classes)
    assert name_shifts(x + centers[classes], names[other], ENVIRONMENTS)[-1].kind == "concept"


def test_many_small_environments_and_few():
    rng = np.random.default_rng(1)
    x, noise = rng.normal(size=(1200, 3)), rng.logistic(size=1200)
    y = (x[:, 0] + noise > 0).astype(int)
    assert {s.kind for s in name_shifts(x, y, np.repeat(np.arange(40), 30))} == {"none"}
    # Two environments: the shift is one of both.
    two = name_shifts(*table("label", 0), np.where(LAST, "new", "old"))
    assert [(s.environment, s.kind) for s in two] == [("old", "label"), ("new", "label")]


def test_the_statistic_of_means_is_hotellings():
    rng = np.random.default_rng(2)
    values, codes, strata = rng.normal(size=(90, 3)), np.repeat([0, 1, 2], 30), np.arange(90) % 2
    keep = np.array([True, False, True])
    statistics = _two_sample.distances(values, strata, codes, keep, np.random.default_rng(0))
    (observed, largest), null = statistics[:, 0], statistics[0, 1:]
    chosen = codes != 1
    residual = np.concatenate(
        [values[chosen & (strata == s)] - values[chosen & (strata == s)].mean(0) for s in (0, 1)]
    )
    inverse = np.linalg.inv(residual.T @ residual / 60)
    for e in (0, 2):
        # With two environments, n₁ n₂ / n times the squared distance of the means.
        parts = [[values[(codes == k) & (strata == s)].mean(0) for k in (e, 2 - e)] for s in (0, 1)]
        expected = sum(15 * 15 / 30 * (a - b) @ inverse @ (a - b) for a, b in parts)
        assert observed[e] == pytest.approx(expected)
        features = [15 * 15 / 30 * (a - b) ** 2 / (residual**2).mean(0) for a, b in parts]
        assert largest[e] == pytest.approx(np.max(features))
    assert null[:, [0, 2]].mean() == pytest.approx(6, abs=1)


def test_the_score_statistic_equals_a_regression_on_an_own_intercept(monkeypatch):
    monkeypatch.setattr(shift_kind, "_RIDGE", 1e-6)
    rng = np.random.default_rng(3)
    x = rng.normal(size=(200, 2))
    codes = np.repeat([0, 1], 100)
    y = x[:, 0] + 0.3 * codes + rng.normal(size=200)
    keep, generator = np.array([True, True]), np.random.default_rng(0)
    (observed, null), (slopes, _) = shift_kind._score_statistics(x, y[:, None], codes, keep, generator, True)
    design = shift_kind._design(x)
    # This is the classical score test: n R² of the added column.
    residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    own = (codes == 1).astype(float)
    own -= design @ np.linalg.lstsq(design, own, rcond=None)[0]
    expected = 200 * (own @ residual) ** 2 / ((own @ own) * (residual @ residual))
    assert observed[1] == pytest.approx(expected, rel=1e-3)
    assert null.mean() == pytest.approx(1, abs=0.4)
    assert slopes[0] == pytest.approx(slopes[1], rel=1e-3)


def test_the_search_leaves_out_the_most_deviating_environments():
    levels = np.array([0.0, 0.1, 9.0, 0.2, 5.0])

    def statistics(keep):
        center = np.median(levels[keep])
        observed = np.where(keep, np.abs(levels - center), 0.0)
        return observed, np.ones((99, 5))

    assert _two_sample.search_deviating(statistics, 5, 0.05).tolist() == [1.0, 1.0, 0.01, 1.0, 0.01]


def test_wrong_input_is_an_error():
    with pytest.raises(EnvariantError, match="fill them first"):
        name_shifts([[np.nan], [1.0]], [0, 1], ["a", "b"])
    with pytest.raises(EnvariantError, match="at least two environments"):
        name_shifts([[0.0], [1.0]], [0, 1], ["a", "a"])
    with pytest.raises(EnvariantError, match="got shapes"):
        name_shifts([[0.0], [1.0]], [0], ["a", "b"])
