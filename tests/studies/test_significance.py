"""Comparison of algorithms with ERM on hand-made selections with known answers."""

import math

import numpy as np
import pytest
from scipy import stats

from envariant.analysis.statistics import holm
from envariant.studies.selection import NoSelection, SelectedRun, SelectionResult
from envariant.studies.significance import compare

NOISE = [0.001 * k for k in range(8)]


def results(algorithm, scores, environment="t", data="d"):
    """Return one selection result per score; None is a replica without a selected run."""
    return [
        SelectionResult(
            data,
            (environment,),
            algorithm,
            replica,
            NoSelection("no run is done")
            if score is None
            else SelectedRun(replica, 10, algorithm, 0, 0.5, score, score, None),
        )
        for replica, score in enumerate(scores)
    ]


def test_paired_gain_p_value_and_verdict_of_a_better_and_an_equal_algorithm():
    erm = [0.5 + noise for noise in NOISE]
    irm = [0.6 + 2 * noise for noise in NOISE]
    vrex = [score + (-1) ** k * 0.01 for k, score in enumerate(erm)]
    comparison = compare(results("erm", erm) + results("irm", irm) + results("vrex", vrex))
    baseline, better, equal = comparison.rows
    assert (baseline.gain, baseline.improvement, baseline.p_value) == (None, None, None)
    assert better.gain.mean == pytest.approx(0.1 + sum(NOISE) / 8)
    assert better.gain.count == 8
    assert better.improvement == 1.0
    assert equal.improvement == 0.5
    expected = holm([stats.ttest_rel(irm, erm).pvalue, stats.ttest_rel(vrex, erm).pvalue])
    assert [better.p_value, equal.p_value] == pytest.approx(expected)
    assert comparison.verdict == (
        f"Significant differences: irm is better than ERM by {better.gain.mean:.3f} "
        f"(p = {better.p_value:.2g}, Holm)."
    )


def test_lower_is_better_turns_the_verdict_and_the_worst_score():
    comparison = compare(
        results("erm", [1.0 + n for n in NOISE], "a")
        + results("erm", [2.0 + n for n in NOISE], "b")
        + results("irm", [1.5 + 2 * n for n in NOISE], "a")
        + results("irm", [2.5 + 2 * n for n in NOISE], "b"),
        higher_is_better=False,
    )
    assert comparison.verdict.startswith("Significant differences: irm is worse than ERM by 0.5")
    assert comparison.rows[0].worst == pytest.approx(2.0 + sum(NOISE) / 8)
    assert comparison.rows[1].improvement == 0.0


def test_missing_replicas_are_counted_and_left_out_of_pairs():
    comparison = compare(results("erm", [0.5, 0.6, 0.7]) + results("irm", [0.6, None, 0.8]))
    row = comparison.rows[1]
    assert (row.n_missing, row.missing_reason) == (1, "no run is done")
    assert row.gain.count == 2
    empty = compare(results("erm", [None]))
    assert math.isnan(empty.rows[0].worst)


@pytest.mark.parametrize(
    ("algorithms", "verdict"),
    [
        ({"erm": [0.5] * 8}, "No significance test: it needs ERM"),
        ({"irm": [0.5] * 8, "vrex": [0.6] * 8}, "No significance test: it needs ERM"),
        ({"erm": [0.5] * 5, "irm": [0.6] * 5}, "No algorithm differs significantly from ERM."),
        ({"erm": NOISE, "irm": NOISE[::-1]}, "No algorithm differs significantly from ERM."),
    ],
)
def test_verdict_without_a_significant_difference(algorithms, verdict):
    selected = [each for name, scores in algorithms.items() for each in results(name, scores)]
    assert compare(selected).verdict.startswith(verdict)


def test_ranking_needs_three_algorithms_and_two_environments():
    def comparison(names, environments):
        return compare(
            [
                each
                for k, n in enumerate(names)
                for e in environments
                for each in results(n, [0.5 + k / 10], e)
            ]
        )

    assert comparison(["erm", "irm"], ["a", "b"]).ranking is None
    assert comparison(["erm", "irm", "vrex"], ["a"]).ranking is None
    assert comparison(["erm", "irm", "vrex"], ["a", "b"]).ranking.ranks == (3.0, 2.0, 1.0)


def test_three_replicas_can_be_significant():
    comparison = compare(results("erm", [0.17, 0.15, 0.18]) + results("irm", [0.62, 0.61, 0.62]))
    assert comparison.verdict.startswith("Significant differences: irm is better than ERM by 0.45")
    row = comparison.rows[1]
    assert row.p_value < 0.01
    assert 0 < row.gain.low < row.gain.mean < row.gain.high


def test_interval_of_the_gain_excludes_zero_exactly_if_the_gain_is_significant():
    generator = np.random.default_rng(0)
    agree = set()
    for _ in range(60):
        means = generator.choice([0.0, 0.01, 0.05], 3)
        base = generator.normal(0.5, 0.02, 4)
        selected = results("erm", base)
        for name, mean in zip(("irm", "vrex", "coral"), means, strict=True):
            selected += results(name, base + mean + generator.normal(0, 0.02, 4))
        for row in compare(selected).rows[1:]:
            excludes = row.gain.low > 0 or row.gain.high < 0
            assert excludes == (row.p_value < 0.05)
            agree.add(excludes)
    assert agree == {True, False}


@pytest.mark.parametrize(("units", "names"), [(1, ("erm", "irm", "vrex")), (4, ("erm", "irm"))])
def test_level_with_three_replicas(units, names):
    """Replica effects are shared by the test environments; environments differ in their mean score."""
    generator = np.random.default_rng(1)
    n_false, n_runs = 0, 300
    for _ in range(n_runs):
        selected = []
        for name in names:
            replica = generator.normal(0, 0.02, 3)
            for unit in range(units):
                scores = 0.6 + 0.1 * unit + replica + generator.normal(0, 0.02, 3)
                selected += results(name, scores, str(unit))
        n_false += any(row.p_value < 0.05 for row in compare(selected).rows[1:])
    # Five standard errors; the family-wise level is at most 0.05.
    assert n_false / n_runs < 0.05 + 5 * (0.05 * 0.95 / n_runs) ** 0.5
    assert n_false > 0, "the test can be significant"


def test_equal_gains_of_all_replicas_are_no_evidence():
    row = compare(results("erm", [0.5] * 3) + results("irm", [0.6] * 3)).rows[1]
    assert row.p_value == 1.0
    assert row.gain.mean == pytest.approx(0.1)
    assert row.gain.low < 0 < row.gain.high


def test_units_that_lack_a_replica_do_not_unbalance_the_means():
    selected = results("erm", [0.5, 0.52, 0.51], "a") + results("erm", [0.9, None, 0.9], "b")
    selected += results("irm", [0.6, 0.63, 0.61], "a") + results("irm", [0.9, None, 0.9], "b")
    baseline, row = compare(selected).rows
    assert baseline.test.mean == pytest.approx(0.51)
    assert row.gain.mean == pytest.approx((0.1 + 0.11 + 0.1) / 3)
