"""Which algorithm is better than ERM beyond noise, once a selection has chosen a model of each.

Pairs are of one data set, one held-out environment and one replica: the same rows, weights and batches.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from envariant.analysis import statistics
from envariant.analysis.statistics import Interval, Ranking
from envariant.studies.selection import Chosen, Missing
from envariant.studies.selection.base import Selected

BASELINE = "erm"
LEVEL = 0.05


@final
@dataclass(frozen=True)
class Compared:
    """One algorithm beside the baseline, in the held-out environments.

    Attributes:
        algorithm: which.
        test: mean over places and replicas, with a bootstrap interval.
        worst: the lowest of all places' means over replicas (the highest, where lower is better).
        interquartile_mean: of the same values.
        gain: over the baseline, pair by pair; None for the baseline itself or where it is missing.
        improvement: how often a pair is better than the baseline's.
        p_value: Wilcoxon's, corrected by Holm for all algorithms compared.
        missing: how many places and replicas have nothing, with the first reason.
    """

    algorithm: str
    test: Interval
    worst: float
    interquartile_mean: float
    gain: Interval | None
    improvement: float | None
    p_value: float | None
    missing: tuple[int, str]


@final
@dataclass(frozen=True)
class Comparison:
    """All algorithms of a study under one selection.

    Attributes:
        rows: of each algorithm.
        ranking: over data sets and held-out environments; None where there are too few.
        verdict: in a sentence.
    """

    rows: tuple[Compared, ...]
    ranking: Ranking | None
    verdict: str


def compare(selected: Sequence[Selected], *, higher_is_better: bool = True) -> Comparison:
    """Every algorithm beside ERM, in pairs."""
    sign = 1.0 if higher_is_better else -1.0
    names = list(dict.fromkeys(each.algorithm for each in selected))
    values = {name: _values(selected, name) for name in names}
    usual = values.get(BASELINE, {})
    tested = [name for name in names if name != BASELINE and len(_pairs(values[name], usual)) > 1]
    raw = [statistics.signed_rank(*zip(*_pairs(values[name], usual), strict=True)) for name in tested]
    corrected = dict(zip(tested, statistics.holm(raw), strict=True))
    rows: list[Compared] = []
    for name in names:
        pairs = [] if name == BASELINE else _pairs(values[name], usual)
        mine, theirs = zip(*pairs, strict=True) if pairs else ((), ())
        own = list(values[name].values())
        gaps = [
            each.choice.reason
            for each in selected
            if each.algorithm == name and isinstance(each.choice, Missing)
        ]
        rows.append(
            Compared(
                name,
                statistics.bootstrap(own),
                _worst(values[name], higher_is_better=higher_is_better),
                statistics.interquartile_mean(own),
                statistics.bootstrap([a - b for a, b in pairs]) if pairs else None,
                statistics.probability_of_improvement([sign * a for a in mine], [sign * b for b in theirs])
                if pairs
                else None,
                corrected.get(name),
                (len(gaps), gaps[0] if gaps else ""),
            )
        )
    return Comparison(tuple(rows), _ranking(values, sign), _verdict(rows, sign))


Place = tuple[str, str, int]


def _values(selected: Sequence[Selected], algorithm: str) -> dict[Place, float]:
    return {
        (each.data, each.test_environments, each.replica): each.choice.test
        for each in selected
        if each.algorithm == algorithm and isinstance(each.choice, Chosen) and math.isfinite(each.choice.test)
    }


def _pairs(mine: dict[Place, float], usual: dict[Place, float]) -> list[tuple[float, float]]:
    return [(value, usual[place]) for place, value in mine.items() if place in usual]


def _by_place(values: dict[Place, float]) -> dict[tuple[str, str], float]:
    """Means over replicas."""
    found: dict[tuple[str, str], list[float]] = {}
    for (data, test_environments, _), value in values.items():
        found.setdefault((data, test_environments), []).append(value)
    return {place: sum(each) / len(each) for place, each in found.items()}


def _worst(values: dict[Place, float], *, higher_is_better: bool) -> float:
    means = _by_place(values).values()
    return math.nan if not means else min(means) if higher_is_better else max(means)


def _ranking(values: dict[str, dict[Place, float]], sign: float) -> Ranking | None:
    means = [_by_place(each) for each in values.values()]
    common = [place for place in means[0] if all(place in each for each in means)] if means else []
    if len(means) < 3 or len(common) < 2:
        return None
    return statistics.friedman([[sign * each[place] for each in means] for place in common])


def _verdict(rows: Sequence[Compared], sign: float) -> str:
    beyond = [row for row in rows if row.p_value is not None and row.p_value < LEVEL and row.gain is not None]
    compared = [row for row in rows if row.p_value is not None]
    if not compared:
        return "Nothing can be said of noise: it takes ERM, another algorithm and two pairs of runs at least."
    least = min(row.gain.count for row in compared if row.gain is not None)
    # Of n pairs that all point one way, two-sided Wilcoxon gives 2/2ⁿ; Holm multiplies it.
    if len(compared) * 2.0 ** (1 - least) >= LEVEL:
        return (
            f"No method can be told from ERM with {least} pairs: even if all pointed one way, the corrected "
            f"p-value would be {min(1.0, len(compared) * 2.0 ** (1 - least)):.2g}. More replicas are needed."
        )
    if not beyond:
        return "No method differs from ERM beyond noise."
    words = [
        f"{row.algorithm} is {'better' if sign * row.gain.mean > 0 else 'worse'} than ERM by "
        f"{abs(row.gain.mean):.3f} (p = {row.p_value:.2g})"
        for row in beyond
        if row.gain is not None
    ]
    return "Beyond noise: " + "; ".join(words) + "."
