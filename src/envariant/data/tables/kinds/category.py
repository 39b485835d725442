"""Column kind for categories, which is the default for text columns."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.preprocessing import OneHotEncoder

from envariant.data.tables.kinds.base import (
    MOST_CLASSES,
    Categories,
    ColumnChunk,
    ColumnEncoding,
    ColumnKind,
    Parsed,
    TaskName,
    Values,
)
from envariant.data.tables.kinds.notation import Notation

MOST_CATEGORIES = 32
"""Largest number of inputs of one column; with more categories, the rarest ones share an input."""

# If the number of distinct texts exceeds this share of the rows, the column contains names.
_NAME_SHARE = 0.5


@final
@dataclass(frozen=True)
class Category(ColumnKind):
    """Categories: distinct texts in sorted order, encoded as one-hot inputs."""

    name: ClassVar[str] = "category"
    categorical: ClassVar[bool] = True

    def from_pandas(self, name: str, rows: "pd.Series[Any]", first_row: int) -> Values | None:
        return None

    def infer(self, name: str, texts: ColumnChunk, decimal_comma: bool | None = None) -> Parsed:
        """Return codes and categories. Other kinds are tried first, because any text can be a category."""
        used = sorted(range(len(texts.texts)), key=lambda k: texts.texts[k])
        table = np.full(len(texts.texts) + 1, -1, dtype=np.int32)
        table[used] = np.arange(len(used), dtype=np.int32)
        return Parsed(table[texts.values], tuple(texts.texts[k] for k in used))

    def read(
        self, name: str, chunk: ColumnChunk, first_row: int = 0, notation: Notation | None = None
    ) -> Parsed:
        # Not sorted: categories keep the order of their first occurrence.
        return Parsed(chunk.values, chunk.texts)

    def missing(self, values: Values) -> NDArray[np.bool_]:
        return values < 0

    def format(self, values: Values, categories: Categories) -> list[str | None]:
        return [None if code < 0 else categories[code] for code in values.tolist()]

    def fit(self, name: str, values: Values, categories: Categories) -> ColumnEncoding | None:
        present = values[values >= 0]
        if len(np.unique(present)) + (len(present) < len(values)) < 2:
            return None
        encoder: Any = OneHotEncoder(max_categories=MOST_CATEGORIES, handle_unknown="infrequent_if_exist")
        encoder.fit(present[:, None])
        infrequent = encoder.infrequent_categories_[0]
        rare = set() if infrequent is None else set(infrequent.tolist())
        common = tuple(categories[code] for code in encoder.categories_[0].tolist() if code not in rare)
        indicator = len(present) < len(values)
        return ColumnEncoding(name, self.name, indicator=indicator, categories=common, other=bool(rare))

    def input_names(self, encoding: ColumnEncoding) -> tuple[str, ...]:
        names = [f"{encoding.name} = {category}" for category in encoding.categories]
        return (*names, *([f"{encoding.name}: other"] if encoding.other else []))

    def encode(self, encoding: ColumnEncoding, values: Values, categories: Categories, out: Values) -> None:
        inputs = {category: k for k, category in enumerate(encoding.categories)}
        width = len(encoding.categories) + encoding.other
        # An unseen category is encoded as a rare one; without rare categories, its inputs are zeros.
        unseen = len(encoding.categories) if encoding.other else width
        table = np.array([*(inputs.get(c, unseen) for c in categories), width], dtype=np.intp)
        one_hot = np.zeros((len(values), width + 1), dtype=np.float32)
        one_hot[np.arange(len(values)), table[values]] = 1
        out[:, :width] = one_hot[:, :width]

    def describe(self, categories: Categories) -> str:
        return f"category of {len(categories)}"

    def unusable(self, values: Values) -> str:
        present = values[values >= 0]
        distinct = len(np.unique(present))
        if distinct > max(MOST_CLASSES, _NAME_SHARE * len(present)):
            return f"{distinct:,} different texts in {len(present):,} rows: a name, not a category"
        return ""

    def infer_task(self, values: Values) -> TaskName:
        return "binary" if len(np.unique(values)) == 2 else "multiclass"
