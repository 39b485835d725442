"""Test whether algorithms differ significantly from ERM after model selection.

Runs are paired if they have the same data set, test environments and replica number. Paired runs use the same
rows, initial weights and batches. For each replica, the differences from ERM are averaged over test
environments. The averages are independent across replicas, and a t test compares their mean with zero. With a
single replica, the t test uses the differences themselves, one per data set and set of test environments.
Unlike a rank test, a t test can be significant with only three values. The conclusion is valid only for these
test environments.
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
        test: Mean score over test environments and replicas, with a 95 % confidence interval (Student's t
            over replicas).
        worst: Mean score over replicas in the worst set of test environments.
        interquartile_mean: Interquartile mean of the scores over test environments and replicas.
        gain: Mean of the differences from the baseline in the t test, with a confidence interval that
            excludes 0 if and only if `p_value` is below 0.05. None for the baseline, or if no run is paired
            with a run of the baseline.
        improvement: Share of paired runs in which the algorithm is better than the baseline; ties count half.
            None if no runs are paired.
        p_value: P-value of the paired t test, Holm-corrected over all tested algorithms. The test uses one
            difference per replica, averaged over test environments. With a single replica, it uses one per
            data set and set of test environments. None if there are fewer than two differences.
        n_missing: Number of combinations of test environments and replica for which no run was selected.
        missing_reason: Reason for the first missing selection; "" if none is missing.
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
        ranking: Mean ranks of the algorithms over sets of test environments; None if there are fewer than
            three algorithms or fewer than two such sets.
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
            notes=("Brackets: 95 % interval; t test over replicas, averaged over test environments.",),
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
    base = scores.get(BASELINE, {})
    pairs = {
        name: {key: (score, base[key]) for key, score in scores[name].items() if key in base}
        for name in names
        if name != BASELINE
    }
    gains = {
        name: _averages({key: a - b for key, (a, b) in own.items()}) for name, own in pairs.items() if own
    }
    tested = [name for name, values in gains.items() if len(values) > 1]
    raw = {name: statistics.paired_t(gains[name], [0.0] * len(gains[name])) for name in tested}
    p_values = dict(zip(tested, statistics.holm(list(raw.values())), strict=True))
    rows: list[AlgorithmScores] = []
    for name in names:
        signed = [(sign * a, sign * b) for a, b in pairs.get(name, {}).values()]
        reasons = [
            each.choice.reason
            for each in selected
            if each.algorithm == name and isinstance(each.choice, NoSelection)
        ]
        means = [sign * mean for mean in _means(scores[name]).values()]
        rows.append(
            AlgorithmScores(
                name,
                statistics.interval(_averages(scores[name])),
                sign * min(means) if means else math.nan,
                statistics.interquartile_mean(list(scores[name].values())),
                _gain(gains[name], raw.get(name), p_values.get(name)) if name in gains else None,
                statistics.probability_of_improvement(*zip(*signed, strict=True)) if signed else None,
                p_values.get(name),
                len(reasons),
                reasons[0] if reasons else "",
            )
        )
    return Comparison(tuple(rows), _ranking(scores, sign), _verdict(rows, sign))


def _gain(values: Sequence[float], raw: float | None, corrected: float | None) -> Interval:
    """Return the mean gain, with a confidence interval at the level that Holm's procedure gives this test.

    If the gain is the same in all replicas, its variance is unknown, and the interval is infinite.
    """
    if not raw or not corrected or raw == 1.0:
        return Interval(statistics.interval(values).mean, -math.inf, math.inf, len(values))
    return statistics.interval(values, 1 - LEVEL * raw / corrected)


def _scores(selected: Sequence[SelectionResult], algorithm: str) -> dict[tuple[Unit, int], float]:
    """Return the finite test scores of an algorithm, by unit (data set and test environments) and replica."""
    return {
        ((each.data, each.test_environments), each.replica): each.choice.test
        for each in selected
        if each.algorithm == algorithm
        and isinstance(each.choice, SelectedRun)
        and math.isfinite(each.choice.test)
    }


def _averages(values: Mapping[tuple[Unit, int], float]) -> list[float]:
    """Return the mean score of each replica over units (data sets with their test environments).

    Only units with scores in all replicas are used; if there is none, all scores are averaged. With a single
    replica, return the score of each unit.
    """
    replicas = sorted({replica for _, replica in values})
    if len(replicas) == 1:
        return list(values.values())
    units = dict.fromkeys(unit for unit, _ in values)
    complete = [unit for unit in units if all((unit, k) in values for k in replicas)] or list(units)
    each = [[values[unit, k] for unit in complete if (unit, k) in values] for k in replicas]
    return [sum(own) / len(own) for own in each if own]


def _means(scores: Mapping[tuple[Unit, int], float]) -> dict[Unit, float]:
    """Return the mean score over replicas for each data set and set of test environments."""
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
    differences = [
        f"{row.algorithm} is {'better' if sign * gain.mean > 0 else 'worse'} than ERM by "
        f"{abs(gain.mean):.3f} (p = {p_value:.2g}, Holm)"
        for row, gain, p_value in tested
        if p_value < LEVEL
    ]
    if not differences:
        return "No algorithm differs significantly from ERM."
    return "Significant differences: " + "; ".join(differences) + "."
