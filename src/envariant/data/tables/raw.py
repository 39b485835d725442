"""Provide the raw columns of a table as a data frame, for predictors that select columns by name."""

from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass
from typing import final

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from envariant.core.input_store import FloatStore, InputStore
from envariant.data.tables.columns import Column
from envariant.data.tables.table import Table


def frame_of(columns: Iterable[Column], texts: Collection[str] = ()) -> pd.DataFrame:
    """Convert columns to a data frame.

    Numbers and Booleans become float64 with NaN for missing values, dates become datetime64 values,
    categories become text with pandas' missing value, and free text becomes text with "" for missing values.

    Args:
        columns: Columns of the same length.
        texts: Names of the columns with free text.
    """
    frame: dict[str, object] = {}
    for column in columns:
        if column.type.categorical:
            values = column.texts()
            is_text = column.name in texts
            frame[column.name] = pd.Series([v or "" for v in values] if is_text else values, dtype="str")
        elif column.kind == "date":
            days = pd.Series(column.values)
            frame[column.name] = pd.to_datetime((days * 86_400).round(3), unit="s")
        else:
            frame[column.name] = column.values.astype(np.float64)
    return pd.DataFrame(frame)


@final
@dataclass(frozen=True, eq=False)
class TableStore(InputStore):
    """Encoded inputs of some rows of a table, with access to the raw columns of these rows.

    Attributes:
        values: Encoded inputs, `[rows, width]`.
        table: Table that contains the rows.
        rows: Positions of the rows in the table, `[rows]`.
    """

    values: Float[Tensor, "rows width"]
    table: Table
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> torch.Size:
        return self.values.shape[1:]

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def encoding(self) -> Hashable:
        return torch.float32

    def gather(self, index: Tensor | None = None) -> Tensor:
        return self.values if index is None else self.values[index]

    def decode(self, rows: Tensor) -> Tensor:
        return rows

    def with_rows(self, rows: Tensor) -> FloatStore:
        return FloatStore(rows)

    def select(self, index: Tensor) -> "TableStore":
        return TableStore(self.values[index], self.table, self.rows[index.cpu().numpy()])

    def frame(self, index: Tensor | None = None) -> pd.DataFrame:
        rows = self.rows if index is None else self.rows[index.cpu().numpy()]
        texts = self.table.texts
        columns = (column.rows(rows) for column in (*self.table.columns, *texts))
        return frame_of(columns, [column.name for column in texts])
