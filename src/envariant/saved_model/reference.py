"""Distribution of each column in the training rows, stored in a model for comparison with new rows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from envariant.analysis.column_sketch import Sketch
from envariant.analysis.drift import Drift
from envariant.analysis.input_density import InputDensity, fit_density
from envariant.data.tables.columns import Column
from envariant.data.tables.source import TableSource
from envariant.features.columns import is_feature


@final
class RowCounter:
    """Counter of new rows: the number in each bin of the stored column distributions.

    Args:
        sketches: Distribution of each encoded column in training.
        embedded: Name and encoder of each column of texts or images. All features of such a column are
            reported as one column.
    """

    def __init__(self, sketches: tuple[Sketch, ...], embedded: Sequence[tuple[str, str]] = ()) -> None:
        self._sketches, columns = sketches, [name for name, _ in embedded]
        features = [sketch.name for sketch in sketches if is_feature(sketch.name, columns)]
        self._column_of_feature = {name: name.rpartition(" ")[0] for name in features}
        self._counts = [np.zeros(sketch.bins, dtype=np.int64) for sketch in sketches]
        self._unseen: list[dict[str, int]] = [{} for _ in sketches]
        self._rows = 0

    def add(self, columns: Mapping[str, Column]) -> None:
        """Add the rows of a chunk to the counts."""
        for k, sketch in enumerate(self._sketches):
            column = columns[sketch.name]
            self._counts[k] += sketch.tally(column.values, column.categories)
            for name, count in sketch.unseen(column.values, column.categories).items():
                self._unseen[k][name] = self._unseen[k].get(name, 0) + count
        self._rows += len(next(iter(columns.values())))

    def drift(self, environments: tuple[str, ...]) -> Drift:
        """Compare the rows counted so far with the training rows."""
        return Drift.of(
            self._sketches, self._counts, self._unseen, self._rows, environments, self._column_of_feature
        )


def reference_of(source: TableSource, environments: Sequence[str]) -> tuple[Sketch, ...]:
    """Return the distribution (a `Sketch`) of each encoded column in the given environments of a table."""
    table = source.table
    positions = np.full(len(table.environments), -1)
    positions[[table.environments.index(name) for name in environments]] = np.arange(len(environments))
    codes: NDArray[Any] = positions[table.environment.values]
    rows = codes >= 0
    columns = {column.name: column for column in table.columns}
    encoded = [columns[encoding.name] for encoding in source.encoder.columns]
    return tuple(
        Sketch.of(
            c.name, c.kind, c.values[rows], codes[rows], len(environments), c.categories,
            categorical=c.type.categorical, ordered=c.type.ordered,
        )
        for c in encoded
    )  # fmt: skip


def density_of(source: TableSource, environments: Sequence[str]) -> InputDensity:
    """Estimate the density of the encoded rows in the given environments of a table."""
    used = [each for each in source.sample(0).environments if each.name in environments]
    return fit_density(
        np.concatenate([each.inputs.numpy() for each in used]),
        np.repeat([each.name for each in used], [len(each) for each in used]),
    )


def recognized(column: Column, sketch: Sketch) -> Column:
    """Return a copy of a column in which categories are spelled as in training."""
    return replace(column, categories=sketch.recognized(column.categories))


def first_row(names: Sequence[str], typical: Sequence[Sketch] = ()) -> pd.DataFrame:
    """Return a table with a single typical row, for a trial prediction.

    Args:
        names: Names of the columns. Columns without a sketch in `typical` contain a missing value.
        typical: Sketches of columns. These columns contain the median training value, or the most frequent
            category.
    """
    row: dict[str, Any] = dict.fromkeys(names)
    for sketch in typical:
        if sketch.categorical:
            row[sketch.name] = sketch.categories[0] if sketch.categories else None
        elif len(sketch.knots):
            value = float(sketch.knots[len(sketch.knots) // 2])
            row[sketch.name] = pd.Timestamp(value, unit="D") if sketch.kind == "date" else value
    return pd.DataFrame({name: [value] for name, value in row.items()})
