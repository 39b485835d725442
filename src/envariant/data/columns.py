"""A table's columns, typed: numbers, booleans, dates and categories, each with an account of what was done.

Whatever a file or a data frame held, from here on a column is one array: numbers with NaN where a value is
missing, or the codes of categories with −1.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from envariant.errors import EnvariantError

Kind = Literal["number", "boolean", "date", "category"]

ABSENT = frozenset({"", "?", "-", "na", "n/a", "nan", "none", "null", "missing", "unknown", "."})
"""What people write where there is no value, in small letters."""

# Beyond this, squares of a column no longer fit into float32.
_LARGEST = 1e15
# From this share of numbers on, text in between is a mistake and not a category.
_MOSTLY = 0.9
_DATE = re.compile(r"\s*\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T]\d{1,2}:\d{2}.*)?\s*")
_TRUE_AND_FALSE = ({"true", "false"}, {"yes", "no"}, {"y", "n"}, {"t", "f"})


@final
@dataclass(frozen=True, eq=False)
class Column:
    """One column of a table.

    Attributes:
        name: as in its header.
        kind: of its values.
        values: `[rows]`, float32 with NaN where missing (a date in days since 1970), or int32 codes of the
            categories with −1.
        categories: in the order of their codes.
    """

    name: str
    kind: Kind
    values: NDArray[Any]
    categories: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    @property
    def missing(self) -> NDArray[np.bool_]:
        """Which rows have no value, `[rows]`."""
        return self.values < 0 if self.kind == "category" else np.isnan(self.values)

    def rows(self, index: NDArray[Any]) -> "Column":
        """The rows at an index or under a mask."""
        return Column(self.name, self.kind, self.values[index], self.categories)

    def texts(self) -> list[str | None]:
        """Its values as people would write them; None where missing."""
        if self.kind == "category":
            return [None if code < 0 else self.categories[code] for code in self.values.tolist()]
        if self.kind == "boolean":
            return [None if v != v else "true" if v else "false" for v in self.values.tolist()]
        if self.kind == "date":
            return [
                None if v != v else str(np.datetime64(0, "D") + np.timedelta64(int(v), "D"))
                for v in self.values.tolist()
            ]
        return [None if v != v else f"{v:.7g}" for v in self.values.tolist()]


@final
@dataclass(frozen=True, eq=False)
class Piece:
    """Some rows of a column as pandas read them, small enough to keep while the rest is read.

    Attributes:
        kind: "number", "boolean", "date" or "text".
        values: numbers, or codes of the texts with −1.
        texts: the different values of text.
    """

    kind: str
    values: NDArray[Any]
    texts: tuple[str, ...] = ()


def piece(name: str, rows: "pd.Series[Any]") -> Piece:
    """Some rows of a column.

    Raises:
        EnvariantError: a number is too large to compute with.
    """
    if pd.api.types.is_bool_dtype(rows):
        return Piece("boolean", rows.to_numpy(dtype=np.float32, na_value=np.nan))
    if pd.api.types.is_datetime64_any_dtype(rows):
        return Piece("date", _days(rows))
    if pd.api.types.is_complex_dtype(rows):
        raise EnvariantError(f"column '{name}': holds complex numbers; part them into two columns")
    if pd.api.types.is_numeric_dtype(rows):
        return Piece("number", _checked(name, rows.to_numpy(dtype=np.float64, na_value=np.nan)))
    codes, values = pd.factorize(rows)
    return Piece("text", codes.astype(np.int32), tuple(_text(value) for value in values))


def typed(name: str, pieces: Sequence[Piece]) -> Column:
    """The column that pieces of it, read one after another, make.

    Args:
        name: of the column.
        pieces: in order; pandas may have guessed another type for each.

    Raises:
        EnvariantError: text stands between numbers.
    """
    kinds = {each.kind for each in pieces}
    if len(kinds) == 1 and (kind := kinds.pop()) != "text":
        # Where a column has no value in it, pandas guesses numbers.
        return Column(name, cast("Kind", kind), np.concatenate([each.values for each in pieces]))
    return _of_text(name, [_in_words(each) for each in pieces])


def of_kind(name: str, found: Piece, kind: Kind, *, before: int = 0) -> Column:
    """The column that a piece makes where its kind is known already, because a model has learned from it.

    A category may arrive as numbers, a boolean as 0 and 1 or in words, a number or a date as text.

    Args:
        name: of the column.
        found: some rows of it.
        kind: what they must be.
        before: rows that stand before these, for what is said of a wrong one.

    Raises:
        EnvariantError: a value is there and is not of that kind.
    """
    if found.kind == "date" and kind != "date" and not np.isnan(found.values).all():
        raise EnvariantError(f"column '{name}': holds dates; the model learned from a {kind} of that name")
    if kind == "category":
        words = _in_words(found) if found.kind != "boolean" else _true_and_false(found)
        gone = _absent(words.texts)
        codes = np.where(gone[words.values], np.int32(-1), words.values)
        return Column(name, "category", codes.astype(np.int32), words.texts)
    if found.kind == "text":
        table = np.append(_read_as(found.texts, kind), np.nan)
        gone = _absent(found.texts)
        wrong = np.flatnonzero((~np.isfinite(table) & ~gone)[found.values])
        values = table[found.values]
    else:
        values = found.values
        usable = found.kind == kind or (kind == "number" and found.kind == "boolean")
        right = np.isin(values, (0, 1)) if kind == "boolean" else np.full(len(values), usable)
        wrong = np.flatnonzero(~np.isnan(values) & ~right)
    if len(wrong):
        row = int(wrong[0])
        value = found.texts[found.values[row]] if found.kind == "text" else f"{values[row]:g}"
        raise EnvariantError(
            f"column '{name}': holds '{value}' in row {before + row + 1}; the model learned from a {kind} of "
            f"that name. Mend it, or leave it empty"
        )
    return Column(name, kind, _checked(name, values) if kind == "number" else values.astype(np.float32))


def _read_as(texts: Sequence[str], kind: Kind) -> NDArray[np.float64]:
    """What texts stand for; NaN where one is not of that kind."""
    values = pd.Series(texts, dtype=object)
    if kind == "date":
        try:
            return _days(pd.to_datetime(values, errors="coerce", format="mixed")).astype(np.float64)
        except ValueError:
            return np.full(len(texts), np.nan)
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64)
    if kind == "number":
        return numbers
    small = [text.strip().lower() for text in texts]
    said = [float(t[0] in "ty") if any(t in pair for pair in _TRUE_AND_FALSE) else np.nan for t in small]
    return np.where(np.isin(numbers, (0, 1)), numbers, said)


def _absent(texts: Sequence[str]) -> NDArray[np.bool_]:
    """Which texts stand for no value; and one more, which does: code −1 looks up the last."""
    return np.array([*(text.strip().lower() in ABSENT for text in texts), True], dtype=bool)


def _true_and_false(found: Piece) -> Piece:
    codes = np.where(np.isnan(found.values), -1, found.values).astype(np.int32)
    return Piece("text", codes, ("False", "True"))


def _in_words(found: Piece) -> Piece:
    if found.kind == "text":
        return found
    codes, values = pd.factorize(found.values)
    return Piece("text", codes.astype(np.int32), tuple(_text(value) for value in values))


def _of_text(name: str, pieces: Sequence[Piece]) -> Column:
    """A column of text; what it stands for is found from its different values, however many rows it has."""
    places: dict[str, int] = {}
    codes: list[NDArray[np.int32]] = []
    for each in pieces:
        # One code more than texts: missing rows have −1, the last.
        table = [places.setdefault(value, len(places)) for value in each.texts]
        codes.append(np.array([*table, -1], dtype=np.int32)[each.values])
    whole, values = np.concatenate(codes), list(places)
    counts = np.bincount(whole[whole >= 0], minlength=len(values)) if values else np.zeros(0, dtype=int)
    small = [value.strip().lower() for value in values]
    absent = np.array([text in ABSENT for text in small], dtype=bool)
    present = {text for text, gone in zip(small, absent, strict=True) if not gone}
    if present in _TRUE_AND_FALSE:
        truth = [np.nan if text in ABSENT else float(text[0] in "ty") for text in small]
        return Column(name, "boolean", _looked_up(truth, whole))
    numbers = pd.to_numeric(pd.Series(values, dtype=object), errors="coerce").to_numpy(dtype=np.float64)
    numeric = np.isfinite(numbers) & ~absent
    known = int(counts[~absent].sum()) if len(values) else 0
    if known and counts[numeric].sum() >= _MOSTLY * known:
        wrong = np.flatnonzero(~numeric & ~absent)
        if len(wrong):
            row = int(np.flatnonzero(whole == wrong[0])[0])
            raise EnvariantError(
                f"column '{name}': {int(counts[wrong].sum())} of {known} values are no numbers (the first: "
                f"'{values[wrong[0]]}' in row {row + 1}); mend them, leave them empty, or exclude the column"
            )
        return Column(name, "number", _checked(name, _looked_up(np.where(absent, np.nan, numbers), whole)))
    if present and all(_DATE.fullmatch(text) for text in list(present)[:100]):
        days = _days(pd.to_datetime(pd.Series(values, dtype=object), errors="coerce", format="mixed"))
        if np.isfinite(days[~absent]).mean() > _MOSTLY:
            return Column(name, "date", _looked_up(days, whole))
    kept = [k for k in sorted(range(len(values)), key=lambda k: values[k]) if not absent[k]]
    table = np.full(len(values) + 1, -1, dtype=np.int32)
    table[kept] = np.arange(len(kept), dtype=np.int32)
    return Column(name, "category", table[whole], tuple(values[k] for k in kept))


def _looked_up(values: Iterable[float], codes: NDArray[np.int32]) -> NDArray[np.float32]:
    return np.array([*values, np.nan], dtype=np.float32)[codes]


def _text(value: object) -> str:
    # 3 and 3.0 are one thing, whatever type pandas had to give a piece of the column.
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _days(part: "pd.Series[Any]") -> NDArray[np.float32]:
    stamps = part.dt.tz_localize(None) if getattr(part.dt, "tz", None) is not None else part
    whole = stamps.to_numpy(dtype="datetime64[s]")
    days = whole.astype(np.int64) / 86_400
    return np.where(np.isnat(whole), np.nan, days).astype(np.float32)


def _checked(name: str, values: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(invalid="ignore"):
        large = np.flatnonzero(np.abs(values) > _LARGEST)
    if len(large):
        raise EnvariantError(
            f"column '{name}': holds {values[large[0]]:g} in row {int(large[0]) + 1}, too large to compute "
            f"with (from {_LARGEST:g} on); mend it, leave it empty, or leave the column out"
        )
    return values.astype(np.float32)


def write(columns: Sequence[Column], folder: Path) -> None:
    """Stores columns in a folder: `columns.safetensors` and `columns.json`.

    Raises:
        EnvariantError: it cannot be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {str(k): np.ascontiguousarray(column.values) for k, column in enumerate(columns)}
        save_file(arrays, partial := folder / "columns.partial")
        partial.replace(folder / "columns.safetensors")
        side = [{"name": c.name, "kind": c.kind, "categories": c.categories} for c in columns]
        partial.write_text(json.dumps(side, ensure_ascii=False), encoding="utf-8")
        partial.replace(folder / "columns.json")
    except OSError as error:
        raise EnvariantError(f"{folder}: cannot be written ({error.strerror or error})") from None


def read(folder: Path) -> tuple[Column, ...]:
    """Columns that `write` stored.

    Raises:
        EnvariantError: they are not there, or damaged.
    """
    try:
        arrays: Mapping[str, NDArray[Any]] = load_file(folder / "columns.safetensors")
        side = _SIDE.validate_json((folder / "columns.json").read_text(encoding="utf-8"))
        return tuple(
            Column(each.name, each.kind, arrays[str(k)], each.categories) for k, each in enumerate(side)
        )
    except (OSError, SafetensorError, ValidationError, KeyError, UnicodeDecodeError) as error:
        raise EnvariantError(f"{folder}: holds no table, or a damaged one ({error})") from None


@final
@dataclass(frozen=True)
class _Side:
    name: str
    kind: Kind
    categories: tuple[str, ...]


_SIDE = TypeAdapter(tuple[_Side, ...])
