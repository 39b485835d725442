"""Base classes of column kinds. A kind defines how a type of table column is parsed and encoded."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from envariant.core.errors import EnvariantError
from envariant.data.tables.kinds.notation import Notation

TaskName = Literal["binary", "multiclass", "regression"]

LARGEST = 1e15
"""Largest allowed absolute value of a number; up to this value, float64 represents every integer."""

MOST_CLASSES = 20
"""A column with at most this many distinct values is never taken for names or row numbers."""

MOST_LEVELS = 10
"""With at most this many distinct integers, a target defines classes; with more, the task is regression."""

# Encoded values are clipped to this many standard deviations.
_FARTHEST = 10.0
_LONGEST_QUOTE = 40
# Relative size of rounding errors in float64, with a margin.
_ROUNDING = 1e-14

Values = NDArray[Any]
Categories = tuple[str, ...]


@final
class Parsed(NamedTuple):
    """Parsed column: values, categories and number notation, as in `Column`."""

    values: Values
    categories: Categories = ()
    notation: Notation | None = None


@final
@dataclass(frozen=True, eq=False)
class ColumnChunk:
    """Consecutive rows of a column in compact form, before the kind of the column is inferred.

    Attributes:
        kind: Name of the kind that corresponds to the pandas type; None for text.
        values: Values, `[rows]`: float64 with NaN for missing values; for text, int32 codes with −1 for
            missing values.
        texts: Distinct strings, in the order of their codes.
        categorical: Whether strings are categories even if they could be read as numbers.
        spellings: Pairs of different strings that were read as the same string because they differ only in
            spaces or invisible characters.
        originals: Original value of each string, before conversion to text; empty if not stored.
    """

    kind: str | None
    values: Values
    texts: tuple[str, ...] = ()
    categorical: bool = False
    spellings: tuple[tuple[str, str], ...] = ()
    originals: tuple[Any, ...] = ()

    @property
    def blank(self) -> bool:
        """Whether all values are missing, so that the pandas type is uninformative."""
        return not self.texts if self.kind is None else bool(np.isnan(self.values).all())

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of rows that contain each string, `[texts]`."""
        return np.bincount(self.values[self.values >= 0], minlength=len(self.texts))

    def without(self, missing: NDArray[np.bool_]) -> "ColumnChunk":
        """Return a chunk in which some strings are replaced by missing values.

        Args:
            missing: Mask of the strings to replace, `[texts]`.
        """
        table = np.append(np.where(missing, -1, np.cumsum(~missing) - 1), -1).astype(np.int32)
        texts = tuple(text for text, absent in zip(self.texts, missing, strict=True) if not absent)
        return replace(self, values=table[self.values], texts=texts, originals=())


@final
@dataclass(frozen=True)
class ColumnEncoding:
    """Fitted parameters that encode one column as network inputs.

    Attributes:
        name: Name of the column.
        kind: Name of the column kind.
        fill: Number that replaces missing values: the median of the training rows.
        center: Mean of the numbers in the training rows.
        scale: Standard deviation of the numbers in the training rows.
        indicator: Whether an additional input marks missing values.
        categories: Categories that are each encoded by a separate input.
        other: Whether one additional input represents all rare categories.
        notation: Notation of numbers that were read from text, such as "1,5" with a decimal comma; None if
            they were written as in programming languages ("1.5").
    """

    name: str
    kind: str
    fill: float = 0.0
    center: float = 0.0
    scale: float = 1.0
    indicator: bool = False
    categories: tuple[str, ...] = ()
    other: bool = False
    notation: Notation | None = None


class ColumnKind(ABC):
    """Base class of column kinds, which define how values are read, formatted and encoded.

    To add a kind, define a final subclass without fields and add it to `KINDS`. Values are float64 with NaN
    for missing values, or int32 codes of categories with −1 for missing values.
    """

    name: ClassVar[str]
    """Name of the kind in stored tables, saved models and the preprocessing log."""
    categorical: ClassVar[bool] = False
    """Whether values are category codes."""
    ordered: ClassVar[bool] = False
    """Whether values are ordered, so that distribution functions can be compared."""
    exclusive: ClassVar[bool] = False
    """Whether columns of the corresponding pandas type cannot be read as another kind."""
    words_are_missing: ClassVar[bool] = False
    """Whether words such as "none" are always missing values in a column of this kind."""

    @abstractmethod
    def from_pandas(self, name: str, rows: "pd.Series[Any]", first_row: int) -> Values | None:
        """Convert rows to float64 values if the pandas type corresponds to this kind; else return None."""

    @abstractmethod
    def infer(self, name: str, texts: ColumnChunk, decimal_comma: bool | None = None) -> Parsed | None:
        """Parse a text column; return None if the column is not of this kind.

        Args:
            name: Name of the column.
            texts: All rows of the column, without strings that represent missing values.
            decimal_comma: Whether numbers in the table have a decimal comma; None if unknown.

        Raises:
            EnvariantError: If most values are of this kind, but a few are not.
        """

    @abstractmethod
    def read(
        self, name: str, chunk: ColumnChunk, first_row: int = 0, notation: Notation | None = None
    ) -> Parsed:
        """Parse new rows of a column that was of this kind in training.

        Args:
            name: Name of the column.
            chunk: New rows, without strings that represent missing values.
            first_row: Number of preceding rows, for error messages.
            notation: Notation of the numbers in the training table.

        Raises:
            EnvariantError: If a value is not of this kind.
        """

    @abstractmethod
    def missing(self, values: Values) -> NDArray[np.bool_]:
        """Return the mask of missing values, `[rows]`."""

    @abstractmethod
    def format(self, values: Values, categories: Categories) -> list[str | None]:
        """Format values as readable strings, with None for missing values."""

    def as_text(self, values: Values) -> ColumnChunk:
        """Convert numbers to a text chunk, so that they can be joined with text chunks of the same column."""
        codes, distinct = pd.factorize(values)
        return ColumnChunk(None, codes.astype(np.int32), tuple(map(str, self.format(distinct, ()))))

    @abstractmethod
    def fit(
        self, name: str, values: Values, categories: Categories, environments: Values | None = None
    ) -> ColumnEncoding | None:
        """Fit the encoding on training rows; return None if the values are constant.

        Args:
            name: Name of the column.
            values: Values, `[rows]`.
            categories: Categories in the order of their codes.
            environments: Index of the environment of each row. Default: one environment.
        """

    @abstractmethod
    def input_names(self, encoding: ColumnEncoding) -> tuple[str, ...]:
        """Return the names of the encoded inputs, except for the missing-value indicator."""

    @abstractmethod
    def encode(self, encoding: ColumnEncoding, values: Values, categories: Categories, out: Values) -> None:
        """Encode rows into `out`, `[rows, inputs]`, except for the missing-value indicator."""

    @abstractmethod
    def describe(self, categories: Categories) -> str:
        """Describe the kind and the encoding, for the preprocessing log."""

    def unusable(self, values: Values) -> str:
        """Return why no model can use a column, even though its values vary; "" if models can use it."""
        return ""

    def class_names(self, values: Values) -> list[str]:
        """Format the distinct values of a classification target as class names."""
        return [str(text) for text in self.format(values, ())]

    @abstractmethod
    def infer_task(self, values: Values) -> TaskName:
        """Infer the prediction task from the values of a target column of this kind."""


class NumericKind(ColumnKind):
    """Base class of numeric kinds. Missing values are replaced by the median; inputs are standardized."""

    correction: ClassVar[str] = "Correct it"
    """Advice on correcting a wrong value, for error messages."""
    min_share: ClassVar[float] = 0.9
    """Minimum share of valid values in a text column of this kind; its other values are then errors."""

    words_are_missing: ClassVar[bool] = True

    @abstractmethod
    def parse(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Parse strings as numbers; strings that are not of this kind become NaN."""

    def notation(self, texts: ColumnChunk, decimal_comma: bool | None) -> Notation | None:
        """Return the notation of the numbers in a text column; None if `parse` needs no notation."""
        del texts, decimal_comma
        return None

    def infer(self, name: str, texts: ColumnChunk, decimal_comma: bool | None = None) -> Parsed | None:
        counts = texts.counts
        if not counts.any():
            return None
        notation = self.notation(texts, decimal_comma)
        parsed = self.parse(texts.texts) if notation is None else notation.parse(texts.texts)
        valid = np.isfinite(parsed)
        if counts[valid].sum() < self.min_share * counts.sum():
            return None
        if len(wrong := np.flatnonzero(~valid)):
            row = int(np.flatnonzero(texts.values == wrong[0])[0]) + 1
            raise EnvariantError(
                f"column '{name}': {counts[wrong].sum()} of {counts.sum()} values are not {self.name}s (the "
                f"first: '{quoted(texts.texts[wrong[0]])}' in row {row}); correct them, leave them empty, or "
                f"exclude the column"
            )
        return Parsed(self.checked(name, np.append(parsed, np.nan)[texts.values]), notation=notation)

    def read(
        self, name: str, chunk: ColumnChunk, first_row: int = 0, notation: Notation | None = None
    ) -> Parsed:
        if chunk.kind is None:
            table = np.append(self._known(chunk, notation), np.nan)
            values = table[chunk.values]
            wrong = np.flatnonzero(~np.isfinite(values) & (chunk.values >= 0))
        else:
            values = chunk.values
            wrong = np.flatnonzero(~np.isnan(values) & ~self.accepts(chunk))
        if len(wrong):
            row = int(wrong[0])
            value = chunk.texts[chunk.values[row]] if chunk.kind is None else f"{values[row]:g}"
            raise EnvariantError(
                f"column '{name}': holds '{quoted(value)}' in row {first_row + row + 1}, but the model "
                f"was trained on a {self.name} column of this name. {self.correction}, or leave it empty"
            )
        return Parsed(self.checked(name, values, first_row))

    def _known(self, chunk: ColumnChunk, notation: Notation | None) -> NDArray[np.float64]:
        """Parse numbers in the notation of the training table, or in another notation if unambiguous."""
        parsed = self.parse(chunk.texts) if notation is None else notation.parse(chunk.texts)
        if not np.isfinite(parsed).all() and (other := self.notation(chunk, None)) is not None:
            is_clear = other.agrees_with(notation) and other.is_certain(chunk.texts)
            return other.parse(chunk.texts) if is_clear else parsed
        return parsed

    def accepts(self, chunk: ColumnChunk) -> NDArray[np.bool_]:
        """Return the mask of numeric values that are valid for this kind, `[rows]`."""
        return np.full(len(chunk.values), chunk.kind == self.name)

    def checked(self, name: str, values: Values, first_row: int = 0) -> NDArray[np.float64]:
        """Convert values to float64, and check that they are valid for this kind.

        Raises:
            EnvariantError: If a value is not valid for this kind.
        """
        return values.astype(np.float64)

    def missing(self, values: Values) -> NDArray[np.bool_]:
        return np.isnan(values)

    def fit(
        self, name: str, values: Values, categories: Categories, environments: Values | None = None
    ) -> ColumnEncoding | None:
        # Missing values take no part: many medians among the values would make the scale too small.
        observed = values[~self.missing(values)]
        if not len(observed):
            return None
        fill, center, scale = float(np.median(observed)), float(observed.mean()), float(observed.std())
        # Smaller deviations are rounding errors; integers have none.
        least = 0.0 if (observed % 1 == 0).all() else _ROUNDING * abs(center)
        varies, indicator = scale > max(least, 1e-30), len(observed) < len(values)
        if not varies and not indicator:
            return None
        center, scale = (center, scale) if varies else (fill, 1.0)
        return ColumnEncoding(name, self.name, fill, center, scale, indicator)

    def input_names(self, encoding: ColumnEncoding) -> tuple[str, ...]:
        return (encoding.name,)

    def encode(self, encoding: ColumnEncoding, values: Values, categories: Categories, out: Values) -> None:
        filled = self.filled(encoding, values)
        out[:, 0] = np.clip((filled - encoding.center) / encoding.scale, -_FARTHEST, _FARTHEST)

    def filled(self, encoding: ColumnEncoding, values: Values) -> Values:
        """Replace missing values by the median of the training values."""
        return np.where(self.missing(values), encoding.fill, values)

    def describe(self, categories: Categories) -> str:
        return f"{self.name}, standardized"


def quoted(text: str) -> str:
    """Shorten a string to one line, for use in an error message."""
    line = "".join(character if character.isprintable() else " " for character in text)
    return line if len(line) <= _LONGEST_QUOTE else line[:_LONGEST_QUOTE] + "…"
