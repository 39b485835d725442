"""Expected scores against simulated environments of known truth, and Cochran's Q against its definition."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from envariant.analysis.random_effects import pool_estimates
from envariant.comparison.drops import EXPECTED_LEVEL, has_drop, significant_drops, varies
from envariant.comparison.expected_scores import ExpectedScore, ExpectedScores, _cochran, expected_scores
from envariant.comparison.narrative import recommend
from envariant.comparison.page.scores import Drops
from envariant.core.metrics import METRICS
from envariant.core.tasks import Binary, Multiclass, Regression
from envariant.training.store import Predictions
from tests.comparison.test_narrative import cell, results


def models(sizes, draw, replicas=2, share=0.5):
    """Return predictions of models in every environment, and on validation rows of all others."""
    rng = np.random.default_rng(0)
    names = [f"s{k:02}" for k in range(len(sizes))]
    data = {name: draw(rng, k, size) for k, (name, size) in enumerate(zip(names, sizes, strict=True))}
    outside, others = {name: [] for name in names}, {name: [] for name in names}
    for _ in range(replicas):
        held = {n: rng.random(len(y)) < share for n, (_, y) in data.items()}
        own = {n: predictions(n, z[held[n]], y[held[n]]) for n, (z, y) in data.items()}
        for name, (z, y) in data.items():
            outside[name].append(predictions(name, z, y))
            others[name].append({n: p for n, p in own.items() if n != name})
    return outside, others


def predictions(name, z, y):
    return Predictions(name, "test", len(y), z.astype(np.float32), np.asarray(y, dtype=np.float32))


def outcome(rng, z):
    return (rng.logistic(size=len(z)) < z).astype(int)


def found(sizes, draw, metric="accuracy", task=None):
    outside, others = models(sizes, draw)
    tasks = dict.fromkeys(outside, task or Binary())
    return expected_scores(METRICS[metric], tasks, outside, others, holdout_fraction=0.5)


def same(rng, k, size):
    z = 1.5 * rng.normal(size=size)
    return z, outcome(rng, z)


def test_equal_environments_have_the_expected_score():
    scores = found([300] * 5, same)
    assert scores.p_value > EXPECTED_LEVEL
    for each in scores.by_environment.values():
        assert each.expected == pytest.approx(each.observed, abs=4 * each.error)
        assert each.p_value > EXPECTED_LEVEL
    # Truth: the mean of max(p, 1 − p).
    z = 1.5 * np.random.default_rng(1).normal(size=100_000)
    truth = (1 / (1 + np.exp(-np.abs(z)))).mean()
    assert np.mean([s.expected for s in scores.by_environment.values()]) == pytest.approx(truth, abs=0.02)


def test_covariate_shift_is_expected():
    def harder(rng, k, size):
        z = (0.5 if k == 4 else 2.0) * rng.normal(size=size)
        return z, outcome(rng, z)

    scores = found([300] * 5, harder)
    last = scores.by_environment["s04"]
    assert last.observed < 0.7 < scores.by_environment["s00"].observed
    assert last.p_value > EXPECTED_LEVEL
    assert scores.p_value > EXPECTED_LEVEL


def test_one_reversed_environment_of_twelve_falls_short():
    def reversed_last(rng, k, size):
        z = 1.5 * rng.normal(size=size)
        return z, outcome(rng, -z if k == 11 else z)

    scores = found([100] * 12, reversed_last)
    short = {name for name, each in scores.by_environment.items() if each.p_value <= EXPECTED_LEVEL}
    assert short == {"s11"}
    assert scores.p_value <= EXPECTED_LEVEL


def test_slopes_that_vary_between_many_small_environments_are_found_together():
    def varying(rng, k, size):
        z = 1.5 * rng.normal(size=size)
        return z, outcome(rng, z * rng.normal(1.0, 0.8))

    assert found([30] * 40, varying).p_value <= EXPECTED_LEVEL


def test_auroc_does_not_depend_on_the_shares_of_classes():
    def rarer(rng, k, size):
        y = (rng.random(size) < (0.85 if k == 3 else 0.4)).astype(int)
        return rng.normal(size=size) + 1.5 * y - 0.75, y

    last = found([400] * 4, rarer, "AUROC").by_environment["s03"]
    assert last.p_value > EXPECTED_LEVEL
    # Truth: the share of pairs of N(0.75, 1) and N(−0.75, 1) in the right order.
    assert last.expected == pytest.approx(stats.norm.cdf(1.5 / np.sqrt(2)), abs=0.03)


def test_real_targets_and_several_classes():
    def real(rng, k, size):
        z = rng.normal(size=size)
        return z, z + (3 if k == 5 else 1) * rng.normal(size=size)

    scores = found([80] * 6, real, "RMSE", Regression(scale=2.0))
    assert scores.by_environment["s05"].expected == pytest.approx(2.0, abs=0.2)
    assert {n for n, s in scores.by_environment.items() if s.p_value <= EXPECTED_LEVEL} == {"s05"}

    def classes(rng, k, size):
        z = rng.normal(size=(size, 3))
        y = (z + rng.gumbel(size=z.shape)).argmax(axis=1)
        return z, (y + (k == 5)) % 3

    scores = found([80] * 6, classes, task=Multiclass(3))
    assert {n for n, s in scores.by_environment.items() if s.p_value <= EXPECTED_LEVEL} == {"s05"}


def test_small_environments_and_undefined_scores_are_absent():
    scores = found([5, 40, 40], same)
    assert set(scores.by_environment) == {"s01", "s02"}
    assert not found([5, 40], same).by_environment
    assert not found(
        [40, 40], lambda rng, k, size: (rng.normal(size=size), np.ones(size)), "AUROC"
    ).by_environment


def test_cochrans_q_is_the_weighted_sum_of_squares():
    rng = np.random.default_rng(0)
    errors = rng.uniform(0.5, 2, size=12)
    values = errors[:, None] * rng.normal(size=(12, 4000))
    q = _cochran(values, errors)
    first = values[:, 0]
    mean = np.average(first, weights=1 / errors**2)
    assert q[0] == pytest.approx((((first - mean) / errors) ** 2).sum())
    assert stats.kstest(q, stats.chi2(11).cdf).pvalue > 0.01


EQUAL = {"erm": {f"s{k}": cell(0.8, 0.8) for k in range(4)}}


def expected(*p_values, p_value=0.5, between=0.1):
    each = {f"s{k}": ExpectedScore(0.8, 0.6, 0.2, 0.05, p) for k, p in enumerate(p_values)}
    pooled = pool_estimates([0.0, 0.0, 2 * between, -2 * between], [0.01] * 4)
    return ExpectedScores(each, p_value, pooled)


def test_an_environment_that_falls_short_is_a_drop():
    short = replace(results(EQUAL), expected=expected(1.0, 0.005, 1.0, 1.0, p_value=0.005))
    assert significant_drops(short) == {"s1": 0.2}
    assert recommend(short).bullets[0] == (
        "ERM scores significantly worse than expected at s1: accuracy 0.800, 95 % CI [0.780, 0.820], against 0.800 expected from the "
        "others."
    )
    assert recommend(short).headline.endswith("but expect worse scores in some environments")
    drops = Drops(short, "erm")
    assert drops.table().rows[1][5] == "0.800"
    assert drops.to_dict()["expected_scores"]["s1"]["p_value"] == 0.005
    none = replace(results(EQUAL), expected=expected(1.0, 0.005, 1.0, 1.0))
    assert not has_drop(none)


def test_scores_that_vary_more_than_by_chance_are_a_drop():
    varied = replace(results(EQUAL), expected=expected(0.3, 0.3, 0.3, 0.3, p_value=0.005))
    assert varies(varied)
    assert recommend(varied).bullets[0] == (
        "ERM scores worse than expected in some environments, p = 0.005 (Q test); the largest shortfall is at s0: accuracy 0.600, expected 0.800."
    )
    small = replace(results(EQUAL), expected=expected(0.3, 0.3, 0.3, 0.3, p_value=0.005, between=0.001))
    assert not has_drop(small)


def test_a_drop_of_the_mean_is_found_if_no_environment_shows_it():
    small = {"erm": {f"s{k:02}": cell(0.80 - 0.005 * (k % 2), 0.84) for k in range(12)}}
    small["erm"] = {n: replace_half(c, 0.05) for n, c in small["erm"].items()}
    assert not significant_drops(results(small))
    assert has_drop(results(small))
    assert "on average over environments, by 0.0" in recommend(results(small)).bullets[0]


def replace_half(own, half):
    mean = own.ood_score.mean
    return replace(own, ood_score=replace(own.ood_score, low=mean - half, high=mean + half))
