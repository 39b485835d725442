"""Columns as the numbers that a network reads: scaled, filled in, and a column of 0 and 1 for each category.

What is learned from rows (medians, means, which categories are common) is learned from the training
environments alone, by scikit-learn, and kept as plain numbers that a file can hold.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from envariant.data.tables.columns import Column, Kind

MOST_CATEGORIES = 32
"""Of one column, as a column of 0 and 1 each; rarer ones share one."""

# In standard deviations: how far a value may lie out before it is taken for this.
_FARTHEST = 10.0
_YEAR = 365.2425


@final
@dataclass(frozen=True)
class ColumnEncoding:
    """How one column becomes numbers.

    Attributes:
        name, kind: of the column.
        fill: what stands in for a missing number: the median.
        center, scale: mean and standard deviation of what is not missing, after filling in.
        indicator: whether a column says where a value was missing.
        categories: those with a column of their own.
        other: whether the rarer ones share a column.
    """

    name: str
    kind: Kind
    fill: float = 0.0
    center: float = 0.0
    scale: float = 1.0
    indicator: bool = False
    categories: tuple[str, ...] = ()
    other: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """What its columns are called once encoded."""
        if self.kind == "category":
            found = [f"{self.name} = {category}" for category in self.categories]
            found += [f"{self.name}: other"] if self.other else []
        else:
            found = [self.name]
            found += [f"{self.name}: season {k}" for k in (1, 2)] if self.kind == "date" else []
        return (*found, *([f"{self.name}: missing"] if self.indicator else []))

    def into(self, column: Column, out: NDArray[np.float32]) -> None:
        """Writes a column's rows, encoded, into `out` `[rows, len(names)]`."""
        if self.indicator:
            out[:, -1] = column.missing
        if self.kind == "category":
            self._one_of(column, out)
            return
        values = np.where(column.missing, np.float32(self.fill), column.values)
        if self.kind == "date":
            angle = (values % _YEAR) * (2 * np.pi / _YEAR)
            out[:, 1], out[:, 2] = np.sin(angle), np.cos(angle)
        np.clip((values - self.center) / self.scale, -_FARTHEST, _FARTHEST, out=out[:, 0])

    def _one_of(self, column: Column, out: NDArray[np.float32]) -> None:
        places = {category: k for k, category in enumerate(self.categories)}
        width = len(self.categories) + self.other
        # A category that training has not seen is one of the others; where there are none, it is nothing.
        beyond = len(self.categories) if self.other else width
        table = np.array([*(places.get(c, beyond) for c in column.categories), width], dtype=np.intp)
        padded = np.zeros((len(column), width + 1), dtype=np.float32)
        padded[np.arange(len(column)), table[column.values]] = 1
        out[:, :width] = padded[:, :width]


@final
@dataclass(frozen=True)
class Encoder:
    """How a table becomes inputs.

    Attributes:
        columns: in order.
    """

    columns: tuple[ColumnEncoding, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the encoded columns."""
        return tuple(name for column in self.columns for name in column.names)

    @property
    def places(self) -> dict[str, slice]:
        """Where each column's numbers lie among the inputs."""
        found: dict[str, slice] = {}
        start = 0
        for column in self.columns:
            found[column.name] = slice(start, start + len(column.names))
            start += len(column.names)
        return found

    def encode(self, columns: Mapping[str, Column]) -> NDArray[np.float32]:
        """Inputs `[rows, width]` from columns by name."""
        rows = len(next(iter(columns.values())))
        out = np.zeros((rows, len(self.names)), dtype=np.float32)
        for encoding, place in zip(self.columns, self.places.values(), strict=True):
            encoding.into(columns[encoding.name], out[:, place])
        return out


def fit(columns: Iterable[Column]) -> Encoder:
    """What the rows of these columns teach; columns that never vary among them are left out."""
    found = [_category(c) if c.kind == "category" else _number(c) for c in columns]
    return Encoder(tuple(encoding for encoding in found if encoding is not None))


def _number(column: Column) -> ColumnEncoding | None:
    values = column.values[:, None].astype(np.float64)
    missing = column.missing
    if missing.all():
        return None
    imputer: Any = SimpleImputer(strategy="median").fit(values)
    scaler: Any = StandardScaler().fit(imputer.transform(values))
    center, scale = float(scaler.mean_[0]), float(np.sqrt(scaler.var_[0]))
    # Less than float32 can tell from nothing.
    varies = scale > max(1e-7 * abs(center), 1e-30)
    if not varies and not missing.any():
        return None
    return ColumnEncoding(
        column.name,
        column.kind,
        fill=float(imputer.statistics_[0]),
        center=center,
        scale=scale if varies else 1.0,
        indicator=bool(missing.any()),
    )


def _category(column: Column) -> ColumnEncoding | None:
    present = column.values[column.values >= 0]
    if len(np.unique(present)) + (len(present) < len(column)) < 2:
        return None
    encoder: Any = OneHotEncoder(max_categories=MOST_CATEGORIES, handle_unknown="infrequent_if_exist")
    encoder.fit(present[:, None])
    rare = encoder.infrequent_categories_[0]
    rare = set() if rare is None else set(rare.tolist())
    kept = tuple(column.categories[code] for code in encoder.categories_[0].tolist() if code not in rare)
    return ColumnEncoding(
        column.name,
        "category",
        indicator=len(present) < len(column),
        categories=kept,
        other=bool(rare),
    )
