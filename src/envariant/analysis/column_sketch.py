"""Summaries of training columns, which are stored with a model to detect drift in new rows."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

# Summarize a numeric column by its values at evenly spaced ranks, a category by its most frequent values.
_KNOTS = 101
_SEPARATE_CATEGORIES = 32
_INTEGER = re.compile(r"(0|-?[1-9]\d*)(?:\.0+)?")


@final
@dataclass(frozen=True, eq=False)
class Sketch:
    """Summary of one training column: number of rows in each environment and bin.

    A numeric column has one bin per knot, one between each pair of consecutive knots, one below the first
    knot, one above the last knot, and one for missing values. A categorical column has one bin per frequent
    category, and one each for all other training categories, unseen categories and missing values.

    Attributes:
        name, kind: Name of the column, and its kind, such as "number" or "date".
        categorical: Whether values are categories.
        ordered: Whether values have an order. If so, distances are Kolmogorov–Smirnov statistics.
        knots: Quantiles of the training values, in increasing order, `[knots]`; empty for categories.
        categories: All training categories, the most frequent first; empty for numbers.
        counts: Number of training rows, `[environments, bins]`.
        alone: Number of training rows whose category occurs only in their environment, `[environments,
            bins]`.
    """

    name: str
    kind: str
    categorical: bool
    ordered: bool
    knots: NDArray[np.float64]
    categories: tuple[str, ...]
    counts: NDArray[np.int64]
    alone: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        name: str,
        kind: str,
        values: NDArray[Any],
        environments: NDArray[Any],
        n_environments: int,
        categories: Sequence[str] = (),
        *,
        categorical: bool,
        ordered: bool,
    ) -> "Sketch":
        """Summarize the training rows of a column.

        Args:
            name: Name of the column.
            kind: Kind of the column, such as "number" or "category".
            values: Training values, `[rows]`: floats, NaN if missing; or category codes, −1 if missing.
            environments: Index of the environment of each row, counted from 0, `[rows]`.
            n_environments: Number of environments.
            categories: Category names in the order of the codes.
            categorical: Whether values are category codes.
            ordered: Whether values are ordered.
        """
        knots = np.zeros(0)
        by_frequency: tuple[str, ...] = ()
        if categorical:
            frequency = np.bincount(values[values >= 0], minlength=len(categories))
            order = np.argsort(-frequency, kind="stable")
            by_frequency = tuple(str(categories[code]) for code in order.tolist() if frequency[code])
        elif len(present := values[~np.isnan(values)]):
            ranks = np.linspace(0, 1, _KNOTS)
            knots = np.unique(np.quantile(present, ranks, method="inverted_cdf"))
        none = np.zeros((n_environments, 0), dtype=np.int64)
        empty = cls(name, kind, categorical, ordered, knots, by_frequency, none, none)
        members = [environments == k for k in range(n_environments)]
        counts = np.stack([empty.tally(values[rows], categories) for rows in members])
        alone = np.zeros_like(counts)
        if categorical:
            occurs = np.zeros((n_environments, len(categories) + 1), dtype=bool)
            occurs[environments, values] = True
            unshared = (occurs.sum(axis=0) == 1)[values] & (values >= 0)
            alone = np.stack([empty.tally(values[unshared & rows], categories) for rows in members])
        return cls(name, kind, categorical, ordered, knots, by_frequency, counts, alone)

    @property
    def bins(self) -> int:
        """Number of bins; the last one is for missing values."""
        if self.categorical:
            return min(len(self.categories), _SEPARATE_CATEGORIES) + 3
        return 2 * len(self.knots) + 2

    @property
    def training_range(self) -> tuple[str, ...]:
        """Smallest and largest training value as strings; empty for categories and empty columns."""
        return (
            tuple(_text(self.kind, float(value)) for value in self.knots[[0, -1]]) if len(self.knots) else ()
        )

    def tally(self, values: NDArray[Any], categories: Sequence[str] = ()) -> NDArray[np.int64]:
        """Return the number of rows in each bin, `[bins]`.

        Args:
            values: Values, `[rows]`: floats, NaN if missing; or category codes, −1 if missing.
            categories: Category names in the order of the codes.
        """
        last = self.bins - 1
        if self.categorical:
            separate = min(len(self.categories), _SEPARATE_CATEGORIES)
            known = {name: min(k, separate) for k, name in enumerate(self.categories)}
            bins = np.array([*(known.get(name, separate + 1) for name in categories), last])[values]
        else:
            bins = np.full(len(values), last)
            if len(self.knots):
                position = np.searchsorted(self.knots, values)
                at_knot = self.knots[np.minimum(position, len(self.knots) - 1)] == values
                bins = np.where(np.isnan(values), last, 2 * position + at_knot)
        return np.bincount(bins, minlength=self.bins).astype(np.int64)

    def distance(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
        """Return the distance between two distributions, in [0, 1]; NaN if one of them has no values.

        For ordered values, such as numbers, it is the Kolmogorov–Smirnov statistic at the knots, at most 0.01
        below the exact statistic. For others, such as categories, it is the total variation distance. Missing
        values are ignored.

        Args:
            first: Number of rows in each bin of one distribution, `[bins]`.
            second: Number of rows in each bin of the other distribution, `[bins]`.
        """
        shares = [counts[:-1] / max(1, counts[:-1].sum()) for counts in (first, second)]
        if not all(share.sum() for share in shares):
            return math.nan
        gap = shares[0] - shares[1]
        return float(np.abs(np.cumsum(gap)).max() if self.ordered else np.abs(gap).sum() / 2)

    def unseen(self, values: NDArray[Any], categories: Sequence[str]) -> dict[str, int]:
        """Count the rows of each category that does not occur in training."""
        if not self.categorical:
            return {}
        counts = np.bincount(values[values >= 0], minlength=len(categories)).tolist()
        known = set(self.categories)
        return {n: count for n, count in zip(categories, counts, strict=True) if count and n not in known}

    def recognized(self, categories: Sequence[str]) -> tuple[str, ...]:
        """Return the categories in the spelling of the training data, for example "3" for "3.0".

        Categories that do not occur in training are returned unchanged.
        """
        known = set(self.categories)
        return tuple(name if name in known else _training_spelling(name, known) for name in categories)

    def as_if_new(self, environment: int) -> NDArray[np.int64]:
        """Return the row counts of a training environment, `[bins]`, as if it had been absent from training.

        Categories that occur in no other environment are therefore counted as unseen.
        """
        counts = self.counts[environment] - self.alone[environment]
        if self.categorical:
            counts[-2] += self.alone[environment].sum()
        return counts

    def p_value(self, distance: float, new: NDArray[np.int64], training: NDArray[np.int64]) -> float:
        """Return the uncorrected p-value of the test that new and training rows have the same distribution.

        Ordered values, such as numbers: Kolmogorov–Smirnov test. Categories: χ² test of the categories known
        from training and binomial test of the share of unseen categories, with Bonferroni correction. Other
        values, such as booleans: χ² test.

        Args:
            distance: Distance between new and training rows, as returned by `distance`.
            new: Number of new rows in each bin, `[bins]`.
            training: Number of training rows in each bin, `[bins]`.
        """
        from scipy import stats

        n, m = int(new[:-1].sum()), int(training[:-1].sum())
        if self.ordered:
            return float(stats.kstwo.sf(distance, max(1, round(n * m / (n + m)))))
        if not self.categorical:
            return homogeneity_p_value(np.stack([new[:-1], training[:-1]]))
        # Unseen categories are tested separately. New rows always have a few, at the rate at which one
        # training environment has categories that the others lack.
        seen = np.stack([new[:-2], training[:-2]])
        seen[0, -1] += new[-2]
        expected = min(1.0, (int(self.alone.sum()) + 1) / m)
        unseen = float(stats.binom.sf(int(new[-2]) - 1, n, expected))
        return min(1.0, 2 * min(homogeneity_p_value(seen), unseen))


def homogeneity_p_value(table: NDArray[Any]) -> float:
    """Return the p-value of the χ² test that two distributions are equal.

    Bins with an expected count below 5 are pooled.

    Args:
        table: Number of rows by distribution and bin, `[2, bins]`.
    """
    from scipy import stats

    used = table[:, table.sum(axis=0) > 0]
    expected = used.sum(axis=0) * (used[0].sum() / max(1, used.sum()))
    rare = expected < 5
    if rare.sum() > 1:
        used = np.column_stack([used[:, ~rare], used[:, rare].sum(axis=1)])
    if used.shape[1] < 2 or not used.sum(axis=1).all():
        return 1.0
    test: Any = stats.chi2_contingency(used)
    return float(test.pvalue)


def _training_spelling(name: str, known: set[str]) -> str:
    # 3 and 3.0 are the same category; 03 is another.
    integer = _INTEGER.fullmatch(name)
    spellings = (integer[1], f"{integer[1]}.0") if integer else ()
    if name in ("True", "False"):
        spellings = (name.lower(),)
    return next((spelling for spelling in spellings if spelling in known), name)


def _text(kind: str, value: float) -> str:
    if kind == "boolean":
        return "true" if value else "false"
    if kind == "date":
        return str(np.datetime64(0, "D") + np.timedelta64(math.floor(value), "D"))
    return str(int(value)) if abs(value) < 1e15 and value == int(value) else str(value)
