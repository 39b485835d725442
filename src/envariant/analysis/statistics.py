"""What is noise and what is not: intervals for means, paired differences and slopes over replicas.

Plain numbers in, an interval out. Replicas are the unit: whatever varies inside a run, such as the steps
of a curve, becomes one number a replica first, because steps of one run are not independent.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

LEVEL = 0.95


@final
@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval (Student), in the unit of the values.

    Attributes:
        mean: of the values.
        low, high: ends of the interval; infinite with fewer than two values.
        count: how many values there were.
    """

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        if self.count < 2:
            return f"{self.mean:.3g} (one replica, no interval)"
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"

    def contains(self, value: float) -> bool:
        """Whether the value lies inside or on an end."""
        return self.low <= value <= self.high


def interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """The mean of independent values and its interval: mean ± t·s/√n, s with divisor n − 1."""
    n = len(values)
    mean = statistics.fmean(values) if n else math.nan
    if n < 2:
        return Interval(mean, -math.inf, math.inf, n)
    # Imported here: it takes a moment, and not every page needs it.
    from scipy import stats

    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def difference(first: Sequence[float], second: Sequence[float], level: float = LEVEL) -> Interval:
    """First − second, pair by pair: replica k of two runs has the same data, weights and batches.

    Raises:
        ValueError: the two have not the same length.
    """
    return interval([a - b for a, b in zip(first, second, strict=True)], level)


def slope(places: Sequence[float], values: Sequence[float]) -> float:
    """The slope of the least-squares line through one curve, in units of value per unit of place.

    Raises:
        ValueError: there are fewer than two different places.
    """
    if len(set(places)) < 2:
        raise ValueError("a slope needs values at two places at least")
    return float(statistics.linear_regression(places, values).slope)


def bootstrap(values: Sequence[float], level: float = LEVEL, seed: int = 0) -> Interval:
    """The mean of independent values and its percentile interval over 10,000 resamples."""
    n = len(values)
    if n < 2:
        return interval(values, level)
    import numpy as np

    generator = np.random.default_rng(seed)
    means = np.asarray(values)[generator.integers(n, size=(10_000, n))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(statistics.fmean(values), float(low), float(high), n)


def interquartile_mean(values: Sequence[float]) -> float:
    """The mean of the middle half; a few bad runs do not move it. Agarwal et al. 2021, arXiv 2108.13264."""
    if not values:
        return math.nan
    from scipy import stats

    return float(stats.trim_mean(values, 0.25))


def probability_of_improvement(first: Sequence[float], second: Sequence[float]) -> float:
    """How often a pair's first is above its second, ties counting half."""
    pairs = list(zip(first, second, strict=True))
    wins = sum((a > b) + 0.5 * (a == b) for a, b in pairs)
    return wins / len(pairs) if pairs else math.nan


def signed_rank(first: Sequence[float], second: Sequence[float]) -> float:
    """Wilcoxon's two-sided p-value for differences in pairs; 1 where no pair differs."""
    differences = [a - b for a, b in zip(first, second, strict=True) if a != b]
    if not differences:
        return 1.0
    from scipy import stats

    found: Any = stats.wilcoxon(differences)
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p-value, corrected for there being several. Holm 1979."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, highest = [math.nan] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected


@final
@dataclass(frozen=True)
class Ranking:
    """Friedman's test over places such as data sets, and how far mean ranks must lie apart to differ.

    Attributes:
        ranks: the mean rank of each method, 1 the best.
        p_value: of there being no difference at all.
        critical_difference: of two mean ranks, by Nemenyi. Demšar 2006.
        places: over how many.
    """

    ranks: tuple[float, ...]
    p_value: float
    critical_difference: float
    places: int


def friedman(table: Sequence[Sequence[float]], level: float = LEVEL) -> Ranking:
    """Ranks methods (columns, higher is better) over places (rows).

    Raises:
        ValueError: there are fewer than three methods or two places.
    """
    places, methods = len(table), len(table[0]) if table else 0
    if methods < 3 or places < 2:
        raise ValueError("Friedman's test needs three methods and two places at least")
    from scipy import stats

    ranks = [stats.rankdata([-value for value in row]) for row in table]
    mean = tuple(float(sum(row[i] for row in ranks) / places) for i in range(methods))
    columns = [[row[i] for row in table] for i in range(methods)]
    alike = all(len(set(row)) == 1 for row in table)
    p = 1.0 if alike else float(stats.friedmanchisquare(*columns).pvalue)
    q = float(stats.studentized_range.ppf(level, methods, math.inf)) / math.sqrt(2)
    return Ranking(mean, p, q * math.sqrt(methods * (methods + 1) / (6 * places)), places)
