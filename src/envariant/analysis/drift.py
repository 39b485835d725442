"""Detect drift: columns in which new rows are distributed differently from training rows.

With many rows, even tiny differences are significant. A column is therefore reported only if new rows differ
more from the training rows than training environments differ from each other.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from envariant.analysis._columns import typed
from envariant.analysis.column_sketch import Sketch, homogeneity_p_value
from envariant.analysis.statistics import holm
from envariant.core.errors import EnvariantError
from envariant.core.printable import number_of

Standing = Literal["alike", "within", "further"]
"""Result of a comparison of new rows with the training rows.

"alike": no relevant difference; "within": a difference no larger than between training environments;
"further": a larger difference.
"""

FEWEST_ROWS = 20
"""Smallest number of new rows for a comparison."""

NOTABLE = 0.1
"""Smallest relevant distance."""

LEVEL = 0.01
"""Significance level over all columns."""

# Smallest reported share of rows outside the training range; a few such rows are expected.
_EXPECTED_OUTSIDE = 0.01


@final
@dataclass(frozen=True)
class ColumnDrift:
    """Comparison of new rows with the training rows in one column.

    Attributes:
        name, kind: Name of the column, and its kind, such as "number" or "date".
        rows: Number of new rows.
        distance: Distance between the distributions of new and training values, in [0, 1]; NaN if one has
            no values.
        between: Largest distance of one training environment from all others pooled; NaN if there is only
            one. For a text or image column, each distance is the mean over its features.
        p_value: P-value of the test of equal distributions, Holm-corrected in a `Drift`; NaN if not tested.
        missing, missing_trained: Share of missing values in new rows and in training rows.
        missing_between: Largest difference in the share of missing values between one training environment
            and all others pooled; NaN if there is only one.
        missing_p_value: P-value for equal shares of missing values, Holm-corrected in a `Drift`;
            NaN if no value is missing.
        unseen: Number of new rows by category, for categories that do not occur in training; None if the
            column is not categorical.
        outside: Number of new rows outside the training range; None if values have no order.
        training_range: Smallest and largest training value, formatted as a string; empty for categories.
    """

    name: str
    kind: str
    rows: int
    distance: float
    between: float
    p_value: float
    missing: float
    missing_trained: float
    missing_between: float
    missing_p_value: float
    unseen: Mapping[str, int] | None
    outside: int | None
    training_range: tuple[str, ...]

    @property
    def values_standing(self) -> Standing:
        """Result of comparing the column's values: "alike", "within" or "further".

        "alike": no significant difference of at least 0.1. "within": such a difference, but no larger than
        `between`, the largest one between training environments. "further": a larger difference, reported as
        drift.
        """
        return _standing(self.distance, self.between, self.p_value)

    @property
    def missing_standing(self) -> Standing:
        """Result of comparing the shares of missing values, as in `values_standing`.

        "within" here means a difference no larger than `missing_between`.
        """
        return _standing(abs(self.missing - self.missing_trained), self.missing_between, self.missing_p_value)

    @property
    def standing(self) -> Standing:
        """Overall result for the column: the worse of `values_standing` and `missing_standing`."""
        both = (self.values_standing, self.missing_standing)
        return "further" if "further" in both else "within" if "within" in both else "alike"

    @property
    def remarks(self) -> list[str]:
        """Remarks on unseen categories, values outside the training range, and unexpected missing values."""
        remarks: list[str] = []
        if self.unseen:
            names = [f"'{name}'" for name in list(self.unseen)[:3]]
            more = ", …" if len(self.unseen) > 3 else ""
            remarks.append(
                f"{self.name}: {number_of(sum(self.unseen.values()), 'row')} with a category that is not in "
                f"the training data ({', '.join(names)}{more})"
            )
        if self.outside is not None and self.outside > _EXPECTED_OUTSIDE * self.rows:
            remarks.append(
                f"{self.name}: {number_of(self.outside, 'row')} outside the training range "
                f"{' … '.join(self.training_range)}"
            )
        if self.missing and not self.missing_trained:
            count = round(self.missing * self.rows)
            remarks.append(
                f"{self.name}: {number_of(count, 'row')} with a missing value, although no training row has "
                f"one"
            )
        return remarks

    def to_dict(self) -> dict[str, Any]:
        """Return attributes and overall result as a JSON-serializable dictionary, with None for NaN."""
        fields = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}
        return {**fields, "standing": self.standing}


@final
@dataclass(frozen=True)
class Drift:
    """Comparison of new rows with the training rows in every column.

    A column has drifted (`standing` is "further") if its values or its share of missing values differ from
    training. The difference must be significant (p < 0.01, Holm-corrected over columns), at least 0.1, and
    larger than the difference between any one training environment and all others pooled. Columns are
    compared one at a time, so changes of their joint distribution or of the target are not detected.

    Attributes:
        columns: Comparison of new and training rows in each column.
        rows: Number of new rows.
        environments: Names of the training environments.
    """

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
        groups: Mapping[str, str] = MappingProxyType({}),
    ) -> "Drift":
        """Compare new rows with summaries of the training rows, column by column.

        Single features of an embedded text or image mean nothing to a user. All features of one text or image
        column are therefore reported as one column, with the mean of their distances and the smallest of
        their p-values.

        Args:
            sketches: Summary of the training rows in each column.
            counts: Number of new rows in each bin, one array per column.
            unseen: Number of new rows by unseen category, one mapping per column.
            rows: Number of new rows.
            environments: Names of the training environments.
            groups: For each numeric column that is a feature of a text or image column, the name of that text
                or image column. Default: none.

        Returns:
            Comparison of all columns; p-values are Holm-corrected over columns and features.
        """
        raw = [_compare(*each) for each in zip(sketches, counts, unseen, strict=True)]
        tested = [p for c in raw for p in (c.p_value, c.missing_p_value) if not math.isnan(p)]
        corrected = iter(holm(tested))
        columns: list[ColumnDrift] = []
        for each in raw:
            p, missing_p = (
                math.nan if math.isnan(p) else next(corrected) for p in (each.p_value, each.missing_p_value)
            )
            columns.append(replace(each, p_value=p, missing_p_value=missing_p))
        features: dict[str, list[tuple[Sketch, ColumnDrift]]] = {}
        for sketch, each in zip(sketches, columns, strict=True):
            features.setdefault(groups.get(each.name, ""), []).append((sketch, each))
        single = [each for _, each in features.pop("", [])]
        merged = [_merged(name, members) for name, members in features.items()]
        return cls((*single, *merged), rows, environments)

    @property
    def kind(self) -> Literal["alike", "different", "too few rows"]:
        """Overall result for all columns: "alike", "different" or "too few rows"."""
        if self.rows < FEWEST_ROWS:
            return "too few rows"
        return "different" if self.differing else "alike"

    @property
    def differing(self) -> tuple[str, ...]:
        """Names of the columns that have drifted."""
        if self.rows < FEWEST_ROWS:
            return ()
        return tuple(c.name for c in self.columns if c.standing == "further")

    @property
    def verdict(self) -> str:
        """Overall result for all columns, written as a sentence."""
        if self.kind == "too few rows":
            few = number_of(self.rows, "row")
            return f"{few}: too few to compare with the training rows (at least {FEWEST_ROWS})"
        if self.kind == "alike":
            within = [c.name for c in self.columns if c.standing == "within"]
            note = (
                f"; differences in {_listed(within)} are no larger than those between training environments"
            )
            return "New rows resemble the training environments" + (note if within else "")
        reasons = [_reason(c) for c in self.columns if c.name in self.differing]
        more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
        beyond = (
            ", by more than training environments differ from each other"
            if len(self.environments) > 1
            else ""
        )
        return f"New rows differ in {_listed(self.differing)}{beyond}: {'; '.join(reasons[:5])}{more}"

    @property
    def remarks(self) -> tuple[str, ...]:
        """Remarks on unseen categories, values out of range and missing values in all columns."""
        return tuple(remark for column in self.columns for remark in column.remarks)

    def to_dict(self) -> dict[str, Any]:
        """Return the overall result and the results of all columns as a JSON-serializable dictionary."""
        return {
            "kind": self.kind,
            "verdict": self.verdict,
            "rows": self.rows,
            "environments": list(self.environments),
            "differing": list(self.differing),
            "remarks": list(self.remarks),
            "columns": [column.to_dict() for column in self.columns],
        }


def measure_drift(
    training: Mapping[str, ArrayLike], environments: ArrayLike, new: Mapping[str, ArrayLike]
) -> Drift:
    """Compare the distribution of each column in new rows and training rows.

    Args:
        training: Training values by column name, `[rows]`: numbers, booleans or dates (NaN or NaT for
            missing values), or text for categories (None for missing values).
        environments: Environment of each training row, `[rows]`.
        new: New values of the same columns, `[new rows]`.

    Raises:
        EnvariantError: If a column is absent from `new`, or is categorical in only one table.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> hospital = np.repeat(["north", "south"], 200)
        >>> age, new_age = rng.normal(50, 10, 400), rng.normal(70, 10, 100)
        >>> drift = measure_drift({"age": age}, hospital, {"age": new_age})
        >>> drift.kind, drift.differing
        ('different', ('age',))
    """
    names, codes = np.unique(np.asarray(environments), return_inverse=True)
    sketches: list[Sketch] = []
    counts: list[NDArray[np.int64]] = []
    unseen: list[dict[str, int]] = []
    for name, array in training.items():
        if name not in new:
            raise EnvariantError(f"measure_drift: new rows lack column '{name}'")
        kind, values, categories = typed(array)
        if len(values) != len(codes):
            raise EnvariantError(
                f"measure_drift: '{name}' has {len(values)} rows, but 'environments' has {len(codes)}"
            )
        new_kind, new_values, new_categories = typed(new[name])
        if (kind == "category") != (new_kind == "category"):
            raise EnvariantError(
                f"measure_drift: column '{name}' is a {kind} in training and a {new_kind} in new rows"
            )
        categorical, ordered = kind == "category", kind in ("number", "date")
        sketch = Sketch.of(
            name, kind, values, codes, len(names), categories, categorical=categorical, ordered=ordered
        )
        recognized = sketch.recognized(new_categories)
        sketches.append(sketch)
        counts.append(sketch.tally(new_values, recognized))
        unseen.append(sketch.unseen(new_values, recognized))
    rows = int(counts[0].sum()) if counts else 0
    return Drift.of(sketches, counts, unseen, rows, tuple(map(str, names)))


def _compare(sketch: Sketch, new: NDArray[np.int64], unseen: Mapping[str, int]) -> ColumnDrift:
    """Compare new and training rows in one column, from counts per bin; p-values are uncorrected."""
    training = sketch.counts.sum(axis=0)
    rest = [(sketch.as_if_new(k), training - counts) for k, counts in enumerate(sketch.counts)]
    rest = rest if len(rest) > 1 else []
    distance = sketch.distance(new, training)
    missing = np.array([[c[-1], c[:-1].sum()] for c in (new, training)])
    return ColumnDrift(
        sketch.name,
        sketch.kind,
        rows=int(new.sum()),
        distance=distance,
        between=_largest(sketch.distance(*pair) for pair in rest),
        p_value=math.nan if math.isnan(distance) else sketch.p_value(distance, new, training),
        missing=_missing_share(new),
        missing_trained=_missing_share(training),
        missing_between=_largest(abs(_missing_share(a) - _missing_share(b)) for a, b in rest),
        missing_p_value=homogeneity_p_value(missing) if missing[:, 0].any() else math.nan,
        unseen=dict(unseen) if sketch.categorical else None,
        outside=_outside(sketch, new) if sketch.ordered else None,
        training_range=sketch.training_range,
    )


def _merged(name: str, features: Sequence[tuple[Sketch, ColumnDrift]]) -> ColumnDrift:
    """Compare all features of a text or image column together; features have no missing values."""
    # As many distances as features: with their largest one, nearly every new environment would differ more.
    environments = range(len(features[0][0].counts))
    between = [
        np.nanmean([s.distance(s.as_if_new(k), s.counts.sum(axis=0) - s.counts[k]) for s, _ in features])
        for k in (environments if len(environments) > 1 else ())
    ]
    known = [each for _, each in features if not math.isnan(each.p_value)]
    return replace(
        features[0][1],
        name=name,
        kind=number_of(len(features), "feature"),
        distance=float(np.mean([each.distance for each in known])) if known else math.nan,
        between=_largest(map(float, between)),
        p_value=min((each.p_value for each in known), default=math.nan),
        outside=None,
        training_range=(),
    )


def _outside(sketch: Sketch, new: NDArray[np.int64]) -> int:
    return int(new[0] + new[-2]) if len(sketch.knots) else 0


def _standing(distance: float, between: float, p_value: float) -> Standing:
    # Comparisons with NaN (no test was possible) are false.
    if not (p_value < LEVEL and distance >= NOTABLE):
        return "alike"
    return "within" if distance <= between else "further"


def _reason(column: ColumnDrift) -> str:
    reasons: list[str] = []
    if column.values_standing == "further":
        known = math.isfinite(column.between)
        bound = f", at most {column.between:.2f} between training environments" if known else ""
        reasons.append(f"distance {column.distance:.2f}{bound}")
    if column.missing_standing == "further":
        reasons.append(f"{column.missing:.0%} missing, {column.missing_trained:.0%} in training")
    return f"{column.name} ({', '.join(reasons)})"


def _missing_share(counts: NDArray[np.int64]) -> float:
    return float(counts[-1] / max(1, counts.sum()))


def _largest(values: Iterable[float]) -> float:
    return max((value for value in values if not math.isnan(value)), default=math.nan)


def _listed(names: Sequence[str]) -> str:
    if len(names) > 6:
        return f"{', '.join(names[:5])} and {len(names) - 5} other columns"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
