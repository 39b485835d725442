"""Comparison of algorithms with ERM on hand-made selections with known answers."""

import math

import pytest

from envariant.analysis.statistics import holm, signed_rank
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
    expected = holm([signed_rank(irm, erm), signed_rank(vrex, erm)])
    assert [better.p_value, equal.p_value] == expected
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
        ({"erm": [0.5] * 5, "irm": [0.6] * 5}, "Too few replicas: with 5 pairs the smallest possible"),
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
