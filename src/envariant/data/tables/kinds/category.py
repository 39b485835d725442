"""Column kind for categories, the default for text columns."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

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
"""Largest number of network inputs per column; with more categories, the rarest ones share an input."""

# If the number of distinct strings exceeds this share of the rows, the column contains names.
_NAME_SHARE = 0.5


@final
@dataclass(frozen=True)
class Category(ColumnKind):
    """Categorical values: distinct strings in sorted order, encoded as one-hot inputs."""

    name: ClassVar[str] = "category"
    categorical: ClassVar[bool] = True

    def from_pandas(self, name: str, rows: "pd.Series[Any]", first_row: int) -> Values | None:
        return None

    def infer(self, name: str, texts: ColumnChunk, decimal_comma: bool | None = None) -> Parsed:
        """Convert strings to categories. Other kinds are tried first, because any text can be a category."""
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

    def fit(
        self, name: str, values: Values, categories: Categories, environments: Values | None = None
    ) -> ColumnEncoding | None:
        present = values >= 0
        if len(np.unique(values[present])) + (not present.all()) < 2:
            return None
        codes, labels = np.unique(values[present], return_inverse=True)
        groups = np.zeros(len(labels), dtype=np.intp) if environments is None else environments[present]
        # The mean share over environments, so that a large environment does not decide alone.
        counts = np.zeros((int(groups.max(initial=0)) + 1, len(codes)))
        np.add.at(counts, (groups, labels), 1)
        shares = (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).mean(axis=0)
        fewer = max(0, len(codes) - MOST_CATEGORIES + 1)
        rare = set(np.argsort(shares, kind="stable")[:fewer].tolist())
        common = tuple(categories[code] for k, code in enumerate(codes.tolist()) if k not in rare)
        return ColumnEncoding(
            name, self.name, indicator=not present.all(), categories=common, other=bool(rare)
        )

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
