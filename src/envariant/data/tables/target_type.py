"""Store the type and values of a target column, so that predictions have the type of the original column."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast, final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from envariant.data.tables.columns import Column
from envariant.data.tables.kinds import ColumnChunk

Scalar = bool | int | float | str
_DATE = "date"


@final
@dataclass(frozen=True)
class TargetType:
    """Type of the target column, and the values of its classes.

    Attributes:
        dtype: Name of the pandas type; "date" for `datetime.date` objects; "" if pandas infers the type.
        values: Original value of each class; empty for regression.
        categories: All categories of a pandas categorical, in order.
        categories_dtype: Name of the pandas type of the categories.
        ordered: Whether the categories are ordered.
    """

    dtype: str = ""
    values: tuple[Scalar, ...] = ()
    categories: tuple[Scalar, ...] = ()
    categories_dtype: str = ""
    ordered: bool = False

    @classmethod
    def of(
        cls, dtype: Any, column: Column, texts: ColumnChunk | None, classes: Column | None
    ) -> "TargetType":
        """Determine the type of a target column and the original values of its classes.

        Args:
            dtype: Pandas type of the column; None for a text file.
            column: Target column as read from the file or the data frame.
            texts: Target column as strings, together with the original value that each string stands for;
                None if the column is numeric.
            classes: Target column converted to classes; None for regression.
        """
        name = "" if dtype is None else str(dtype)
        if classes is None:
            return cls("datetime64[us]" if column.kind == "date" and not _is_time(name) else name)
        if texts is None:
            numbers = [column.values[classes.values == k][0] for k in range(len(classes.categories))]
            return cls(name, tuple(_of_number(number, column.kind, name) for number in numbers))
        counts = np.zeros((len(classes.categories), len(texts.texts)), dtype=np.int64)
        used = (classes.values >= 0) & (texts.values >= 0)
        np.add.at(counts, (classes.values[used], texts.values[used]), 1)
        originals = [(texts.originals or texts.texts)[k] for k in counts.argmax(axis=1).tolist()]
        if isinstance(dtype, pd.CategoricalDtype):
            names = dtype.categories
            values, categories = (tuple(map(_scalar, each)) for each in (originals, names))
            return cls("category", values, categories, str(names.dtype), bool(dtype.ordered))
        if dtype is None:
            originals = _as_pandas_reads(originals, texts.texts, column)
        if originals and all(type(value) is datetime.date for value in originals):
            name = _DATE
        return cls(name, tuple(map(_scalar, originals)))

    def decode(self, codes: NDArray[np.int64], classes: Sequence[str]) -> "pd.Series[Any]":
        """Return the original value of each predicted class, `[rows]`.

        Args:
            codes: Class index of each prediction, `[rows]`.
            classes: Names of the classes, used if original values were not stored.
        """
        if self.dtype == "category":
            names = _index(self.categories, self.categories_dtype)
            positions = np.array([self.categories.index(value) for value in self.values])
            return pd.Series(pd.Categorical.from_codes(positions[codes], names, ordered=self.ordered))
        return pd.Series(_index(self.values or tuple(classes), self.dtype).take(codes))

    def of_numbers(self, numbers: NDArray[np.float64]) -> "pd.Series[Any]":
        """Convert regression predictions to dates or durations if the target has such a type, `[rows]`.

        For any other target, the numbers are returned unchanged.

        Args:
            numbers: Predictions, `[rows]`. For durations, they are numbers of days; for dates, numbers of
                days since 1970.
        """
        if not _is_time(self.dtype):
            return pd.Series(numbers)
        microseconds = np.round(numbers * 86_400e6)
        if "timedelta" in self.dtype or "duration" in self.dtype:
            return pd.Series(microseconds.astype("timedelta64[us]")).astype(cast("Any", self.dtype))
        stamps = cast("pd.Series[Any]", pd.Series(microseconds.astype("datetime64[us]")))
        zone = getattr(pd.api.types.pandas_dtype(self.dtype), "tz", None)
        if zone is not None:
            stamps = stamps.dt.tz_localize(
                zone, ambiguous=np.ones(len(stamps), bool), nonexistent="shift_forward"
            )
        return stamps.astype(cast("Any", self.dtype))


def _is_time(dtype: str) -> bool:
    return any(name in dtype for name in ("datetime", "timestamp", "timedelta", "duration", "date32"))


def _index(values: Sequence[Scalar], dtype: str) -> "pd.Index[Any]":
    if dtype == _DATE:
        return pd.Index([datetime.date.fromisoformat(str(value)) for value in values], dtype=object)
    try:
        return pd.Index(list(values), dtype=dtype or None)
    except (TypeError, ValueError):
        return pd.Index(list(values), dtype=object)


def _scalar(value: Any) -> Scalar:
    """Convert a value to a type that JSON supports; all other types become text."""
    if isinstance(value, np.generic):
        value = value.item()
    return value if isinstance(value, bool | int | float | str) else str(value)


def _of_number(number: float, kind: str, dtype: str) -> Scalar:
    if kind == "date" or _is_time(dtype):
        return str(TargetType(dtype).of_numbers(np.array([number])).iloc[0])
    if "bool" in dtype:
        return bool(number)
    return int(number) if "int" in dtype.lower() else float(number)


def _as_pandas_reads(originals: Sequence[Any], texts: Sequence[str], column: Column) -> list[Any]:
    """Convert the strings of a file to Booleans or numbers, as pandas would read them."""
    if column.kind == "boolean" and all(text.lower() in ("true", "false") for text in originals):
        return [text.lower() == "true" for text in originals]
    if column.kind == "number" and column.notation is None:
        present = [text for text in texts if text not in column.missing_as and text]
        whole = all(text.lstrip("+-").isdigit() for text in present)
        return [int(text) if whole else float(text) for text in originals]
    return list(originals)
