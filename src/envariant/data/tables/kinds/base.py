"""The interface of a column kind, and what all kinds with numeric values share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import StandardScaler

from envariant.core.errors import EnvariantError

TaskName = Literal["binary", "multiclass", "regression"]

MISSING_TEXTS = frozenset(
    {"", "?", "-", "--", ".", "na", "n/a", "#n/a", "<na>", "nan", "nat", "none", "null", "missing", "unknown"}
    | {"0000-00-00"}
)
"""Texts that stand for a missing value, in lower case."""

LARGEST = 1e15
"""Larger values are rejected: beyond them, squares of a column no longer fit in float32."""

MOST_CLASSES = 20
"""Integers with more distinct values than this are a quantity, not classes."""

# Encoded values are clipped to this many standard deviations.
_FARTHEST = 10.0
_LONGEST_QUOTE = 40

Values = NDArray[Any]
Categories = tuple[str, ...]
Parsed = tuple[Values, Categories]
"""Values of a column and its categories; see `Column`."""


@final
@dataclass(frozen=True, eq=False)
class ColumnChunk:
    """Some rows of a column as pandas read them, compact enough to keep while the rest is read.

    Attributes:
        kind: Name of the kind that the pandas type stands for; None for text, whose kind is still unknown.
        values: `[rows]`, float32 with NaN where missing; for text, int32 codes with −1.
        texts: Distinct texts, in the order of their codes.
        categorical: Whether texts are categories even if they look like numbers.
    """

    kind: str | None
    values: Values
    texts: tuple[str, ...] = ()
    categorical: bool = False

    @property
    def blank(self) -> bool:
        """Whether every value is missing; the pandas type then means nothing."""
        return not self.texts if self.kind is None else bool(np.isnan(self.values).all())


@final
@dataclass(frozen=True)
class ColumnEncoding:
    """Parameters that turn one column of a kind into network inputs.

    Attributes:
        fill: Median, used for missing numbers.
        center: Mean after filling in.
        scale: Standard deviation after filling in.
        indicator: Whether an input marks missing values.
        categories: Categories with an input each.
        other: Whether rarer categories share an input.
    """

    name: str
    kind: str
    fill: float = 0.0
    center: float = 0.0
    scale: float = 1.0
    indicator: bool = False
    categories: tuple[str, ...] = ()
    other: bool = False


class ColumnKind(ABC):
    """Kind of a table column: how its values are recognized, read, written, encoded and described.

    A new kind is one final subclass without fields, added to `KINDS`. Values are float32 with NaN where
    missing, or int32 codes of categories with −1.
    """

    name: ClassVar[str]
    """Name in stored tables, saved models and the preprocessing log."""
    categorical: ClassVar[bool] = False
    """Whether values are codes of categories."""
    ordered: ClassVar[bool] = False
    """Whether the order of values has a meaning, so that distribution functions can be compared."""
    exclusive: ClassVar[bool] = False
    """Whether values of this pandas type cannot be read as another kind."""

    @abstractmethod
    def from_pandas(self, name: str, rows: "pd.Series[Any]", first_row: int) -> Values | None:
        """Return float32 values if the pandas type stands for this kind, else None."""

    @abstractmethod
    def infer(self, name: str, texts: ColumnChunk) -> Parsed | None:
        """Return values and categories if a column of text is of this kind, else None.

        Raises:
            EnvariantError: If most values are of this kind, and others are not.
        """

    @abstractmethod
    def read(self, name: str, chunk: ColumnChunk, first_row: int) -> Parsed:
        """Return values and categories of rows that must be of this kind.

        Raises:
            EnvariantError: If a value is not of this kind.
        """

    @abstractmethod
    def missing(self, values: Values) -> NDArray[np.bool_]:
        """Return which rows have no value, `[rows]`."""

    @abstractmethod
    def format(self, values: Values, categories: Categories) -> list[str | None]:
        """Return values as text, as people write them; None where missing."""

    def as_text(self, values: Values) -> ColumnChunk:
        """Return numeric values as a chunk of text, for columns whose other chunks are text."""
        codes, distinct = pd.factorize(values)
        return ColumnChunk(None, codes.astype(np.int32), tuple(map(str, self.format(distinct, ()))))

    @abstractmethod
    def fit(self, name: str, values: Values, categories: Categories) -> ColumnEncoding | None:
        """Return the encoding learned from training rows, or None if they do not vary."""

    @abstractmethod
    def input_names(self, encoding: ColumnEncoding) -> tuple[str, ...]:
        """Return the names of the encoded inputs, the missing-value indicator excepted."""

    @abstractmethod
    def encode(self, encoding: ColumnEncoding, values: Values, categories: Categories, out: Values) -> None:
        """Write encoded rows into `out`, `[rows, inputs]`, the missing-value indicator excepted."""

    @abstractmethod
    def describe(self, categories: Categories) -> str:
        """Return the entry of the preprocessing log: the kind, and how it is encoded."""

    def unusable(self, values: Values) -> str:
        """Return why a column that varies cannot help any model, or "" if it may."""
        return ""

    def class_names(self, categories: Categories) -> tuple[str, ...]:
        """Return what the values of a classification target stand for, in order."""
        return categories

    def class_values(self, values: Values) -> Values:
        """Return the values that distinguish the classes of a classification target."""
        return values

    @abstractmethod
    def infer_task(self, values: Values) -> TaskName:
        """Return the task that a target of this kind suggests."""


class NumericKind(ColumnKind):
    """Kind of numeric values: text is parsed, missing values get the median, inputs are standardized."""

    correction: ClassVar[str] = "Correct it"
    """How a wrong value can be corrected, in error messages."""
    min_share: ClassVar[float] = 0.9
    """A column of text is of this kind if at least this share of its values is; the rest are mistakes."""

    @abstractmethod
    def parse(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return the number that each text stands for; NaN where it is not of this kind."""

    def infer(self, name: str, texts: ColumnChunk) -> Parsed | None:
        missing = missing_texts(texts.texts)[:-1]
        counts = np.bincount(texts.values[texts.values >= 0], minlength=len(texts.texts)) * ~missing
        if not counts.any():
            return None
        parsed = self.parse(texts.texts)
        valid = np.isfinite(parsed) & ~missing
        if counts[valid].sum() < self.min_share * counts.sum():
            return None
        if len(wrong := np.flatnonzero(~valid & ~missing)):
            row = int(np.flatnonzero(texts.values == wrong[0])[0]) + 1
            raise EnvariantError(
                f"column '{name}': {counts[wrong].sum()} of {counts.sum()} values are no {self.name}s (the "
                f"first: '{quoted(texts.texts[wrong[0]])}' in row {row}); correct them, leave them empty, or "
                f"exclude the column"
            )
        return self.checked(name, np.append(np.where(valid, parsed, np.nan), np.nan)[texts.values]), ()

    def read(self, name: str, chunk: ColumnChunk, first_row: int) -> Parsed:
        if chunk.kind is None:
            table = np.append(self.parse(chunk.texts), np.nan)
            wrong = np.flatnonzero((~np.isfinite(table) & ~missing_texts(chunk.texts))[chunk.values])
            values = table[chunk.values]
        else:
            values = chunk.values
            wrong = np.flatnonzero(~np.isnan(values) & ~self.accepts(chunk))
        if len(wrong):
            row = int(wrong[0])
            value = chunk.texts[chunk.values[row]] if chunk.kind is None else f"{values[row]:g}"
            raise EnvariantError(
                f"column '{name}': holds '{quoted(value)}' in row {first_row + row + 1}; the model learned "
                f"from a {self.name} of that name. {self.correction}, or leave it empty"
            )
        return self.checked(name, values, first_row), ()

    def accepts(self, chunk: ColumnChunk) -> NDArray[np.bool_]:
        """Return which rows of numbers are of this kind, `[rows]`."""
        return np.full(len(chunk.values), chunk.kind == self.name)

    def checked(self, name: str, values: Values, first_row: int = 0) -> NDArray[np.float32]:
        """Return values as float32; raise an `EnvariantError` if this kind does not allow a value."""
        return values.astype(np.float32)

    def missing(self, values: Values) -> NDArray[np.bool_]:
        return np.isnan(values)

    def fit(self, name: str, values: Values, categories: Categories) -> ColumnEncoding | None:
        column = values[:, None].astype(np.float64)
        missing = self.missing(values)
        if missing.all():
            return None
        imputer: Any = SimpleImputer(strategy="median").fit(column)
        scaler: Any = StandardScaler().fit(imputer.transform(column))
        center, scale = float(scaler.mean_[0]), float(np.sqrt(scaler.var_[0]))
        # Smaller deviations are rounding in float32.
        varies = scale > max(1e-7 * abs(center), 1e-30)
        fill, indicator = float(imputer.statistics_[0]), bool(missing.any())
        scale = scale if varies else 1.0
        return (
            ColumnEncoding(name, self.name, fill, center, scale, indicator) if varies or indicator else None
        )

    def input_names(self, encoding: ColumnEncoding) -> tuple[str, ...]:
        return (encoding.name,)

    def encode(self, encoding: ColumnEncoding, values: Values, categories: Categories, out: Values) -> None:
        filled = self.filled(encoding, values)
        np.clip((filled - encoding.center) / encoding.scale, -_FARTHEST, _FARTHEST, out=out[:, 0])

    def filled(self, encoding: ColumnEncoding, values: Values) -> Values:
        """Return values with the median in place of missing ones."""
        return np.where(self.missing(values), np.float32(encoding.fill), values)

    def describe(self, categories: Categories) -> str:
        return f"{self.name}, standardized"


def missing_texts(texts: Sequence[str]) -> NDArray[np.bool_]:
    """Return which texts stand for a missing value; a last entry, True, is for code −1."""
    return np.array([*(text.lower() in MISSING_TEXTS for text in texts), True], dtype=bool)


def quoted(text: str) -> str:
    """Return a text on one line and shortened, for an error message."""
    line = "".join(character if character.isprintable() else " " for character in text)
    return line if len(line) <= _LONGEST_QUOTE else line[:_LONGEST_QUOTE] + "…"
