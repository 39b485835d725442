"""Column kind for Boolean columns, including text columns such as yes/no."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from envariant.data.tables.kinds.base import (
    Categories,
    ColumnChunk,
    NumericKind,
    Parsed,
    TaskName,
    Values,
)
from envariant.data.tables.kinds.number import Number

_PAIRS = ({"true", "false"}, {"yes", "no"}, {"y", "n"}, {"t", "f"})


@final
@dataclass(frozen=True)
class Boolean(NumericKind):
    """Boolean values, stored as 1 and 0.

    A text column is Boolean if its values are exactly true and false, yes and no, y and n, or t and f. Upper
    and lower case are not distinguished.
    """

    name: ClassVar[str] = "boolean"
    words_are_missing: ClassVar[bool] = False

    def from_pandas(self, name: str, rows: "pd.Series[Any]", first_row: int) -> Values | None:
        if pd.api.types.is_bool_dtype(rows):
            return rows.to_numpy(dtype=np.float64, na_value=np.nan)
        return None

    def infer(self, name: str, texts: ColumnChunk, decimal_comma: bool | None = None) -> Parsed | None:
        present = {text.lower() for text in texts.texts}
        return super().infer(name, texts) if present in _PAIRS else None

    def parse(self, texts: Sequence[str]) -> NDArray[np.float64]:
        lower = [text.lower() for text in texts]
        words = [float(t[0] in "ty") if any(t in pair for pair in _PAIRS) else np.nan for t in lower]
        numbers = Number().parse(texts)
        return np.where(np.isin(numbers, (0, 1)), numbers, words)

    def accepts(self, chunk: ColumnChunk) -> NDArray[np.bool_]:
        return np.isin(chunk.values, (0, 1))

    def format(self, values: Values, categories: Categories) -> list[str | None]:
        return [None if v != v else "true" if v else "false" for v in values.tolist()]

    def as_text(self, values: Values) -> ColumnChunk:
        codes = np.where(np.isnan(values), -1, values).astype(np.int32)
        return ColumnChunk(None, codes, ("False", "True"))

    def class_names(self, values: Values) -> list[str]:
        return [str(bool(value)) for value in values]

    def infer_task(self, values: Values) -> TaskName:
        return "binary"
