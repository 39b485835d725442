"""Base classes of column kinds."""

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
"""Lower-case texts that represent a missing value."""

LARGEST = 1e15
"""Largest absolute value of a number, so that sums of squares fit in float32."""

MOST_CLASSES = 20
"""Largest number of distinct integers that are classes; with more, the task is regression."""

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
    """Consecutive rows of a column in compact form, before the kind of the column is inferred.

    Attributes:
        kind: Name of the kind that corresponds to the pandas type; None for text.
        values: Values `[rows]`: float32 with NaN for missing values; for text, int32 codes with −1 for
            missing values.
        texts: Distinct texts, in the order of their codes.
        categorical: Whether texts are always categories, even if they can be read as numbers.
    """

    kind: str | None
    values: Values
    texts: tuple[str, ...] = ()
    categorical: bool = False

    @property
    def blank(self) -> bool:
        """Whether all values are missing, so that the pandas type gives no information."""
        return not self.texts if self.kind is None else bool(np.isnan(self.values).all())


@final
@dataclass(frozen=True)
class ColumnEncoding:
    """Parameters for encoding one column as network inputs.

    Attributes:
        name: Name of the column.
        kind: Name of the column kind.
        fill: Median, which replaces missing numbers.
        center: Mean after missing numbers are replaced.
        scale: Standard deviation after missing numbers are replaced.
        indicator: Whether there is an indicator input for missing values.
        categories: Categories with a separate input each.
        other: Whether there is one common input for rare categories.
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
    """Base class of column kinds, which define reading, formatting and encoding of the values.

    A new kind is a final subclass without fields, added to `KINDS`. Values are float32 with NaN for missing
    values, or int32 codes of categories with −1 for missing values.
    """

    name: ClassVar[str]
    """Name of the kind in stored tables, saved models and the preprocessing log."""
    categorical: ClassVar[bool] = False
    """Whether values are category codes."""
    ordered: ClassVar[bool] = False
    """Whether values are ordered, so that distribution functions can be compared."""
    exclusive: ClassVar[bool] = False
    """Whether columns of the corresponding pandas type cannot be read as another kind."""

    @abstractmethod
    def from_pandas(self, name: str, rows: "pd.Series[Any]", first_row: int) -> Values | None:
        """Return float32 values if the pandas type corresponds to this kind, else None."""

    @abstractmethod
    def infer(self, name: str, texts: ColumnChunk) -> Parsed | None:
        """Return values and categories if a text column is of this kind, else None.

        Raises:
            EnvariantError: If most values are of this kind, but a few are not.
        """

    @abstractmethod
    def read(self, name: str, chunk: ColumnChunk, first_row: int) -> Parsed:
        """Read rows as values of this kind; return values and categories.

        Raises:
            EnvariantError: If a value is not of this kind.
        """

    @abstractmethod
    def missing(self, values: Values) -> NDArray[np.bool_]:
        """Return the mask of missing values, `[rows]`."""

    @abstractmethod
    def format(self, values: Values, categories: Categories) -> list[str | None]:
        """Format values as readable text, with None for missing values."""

    def as_text(self, values: Values) -> ColumnChunk:
        """Convert numeric values to a text chunk, for columns whose other chunks are text."""
        codes, distinct = pd.factorize(values)
        return ColumnChunk(None, codes.astype(np.int32), tuple(map(str, self.format(distinct, ()))))

    @abstractmethod
    def fit(self, name: str, values: Values, categories: Categories) -> ColumnEncoding | None:
        """Fit the encoding on training rows; return None if the values are constant."""

    @abstractmethod
    def input_names(self, encoding: ColumnEncoding) -> tuple[str, ...]:
        """Return the names of the encoded inputs, without the missing-value indicator."""

    @abstractmethod
    def encode(self, encoding: ColumnEncoding, values: Values, categories: Categories, out: Values) -> None:
        """Encode rows into `out`, `[rows, inputs]`, except for the missing-value indicator."""

    @abstractmethod
    def describe(self, categories: Categories) -> str:
        """Return the text for the preprocessing log: the kind and its encoding."""

    def unusable(self, values: Values) -> str:
        """Return the reason that a varying column cannot be useful to any model, or "" if there is none."""
        return ""

    def class_names(self, categories: Categories) -> tuple[str, ...]:
        """Return the names of the classes of a classification target, in order."""
        return categories

    def class_values(self, values: Values) -> Values:
        """Convert the values of a classification target so that equal values are the same class."""
        return values

    @abstractmethod
    def infer_task(self, values: Values) -> TaskName:
        """Infer the task from the values of a target of this kind."""


class NumericKind(ColumnKind):
    """Base class of numeric kinds: missing values are replaced by the median, inputs are standardized."""

    correction: ClassVar[str] = "Correct it"
    """Advice on correcting a wrong value, for error messages."""
    min_share: ClassVar[float] = 0.9
    """Smallest share of valid values with which a text column is of this kind; other values are errors."""

    @abstractmethod
    def parse(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Parse texts as numbers; NaN for texts that are not of this kind."""

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
        """Return the mask of numeric values that are valid for this kind, `[rows]`."""
        return np.full(len(chunk.values), chunk.kind == self.name)

    def checked(self, name: str, values: Values, first_row: int = 0) -> NDArray[np.float32]:
        """Convert values to float32, and check that they are valid for this kind.

        Raises:
            EnvariantError: If a value is not valid for this kind.
        """
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
        # Smaller deviations are float32 rounding errors.
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
        """Replace missing values by the median."""
        return np.where(self.missing(values), np.float32(encoding.fill), values)

    def describe(self, categories: Categories) -> str:
        return f"{self.name}, standardized"


def missing_texts(texts: Sequence[str]) -> NDArray[np.bool_]:
    """Return the mask of texts that represent a missing value, with an additional last entry for code −1."""
    return np.array([*(text.lower() in MISSING_TEXTS for text in texts), True], dtype=bool)


def quoted(text: str) -> str:
    """Shorten a text to one line, for an error message."""
    line = "".join(character if character.isprintable() else " " for character in text)
    return line if len(line) <= _LONGEST_QUOTE else line[:_LONGEST_QUOTE] + "…"
