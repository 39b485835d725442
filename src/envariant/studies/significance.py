"""Test whether algorithms differ significantly from ERM after model selection.

Paired runs have the same data set, test environments and replica number. They therefore use the same rows,
initial weights and batches.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from envariant.analysis import statistics
from envariant.analysis.statistics import Interval, Ranking
from envariant.core.display import NONE, Displayed, Summary
from envariant.studies.selection import NoSelection, SelectedRun, SelectionResult

BASELINE = "erm"
LEVEL = 0.05

Unit = tuple[str, tuple[str, ...]]
"""Data set and test environments."""


@final
@dataclass(frozen=True)
class AlgorithmScores:
    """Test scores of one algorithm, and their difference from the baseline.

    Attributes:
        algorithm: Name of the algorithm.
        test: Mean score over test environments and replicas, with a 95 % bootstrap interval.
        worst: Mean score over replicas in the set of test environments where this mean is worst.
        interquartile_mean: Interquartile mean of the scores over test environments and replicas.
        gain: Mean paired difference from the baseline; None for the baseline itself or without pairs.
        improvement: Share of pairs in which the algorithm is better than the baseline; None without pairs.
        p_value: P-value of the Wilcoxon signed-rank test, Holm-corrected over all compared algorithms; None
            with fewer than two pairs.
        n_missing: Number of combinations of test environments and replica for which no run was selected.
        missing_reason: First reason why no run was selected, or "".
    """

    algorithm: str
    test: Interval
    worst: float
    interquartile_mean: float
    gain: Interval | None
    improvement: float | None
    p_value: float | None
    n_missing: int
    missing_reason: str


@final
@dataclass(frozen=True, repr=False)
class Comparison(Displayed):
    """Comparison of all algorithms of a study under one selection rule.

    Attributes:
        rows: Scores of each algorithm.
        ranking: Mean ranks over data sets and test environments; None if there are fewer than three
            algorithms or fewer than two sets of test environments.
        verdict: Conclusion in one or two sentences.
    """

    rows: tuple[AlgorithmScores, ...]
    ranking: Ranking | None
    verdict: str

    def _display(self) -> Summary:
        rows = [
            (
                row.algorithm,
                str(row.test),
                NONE if row.gain is None else str(row.gain),
                NONE if row.p_value is None else f"{row.p_value:.2g}",
            )
            for row in self.rows
        ]
        return Summary(
            "Comparison with ERM",
            brief={name: f"{test}, gain {gain}, p {p}" for name, test, gain, p in rows},
            lines=(self.verdict,),
            header=("algorithm", "test score", "gain over ERM", "p (Holm)"),
            rows=tuple(rows),
            notes=("Brackets: 95 % bootstrap interval over test environments and replicas.",),
        )


def compare(selected: Sequence[SelectionResult], *, higher_is_better: bool = True) -> Comparison:
    """Compare every algorithm with ERM in paired tests.

    Args:
        selected: Results of one selection rule for each algorithm, from `select`.
        higher_is_better: Whether higher values of the metric are better.
    """
    sign = 1.0 if higher_is_better else -1.0
    names = list(dict.fromkeys(each.algorithm for each in selected))
    scores = {name: _scores(selected, name) for name in names}
    pairs = {
        name: [] if name == BASELINE else _pairs(scores[name], scores.get(BASELINE, {})) for name in names
    }
    tested = [name for name in names if len(pairs[name]) > 1]
    raw = [statistics.signed_rank(*zip(*pairs[name], strict=True)) for name in tested]
    p_values = dict(zip(tested, statistics.holm(raw), strict=True))
    rows: list[AlgorithmScores] = []
    for name in names:
        values, own = list(scores[name].values()), pairs[name]
        signed = [(sign * a, sign * b) for a, b in own]
        reasons = [
            each.choice.reason
            for each in selected
            if each.algorithm == name and isinstance(each.choice, NoSelection)
        ]
        means = [sign * mean for mean in _means(scores[name]).values()]
        rows.append(
            AlgorithmScores(
                name,
                statistics.bootstrap(values),
                sign * min(means) if means else math.nan,
                statistics.interquartile_mean(values),
                statistics.bootstrap([a - b for a, b in own]) if own else None,
                statistics.probability_of_improvement(*zip(*signed, strict=True)) if own else None,
                p_values.get(name),
                len(reasons),
                reasons[0] if reasons else "",
            )
        )
    return Comparison(tuple(rows), _ranking(scores, sign), _verdict(rows, sign))


def _scores(selected: Sequence[SelectionResult], algorithm: str) -> dict[tuple[Unit, int], float]:
    """Return the finite test scores of an algorithm, by unit and replica."""
    return {
        ((each.data, each.test_environments), each.replica): each.choice.test
        for each in selected
        if each.algorithm == algorithm
        and isinstance(each.choice, SelectedRun)
        and math.isfinite(each.choice.test)
    }


def _pairs(
    scores: Mapping[tuple[Unit, int], float], baseline: Mapping[tuple[Unit, int], float]
) -> list[tuple[float, float]]:
    return [(score, baseline[key]) for key, score in scores.items() if key in baseline]


def _means(scores: Mapping[tuple[Unit, int], float]) -> dict[Unit, float]:
    """Return the mean over replicas for each data set and set of test environments."""
    groups: dict[Unit, list[float]] = {}
    for (unit, _), score in scores.items():
        groups.setdefault(unit, []).append(score)
    return {unit: sum(group) / len(group) for unit, group in groups.items()}


def _ranking(scores: Mapping[str, Mapping[tuple[Unit, int], float]], sign: float) -> Ranking | None:
    means = [_means(each) for each in scores.values()]
    common = [unit for unit in means[0] if all(unit in each for each in means)] if means else []
    if len(means) < 3 or len(common) < 2:
        return None
    return statistics.friedman([[sign * each[unit] for each in means] for unit in common])


def _verdict(rows: Sequence[AlgorithmScores], sign: float) -> str:
    tested = [
        (row, row.gain, row.p_value) for row in rows if row.gain is not None and row.p_value is not None
    ]
    if not tested:
        return "No significance test: it needs ERM, another algorithm and at least two pairs of runs."
    n_pairs = min(gain.count for _, gain, _ in tested)
    # If all n pairs have the same sign, the two-sided Wilcoxon test gives 2/2ⁿ; Holm multiplies it.
    smallest = min(1.0, len(tested) * 2.0 ** (1 - n_pairs))
    if smallest >= LEVEL:
        return (
            f"Too few replicas: with {n_pairs} pairs the smallest possible corrected p-value is "
            f"{smallest:.2g}, so no difference from ERM can be significant."
        )
    differences = [
        f"{row.algorithm} is {'better' if sign * gain.mean > 0 else 'worse'} than ERM by "
        f"{abs(gain.mean):.3f} (p = {p_value:.2g}, Holm)"
        for row, gain, p_value in tested
        if p_value < LEVEL
    ]
    if not differences:
        return "No algorithm differs significantly from ERM."
    return "Significant differences: " + "; ".join(differences) + "."
