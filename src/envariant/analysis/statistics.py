"""Confidence intervals, paired differences, tests and rankings over independent replicas.

The values passed to these functions must be independent: one number per replica. For example, the points of
one learning curve are not independent; reduce each curve to one number first.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from envariant.core.errors import EnvariantError

LEVEL = 0.95
"""Confidence level of intervals."""


@final
@dataclass(frozen=True)
class Interval:
    """Mean and confidence interval, in the unit of the values.

    Attributes:
        mean: Mean of the values.
        low, high: Ends of the interval; infinite if there are fewer than two values.
        count: Number of values.
    """

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        if self.count < 2:
            return f"{self.mean:.3g} (one replica, no interval)"
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"

    def clipped(self, lowest: float, highest: float) -> "Interval":
        """Return the interval with its ends clipped to [`lowest`, `highest`]."""
        return Interval(self.mean, max(self.low, lowest), min(self.high, highest), self.count)

    def contains(self, value: float) -> bool:
        """Return whether a value is in the interval, ends included."""
        return self.low <= value <= self.high


def interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Return the mean of independent values and its confidence interval from Student's t, mean ± t·s/√n.

    Args:
        values: n independent values with standard deviation s (divisor n − 1).
        level: Confidence level, between 0 and 1.

    Example:
        >>> print(interval([0.61, 0.66, 0.70, 0.65, 0.68]))
        0.66 [0.618, 0.702]
    """
    _check_level("interval", level)
    if any(isinstance(value, str) for value in values):
        raise EnvariantError("interval: values must be numbers, one per replica")
    n = len(values)
    mean = statistics.fmean(values) if n else math.nan
    if n < 2:
        return Interval(mean, -math.inf, math.inf, n)
    # Imported here because the import is slow and not every report needs it.
    from scipy import stats

    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def difference(first: Sequence[float], second: Sequence[float], level: float = LEVEL) -> Interval:
    """Return the mean paired difference, first − second, and its Student's t confidence interval.

    Args:
        first: Values of the first method, one per replica.
        second: Values of the second method for the same replicas.
        level: Confidence level, between 0 and 1.

    Raises:
        EnvariantError: If `first` and `second` differ in length.

    Example:
        >>> print(difference([0.71, 0.74, 0.69], [0.70, 0.71, 0.67]))
        0.02 [-0.00484, 0.0448]
    """
    return interval([a - b for a, b in _pairs("difference", first, second)], level)


def slope(positions: Sequence[float], values: Sequence[float]) -> float:
    """Return the slope of the least-squares line through the points of a curve.

    Args:
        positions: Positions on the horizontal axis, such as training steps.
        values: One value per position.

    Raises:
        EnvariantError: If there are fewer than two distinct positions, or a different number of values.

    Example:
        >>> slope([0, 100, 200], [0.25, 0.5, 0.75])
        0.0025
    """
    if len(set(positions)) < 2:
        raise EnvariantError("slope: needs values at two or more distinct positions")
    pairs = _pairs("slope", positions, values)
    return float(statistics.linear_regression(*zip(*pairs, strict=True)).slope)


def bootstrap(values: Sequence[float], level: float = LEVEL, seed: int = 0) -> Interval:
    """Return the mean of independent values and its bootstrap percentile interval (10,000 resamples).

    Args:
        values: Independent values.
        level: Confidence level, between 0 and 1.
        seed: Seed of the resampling.

    Example:
        >>> print(bootstrap([0.61, 0.66, 0.70, 0.65, 0.68]))
        0.66 [0.632, 0.684]
    """
    _check_level("bootstrap", level)
    n = len(values)
    if n < 2:
        return interval(values, level)
    import numpy as np

    generator = np.random.default_rng(seed)
    means = np.asarray(values)[generator.integers(n, size=(10_000, n))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(statistics.fmean(values), float(low), float(high), n)


def interquartile_mean(values: Sequence[float]) -> float:
    """Return the mean of the middle half of the values, which is robust to a few failed runs.

    The result is NaN if there are no values. Agarwal et al. 2021, arXiv 2108.13264.

    Example:
        >>> interquartile_mean([0.0, 0.25, 0.75, 1.0])
        0.5
    """
    if not values:
        return math.nan
    from scipy import stats

    return float(stats.trim_mean(values, 0.25))


def probability_of_improvement(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the share of pairs in which the first value is larger than the second; ties count half.

    The result is NaN if there are no pairs.

    Raises:
        EnvariantError: If `first` and `second` differ in length.

    Example:
        >>> probability_of_improvement([1, 2, 3, 4], [0, 2, 4, 3])
        0.625
    """
    pairs = _pairs("probability_of_improvement", first, second)
    wins = sum((a > b) + 0.5 * (a == b) for a, b in pairs)
    return wins / len(pairs) if pairs else math.nan


def signed_rank(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test; 1 if the values of all pairs are equal.

    Raises:
        EnvariantError: If `first` and `second` differ in length.

    Example:
        >>> signed_rank([0.9, 0.8, 0.85, 0.95, 0.71, 0.6], [0.5, 0.6, 0.55, 0.4, 0.65, 0.5])
        0.03125
    """
    differences = [a - b for a, b in _pairs("signed_rank", first, second) if a != b]
    if not differences:
        return 1.0
    from scipy import stats

    test: Any = stats.wilcoxon(differences)
    return float(test.pvalue)


def paired_t(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the two-sided p-value of the paired t test.

    The test assumes nearly normal differences. Unlike rank tests, it can be significant with three pairs. If
    all differences are equal, their variance cannot be estimated, and the p-value is 1.

    Raises:
        EnvariantError: If `first` and `second` differ in length, or there are fewer than two pairs.

    Example:
        >>> round(paired_t([0.61, 0.66, 0.64], [0.17, 0.20, 0.19]), 5)
        0.00016
    """
    differences = [a - b for a, b in _pairs("paired_t", first, second)]
    if len(differences) < 2:
        raise EnvariantError(f"paired_t: needs at least two pairs, got {len(differences)}")
    from scipy import stats

    mean, error = statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(len(differences))
    # Equal differences of rounded scores may differ in the last digit.
    if error <= 1e-12 * abs(mean):
        return 1.0
    return float(2 * stats.t.sf(abs(mean) / error, len(differences) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for multiple testing by Holm's step-down procedure (Holm 1979).

    Raises:
        EnvariantError: If a p-value is not in [0, 1].

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    for p in p_values:
        if p < 0 or p > 1:
            raise EnvariantError(f"holm: p-values must be in [0, 1], got {p}")
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, highest = [math.nan] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected


def _pairs(name: str, first: Sequence[float], second: Sequence[float]) -> list[tuple[float, float]]:
    if len(first) != len(second):
        raise EnvariantError(
            f"{name}: both sequences must have the same length, got {len(first)} and {len(second)}"
        )
    return list(zip(first, second, strict=True))


def _check_level(name: str, level: float) -> None:
    if not 0 < level < 1:
        raise EnvariantError(f"{name}: level must be in (0, 1), got {level}")


@final
@dataclass(frozen=True)
class Ranking:
    """Result of Friedman's test of several methods over several data sets.

    Attributes:
        ranks: Mean rank of each method; 1 is best.
        p_value: P-value of the test that all methods perform equally.
        critical_difference: Smallest significant difference of two mean ranks (Nemenyi test; Demšar 2006).
        n_datasets: Number of data sets (or environments).
    """

    ranks: tuple[float, ...]
    p_value: float
    critical_difference: float
    n_datasets: int


def friedman(table: Sequence[Sequence[float]], level: float = LEVEL) -> Ranking:
    """Rank methods over data sets and test whether they differ (Friedman 1937; Demšar 2006).

    Args:
        table: Scores, with one row per data set and one column per method; higher is better.
        level: Confidence level of the critical difference.

    Raises:
        EnvariantError: If there are fewer than three methods or two data sets, or rows differ in length.

    Example:
        >>> friedman([[0.9, 0.8, 0.7], [0.8, 0.9, 0.7], [0.9, 0.8, 0.7]]).ranks
        (1.3333333333333333, 1.6666666666666667, 3.0)
    """
    n_datasets, methods = len(table), len(table[0]) if table else 0
    if methods < 3 or n_datasets < 2:
        raise EnvariantError("friedman: needs at least three methods and two data sets")
    if any(len(row) != methods for row in table):
        raise EnvariantError("friedman: every data set needs one value per method")
    _check_level("friedman", level)
    from scipy import stats

    ranks = [stats.rankdata([-value for value in row]) for row in table]
    mean = tuple(float(sum(row[i] for row in ranks) / n_datasets) for i in range(methods))
    columns = [[row[i] for row in table] for i in range(methods)]
    all_tied = all(len(set(row)) == 1 for row in table)
    p = 1.0 if all_tied else float(stats.friedmanchisquare(*columns).pvalue)
    q = float(stats.studentized_range.ppf(level, methods, math.inf)) / math.sqrt(2)
    return Ranking(mean, p, q * math.sqrt(methods * (methods + 1) / (6 * n_datasets)), n_datasets)
