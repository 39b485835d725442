"""Encode the columns of a table as network inputs.

Numbers are standardized by mean and standard deviation, and missing numbers are replaced by the median.
Categories are one-hot encoded. All parameters are fitted on the training environments only, and stored as
Python numbers.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from envariant.data.tables.columns import Column
from envariant.data.tables.kinds import KINDS, MOST_CATEGORIES, ColumnEncoding

__all__ = ["MOST_CATEGORIES", "ColumnEncoding", "Encoder", "fit"]


@final
@dataclass(frozen=True)
class Encoder:
    """Fitted encoder of a table: the encoding of each column, in the order of the network inputs."""

    columns: tuple[ColumnEncoding, ...]

    def __post_init__(self) -> None:
        for column in self.columns:
            if column.kind not in KINDS:
                raise ValueError(f"column '{column.name}': unknown kind '{column.kind}'")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the network inputs, in order."""
        return tuple(name for column in self.columns for name in _names(column))

    @property
    def slices(self) -> dict[str, slice]:
        """Slice of network inputs for each column, by column name."""
        ends = [0, *accumulate(len(_names(column)) for column in self.columns)]
        return {column.name: slice(*ends[k : k + 2]) for k, column in enumerate(self.columns)}

    def encode(self, columns: Mapping[str, Column]) -> NDArray[np.float32]:
        """Encode columns as network inputs, `[rows, inputs]`."""
        rows = len(next(iter(columns.values())))
        inputs = np.zeros((rows, len(self.names)), dtype=np.float32)
        for encoding, part in zip(self.columns, self.slices.values(), strict=True):
            column, out = columns[encoding.name], inputs[:, part]
            if encoding.indicator:
                out[:, -1] = column.missing
            KINDS[encoding.kind].encode(encoding, column.values, column.categories, out)
        return inputs


def fit(columns: Iterable[Column], environments: NDArray[Any] | None = None) -> Encoder:
    """Fit an encoder on training rows; omit columns that are constant or missing in nearly all rows.

    Args:
        columns: Training rows of all columns.
        environments: Index of the environment of each row. Default: one environment.
    """
    encodings = (column.fit(environments) for column in columns)
    return Encoder(tuple(encoding for encoding in encodings if encoding is not None))


def _names(encoding: ColumnEncoding) -> tuple[str, ...]:
    names = KINDS[encoding.kind].input_names(encoding)
    return (*names, *([f"{encoding.name}: missing"] if encoding.indicator else []))
