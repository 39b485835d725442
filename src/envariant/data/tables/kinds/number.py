"""Column kind for numeric columns, including durations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from envariant.core.errors import EnvariantError
from envariant.data.tables.kinds.base import (
    LARGEST,
    MOST_CLASSES,
    MOST_LEVELS,
    Categories,
    ColumnChunk,
    NumericKind,
    TaskName,
    Values,
)
from envariant.data.tables.kinds.notation import (
    Notation,
    infer_notation,
    may_have_grouping_points,
    plain,
    thousands_sign,
)


@final
@dataclass(frozen=True)
class Number(NumericKind):
    """Real numbers; durations are converted to days.

    All numbers in a text column must have the same notation, such as 1,234.5 or 1.234,5 or 12% or $5.
    """

    name: ClassVar[str] = "number"
    ordered: ClassVar[bool] = True

    def from_pandas(self, name: str, rows: "pd.Series[Any]", first_row: int) -> Values | None:
        if rows.dtype.kind == "m":
            return (rows.dt.total_seconds() / 86_400).to_numpy(dtype=np.float64, na_value=np.nan)
        if pd.api.types.is_numeric_dtype(rows) and not pd.api.types.is_bool_dtype(rows):
            return self.checked(name, rows.to_numpy(dtype=np.float64, na_value=np.nan), first_row)
        return None

    def parse(self, texts: Sequence[str]) -> NDArray[np.float64]:
        return plain(texts)

    def notation(self, texts: ColumnChunk, decimal_comma: bool | None) -> Notation | None:
        are_plain = np.isfinite(plain(texts.texts))
        in_thousands = thousands_sign(texts.texts) or (
            decimal_comma and may_have_grouping_points(texts.texts)
        )
        if are_plain.all() and not in_thousands:
            return None
        notation = infer_notation(texts.texts, texts.counts, decimal_comma)
        if (
            notation is not None
            and notation == Notation()
            and (np.isfinite(notation.parse(texts.texts)) <= are_plain).all()
        ):
            return None
        return notation

    def accepts(self, chunk: ColumnChunk) -> NDArray[np.bool_]:
        return np.full(len(chunk.values), chunk.kind in ("number", "boolean"))

    def checked(self, name: str, values: Values, first_row: int = 0) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore"):
            large = np.flatnonzero(np.abs(values) > LARGEST)
        if len(large):
            value, row = values[large[0]], first_row + int(large[0]) + 1
            raise EnvariantError(
                f"column '{name}': holds {value:g} in row {row}, too large to compute with (the limit is "
                f"{LARGEST:g}). Correct it, leave it empty, or exclude the column"
            )
        return values.astype(np.float64)

    def format(self, values: Values, categories: Categories) -> list[str | None]:
        # Shortest text that identifies a value.
        return [
            None if v != v else str(int(v)) if abs(v) < LARGEST and v == int(v) else str(v) for v in values
        ]

    def unusable(self, values: Values) -> str:
        if np.isnan(values).any() or len(values) <= MOST_CLASSES:
            return ""
        # Row numbers are detected in any order, and even if some rows are missing.
        dense = float(values.max()) - float(values.min()) < 2 * len(values)
        if dense and (values == np.floor(values)).all() and len(np.unique(values)) == len(values):
            return "it numbers the rows"
        return ""

    def infer_task(self, values: Values) -> TaskName:
        distinct = np.unique(values)
        if len(distinct) == 2:
            return "binary"
        integers = bool((distinct == np.round(distinct)).all())
        return "multiclass" if integers and len(distinct) <= MOST_LEVELS else "regression"
