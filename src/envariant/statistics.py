"""What is noise and what is not: intervals for means, paired differences and slopes over replicas.

Plain numbers in, an interval out. Replicas are the unit: whatever varies inside a run, such as the steps
of a curve, becomes one number a replica first, because steps of one run are not independent.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

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
