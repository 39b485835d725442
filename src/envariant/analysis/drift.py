"""Whether new rows look like those a model was trained on, column by column.

Of the training rows a few counts are kept, environment by environment, so that the distance of new rows
is read beside the distances between the training environments themselves: with many rows every difference
is significant, and what matters is whether it is larger than those the model has already seen.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal, final

import numpy as np
from numpy.typing import NDArray

from envariant.analysis.statistics import holm
from envariant.data.tables.columns import Column
from envariant.data.tables.kinds import Kind

Standing = Literal["alike", "within", "further"]

FEWEST = 20
"""New rows that a comparison takes."""

LEAST = 0.1
"""A distance below this is too small to matter, however certain it is."""

ALPHA = 0.01
"""The chance of an alarm, over all columns, where new rows come from the training environments."""

# Values at evenly spaced ranks that stand for a column of numbers, and categories that count by themselves.
_KNOTS = 101
_OWN = 32
# Of rows with values beyond all training rows: some are always to be expected.
_FEW_OUTSIDE = 0.01
_WHOLE = re.compile(r"(0|-?[1-9]\d*)(?:\.0+)?")


@final
@dataclass(frozen=True, eq=False)
class Sketch:
    """What is remembered of the training rows in one column.

    Rows are counted in bins. Numbers: below the first knot, at it, between it and the second, … above the
    last, missing. Categories: one for each of the most frequent, one for all others, one for those that
    training never saw, missing.

    Attributes:
        name, kind: of the column.
        knots: `[m]`, values of training rows from the least to the greatest; none for categories.
        categories: all that training saw, the most frequent first.
        counts: `[environments, bins]`, training rows.
        alone: `[environments, bins]`, those of them with a category that no other environment holds.
    """

    name: str
    kind: Kind
    knots: NDArray[np.float32]
    categories: tuple[str, ...]
    counts: NDArray[np.int64]
    alone: NDArray[np.int64]

    @classmethod
    def of(cls, column: Column, codes: NDArray[Any], environments: int) -> "Sketch":
        """Counts a column's rows.

        Args:
            column: of the training rows.
            codes: `[rows]`, the number of each row's environment.
            environments: how many there are.
        """
        knots, categories = np.zeros(0, dtype=np.float32), ()
        present = column.values[~column.missing]
        if column.kind == "category":
            frequent = np.bincount(present, minlength=len(column.categories))
            order = np.argsort(-frequent, kind="stable")
            categories = tuple(column.categories[code] for code in order.tolist() if frequent[code])
        elif len(present):
            ranks = np.linspace(0, 1, _KNOTS)
            knots = np.unique(np.quantile(present, ranks, method="inverted_cdf")).astype(np.float32)
        none = np.zeros((environments, 0), dtype=np.int64)
        empty = cls(column.name, column.kind, knots, categories, none, none)
        counts = np.stack([empty.tally(column.rows(codes == k)) for k in range(environments)])
        alone = np.zeros_like(counts)
        if column.kind == "category":
            here = np.zeros((environments, len(column.categories) + 1), dtype=bool)
            here[codes, column.values] = True
            lonely = (here.sum(axis=0) == 1)[column.values] & ~column.missing
            alone = np.stack([empty.tally(column.rows(lonely & (codes == k))) for k in range(environments)])
        return cls(column.name, column.kind, knots, categories, counts, alone)

    @property
    def ordered(self) -> bool:
        """Whether bins lie in a row, so that the distance is Kolmogorov and Smirnov's."""
        return self.kind in ("number", "date")

    @property
    def bins(self) -> int:
        """How many there are, the last for missing values."""
        if self.kind == "category":
            return min(len(self.categories), _OWN) + 3
        return 2 * len(self.knots) + 2

    def tally(self, column: Column) -> NDArray[np.int64]:
        """A column's rows in each bin."""
        last = self.bins - 1
        if self.kind == "category":
            own = min(len(self.categories), _OWN)
            places = {name: min(k, own) for k, name in enumerate(self.categories)}
            table = np.array([*(places.get(name, own + 1) for name in column.categories), last])
            bins = table[column.values]
        else:
            bins = np.full(len(column), last)
            if len(self.knots):
                place = np.searchsorted(self.knots, column.values)
                at = self.knots[np.minimum(place, len(self.knots) - 1)] == column.values
                bins = np.where(column.missing, last, 2 * place + at)
        return np.bincount(bins, minlength=self.bins).astype(np.int64)

    def distance(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
        """How far two counts lie apart, from 0 to 1; NaN where one holds no value.

        Numbers: the largest difference of the two distribution functions at the knots (Kolmogorov and
        Smirnov's D, short of it by a hundredth at most). Categories and booleans: total variation.
        """
        shares = [counts[:-1] / max(1, counts[:-1].sum()) for counts in (first, second)]
        if not all(share.sum() for share in shares):
            return math.nan
        apart = shares[0] - shares[1]
        return float(np.abs(np.cumsum(apart)).max() if self.ordered else np.abs(apart).sum() / 2)

    def unseen(self, column: Column) -> dict[str, int]:
        """Rows by category, of those that training never saw."""
        if self.kind != "category":
            return {}
        counts = np.bincount(column.values[column.values >= 0], minlength=len(column.categories))
        known = set(self.categories)
        named = zip(column.categories, counts.tolist(), strict=True)
        return {name: count for name, count in named if count and name not in known}

    def recognized(self, column: Column) -> Column:
        """The column with its categories spelled as in training, where only a number's spelling differs.

        What was text among texts there, such as "3", may arrive as 3.0.
        """
        if self.kind != "category":
            return column
        known = set(self.categories)
        names = [name if name in known else _spelled(name, known) for name in column.categories]
        return Column(column.name, column.kind, column.values, tuple(names))

    def compare(self, new: NDArray[np.int64], unseen: Mapping[str, int]) -> "ColumnDrift":
        """New rows' counts beside the training rows'; p-values are not yet corrected."""
        whole = self.counts.sum(axis=0)
        rest = [(self._without(k), whole - counts) for k, counts in enumerate(self.counts)]
        rest = rest if len(rest) > 1 else []
        between = [self.distance(*pair) for pair in rest]
        gaps = [abs(_missing(a) - _missing(b)) for a, b in rest]
        distance = self.distance(new, whole)
        tested = math.nan if math.isnan(distance) else self._p_value(distance, new, whole)
        gone = np.array([[c[-1], c[:-1].sum()] for c in (new, whole)])
        return ColumnDrift(
            self.name,
            self.kind,
            rows=int(new.sum()),
            distance=distance,
            between=_most(between),
            p_value=tested,
            missing=_missing(new),
            missing_trained=_missing(whole),
            missing_between=_most(gaps),
            missing_p_value=_homogeneity(gone) if gone[:, 0].any() else math.nan,
            unseen=dict(unseen),
            outside=int(new[0] + new[-2]) if self.ordered and len(self.knots) else 0,
            ends=tuple(Column(self.name, self.kind, self.knots[[0, -1]]).texts()) if len(self.knots) else (),
        )

    def _without(self, environment: int) -> NDArray[np.int64]:
        """Rows of a training environment as they would count had training not had it."""
        counts = self.counts[environment] - self.alone[environment]
        if self.kind == "category":
            counts[-2] += self.alone[environment].sum()
        return counts

    def _p_value(self, distance: float, new: NDArray[np.int64], whole: NDArray[np.int64]) -> float:
        from scipy import stats

        n, m = int(new[:-1].sum()), int(whole[:-1].sum())
        if self.ordered:
            return float(stats.kstwo.sf(distance, max(1, round(n * m / (n + m)))))
        if self.kind == "boolean":
            return _homogeneity(np.stack([new[:-1], whole[:-1]]))
        # Training saw all of its own categories, so those it never saw are asked for by themselves: among
        # the rare ones there are always some, as many as one environment has that the others have not.
        kept = np.stack([new[:-2], whole[:-2]])
        kept[0, -1] += new[-2]
        expected = min(1.0, (int(self.alone.sum()) + 1) / m)
        unseen = float(stats.binom.sf(int(new[-2]) - 1, n, expected))
        return min(1.0, 2 * min(_homogeneity(kept), unseen))


@final
@dataclass(frozen=True)
class ColumnDrift:
    """One column of new rows beside the training rows.

    Attributes:
        name, kind: of the column.
        rows: new ones.
        distance: of the new values from all training rows, from 0 to 1; NaN where there is no value.
        between: the largest distance of one training environment from the others; NaN with only one.
        p_value: of there being no distance; NaN where that cannot be asked. Corrected (Holm) in a `Drift`.
        missing, missing_trained: shares of rows without a value.
        missing_between: the largest difference of that share between one training environment and the rest.
        missing_p_value: of the share being the same; NaN where no value is missing at all.
        unseen: rows by category, of those that training never saw.
        outside: rows with a value below or above all training rows.
        ends: the least and greatest value of the training rows, as text.
    """

    name: str
    kind: Kind
    rows: int
    distance: float
    between: float
    p_value: float
    missing: float
    missing_trained: float
    missing_between: float
    missing_p_value: float
    unseen: Mapping[str, int]
    outside: int
    ends: tuple[str | None, ...]

    @property
    def values_standing(self) -> Standing:
        """Of the values: alike, within what lies between training environments, or further away."""
        return _standing(self.distance, self.between, self.p_value)

    @property
    def missing_standing(self) -> Standing:
        """Of the share without a value, likewise."""
        return _standing(abs(self.missing - self.missing_trained), self.missing_between, self.missing_p_value)

    @property
    def standing(self) -> Standing:
        """The worse of the two."""
        both = (self.values_standing, self.missing_standing)
        return "further" if "further" in both else "within" if "within" in both else "alike"

    @property
    def remarks(self) -> list[str]:
        """What single rows hold that training rows did not."""
        found: list[str] = []
        if self.unseen:
            names = [f"'{name}'" for name in list(self.unseen)[:3]]
            more = ", …" if len(self.unseen) > 3 else ""
            found.append(
                f"{self.name}: {_rows(sum(self.unseen.values()))} with a category that training never saw "
                f"({', '.join(names)}{more})"
            )
        if self.outside > _FEW_OUTSIDE * self.rows:
            found.append(f"{self.name}: {_rows(self.outside)} outside {' … '.join(map(str, self.ends))}")
        if self.missing and not self.missing_trained:
            gone = round(self.missing * self.rows)
            found.append(f"{self.name}: {_rows(gone)} without a value, which training rows always had")
        return found

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON wants them."""
        fields = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}
        return {**fields, "standing": self.standing}


@final
@dataclass(frozen=True)
class Drift:
    """New rows beside the training rows.

    A column is *further* away where that is certain (p below 0.01, Holm-corrected over columns), the
    distance is at least 0.1, and no training environment lies as far from the others. Columns are looked
    at one by one: what changes only in how they hang together, or in the target, is not seen.

    Attributes:
        columns: each by itself, p-values corrected over all of them.
        rows: new ones.
        environments: names of those trained on.
    """

    header: ClassVar[tuple[str, ...]] = (
        "column", "kind", "distance", "between training", "p (Holm)", "missing", "in training",
        "unseen", "outside", "standing",
    )  # fmt: skip
    columns: tuple[ColumnDrift, ...]
    rows: int
    environments: tuple[str, ...]

    @classmethod
    def of(
        cls,
        sketches: Sequence[Sketch],
        counts: Sequence[NDArray[np.int64]],
        unseen: Sequence[Mapping[str, int]],
        rows: int,
        environments: tuple[str, ...],
    ) -> "Drift":
        """Compares the counts of new rows, one for each sketch."""
        found = [
            sketch.compare(new, names) for sketch, new, names in zip(sketches, counts, unseen, strict=True)
        ]
        asked = [p for c in found for p in (c.p_value, c.missing_p_value) if not math.isnan(p)]
        corrected = iter(holm(asked))
        columns: list[ColumnDrift] = []
        for each in found:
            p, gone = (
                math.nan if math.isnan(p) else next(corrected) for p in (each.p_value, each.missing_p_value)
            )
            columns.append(replace(each, p_value=p, missing_p_value=gone))
        return cls(tuple(columns), rows, environments)

    @property
    def kind(self) -> Literal["alike", "different", "too few rows"]:
        """In a word."""
        if self.rows < FEWEST:
            return "too few rows"
        return "different" if self.differing else "alike"

    @property
    def differing(self) -> tuple[str, ...]:
        """Names of the columns that are further away than training environments are from one another."""
        if self.rows < FEWEST:
            return ()
        return tuple(c.name for c in self.columns if c.standing == "further")

    @property
    def verdict(self) -> str:
        """In a sentence."""
        if self.kind == "too few rows":
            return (
                f"{_rows(self.rows)}: too few to compare with the training environments ({FEWEST} at least)"
            )
        if self.kind == "alike":
            within = [c.name for c in self.columns if c.standing == "within"]
            but = f"; in {_listed(within)} they differ, but no more than those from one another"
            return "New rows resemble the training environments" + (but if within else "")
        reasons = [_reason(c) for c in self.columns if c.name in self.differing]
        more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
        beyond = ", further than training environments differ" if len(self.environments) > 1 else ""
        return f"New rows differ in {_listed(self.differing)}{beyond}: {'; '.join(reasons[:5])}{more}"

    @property
    def remarks(self) -> tuple[str, ...]:
        """What single rows hold that no training row did: categories, values, gaps."""
        return tuple(remark for column in self.columns for remark in column.remarks)

    @property
    def lines(self) -> tuple[tuple[str, ...], ...]:
        """A line a column under `header`, those that differ most first."""
        order = ("further", "within", "alike")
        return tuple(
            (
                c.name,
                c.kind,
                _number(c.distance),
                _number(c.between),
                _number(c.p_value),
                f"{c.missing:.1%}",
                f"{c.missing_trained:.1%}",
                f"{sum(c.unseen.values()):,}" if c.kind == "category" else "–",
                f"{c.outside:,}" if c.kind in ("number", "date") else "–",
                c.standing if self.rows >= FEWEST else "–",
            )
            for c in sorted(self.columns, key=lambda c: order.index(c.standing))
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What the lines say, and what they cannot."""
        found = [
            "distance: of new rows from all training rows, 0 to 1: Kolmogorov and Smirnov's for numbers, "
            "total variation for categories. between training: the largest of one training environment from "
            "the others.",
            f"further: p below {ALPHA:g}, a distance of {LEAST:g} at least, and more than between training. "
            "Columns are looked at one by one; how they hang together, and the target, are not.",
        ]
        k = len(self.environments)
        if 1 < k < 10:
            found.append(
                f"With {k} training environments the yardstick is short: even a new one of their kind is the "
                f"furthest in a column in 1 of {k + 1} cases."
            )
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """One object for `--json`."""
        return {
            "kind": self.kind,
            "verdict": self.verdict,
            "rows": self.rows,
            "environments": list(self.environments),
            "differing": list(self.differing),
            "remarks": list(self.remarks),
            "columns": [column.to_dict() for column in self.columns],
        }


def _standing(distance: float, between: float, p_value: float) -> Standing:
    # NaN, where nothing could be asked, is below everything.
    if not (p_value < ALPHA and distance >= LEAST):
        return "alike"
    return "within" if distance <= between else "further"


def _reason(column: ColumnDrift) -> str:
    told: list[str] = []
    if column.values_standing == "further":
        told.append(f"distance {column.distance:.2f}" + _beside(column.between, ".2f"))
    if column.missing_standing == "further":
        told.append(f"{column.missing:.0%} missing, {column.missing_trained:.0%} in training")
    return f"{column.name} ({', '.join(told)})"


def _beside(between: float, form: str) -> str:
    return "" if math.isnan(between) else f", {between:{form}} at most between training environments"


def _homogeneity(table: NDArray[Any]) -> float:
    """The p-value of two rows of counts having one distribution; χ², rare bins together."""
    from scipy import stats

    held = table[:, table.sum(axis=0) > 0]
    expected = held.sum(axis=0) * (held[0].sum() / max(1, held.sum()))
    rare = expected < 5
    if rare.sum() > 1:
        held = np.column_stack([held[:, ~rare], held[:, rare].sum(axis=1)])
    if held.shape[1] < 2 or not held.sum(axis=1).all():
        return 1.0
    tested: Any = stats.chi2_contingency(held)
    return float(tested.pvalue)


def _spelled(name: str, known: set[str]) -> str:
    # 3 and 3.0 are one thing; 03 is another.
    whole = _WHOLE.fullmatch(name)
    others = (whole[1], f"{whole[1]}.0") if whole else (name.lower(),) if name in ("True", "False") else ()
    return next((other for other in others if other in known), name)


def _missing(counts: NDArray[np.int64]) -> float:
    return float(counts[-1] / max(1, counts.sum()))


def _most(values: Iterable[float]) -> float:
    return max((value for value in values if not math.isnan(value)), default=math.nan)


def _rows(count: int) -> str:
    return f"{count:,} row" + ("" if count == 1 else "s")


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}" if value >= 0.001 or value == 0 else f"{value:.0e}"


def _listed(names: Sequence[str]) -> str:
    if len(names) > 6:
        return f"{', '.join(names[:5])} and {len(names) - 5} other columns"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
