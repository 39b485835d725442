"""A table's columns, typed: numbers, booleans, dates and categories, each with an account of what was done.

Whatever a file or a data frame held, from here on a column is one array: numbers with NaN where a value is
missing, or the codes of categories with −1.
"""

import json
import math
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, cast, final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from envariant.core.errors import EnvariantError

Kind = Literal["number", "boolean", "date", "category"]

ABSENT = frozenset(
    {"", "?", "-", "--", ".", "na", "n/a", "#n/a", "<na>", "nan", "nat", "none", "null", "missing", "unknown"}
    | {"0000-00-00"}
)
"""What people write where there is no value, in small letters."""

# Beyond this, squares of a column no longer fit into float32.
_LARGEST = 1e15
# From this share of numbers on, text in between is a mistake and not a category.
_MOSTLY = 0.9
# Of a value that is quoted.
_LONGEST = 40
_TIME = r"(?P<time>[ T]\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?: ?[AaPp][Mm])?)"
_DATE = re.compile(
    r"(?:(?P<year>\d{4})(?P<sign>[-/.])(?P<month>\d{1,2})(?P=sign)(?P<day>\d{1,2})"
    # 1.10.12 is a version, 01.10.12 a day.
    r"|(?!(?:\d\.\d+|\d+\.\d)\.\d\d(?!\d))(?P<first>\d{1,2})(?P<dot>[-/.])(?P<second>\d{1,2})(?P=dot)(?P<last>\d{4}|\d{2}))"
    # The clock on the wall, wherever it hung.
    rf"(?:{_TIME}(?: ?(?:Z|UTC|[+-]\d{{2}}(?::?\d{{2}})?))?)?"
)
_COMMA = re.compile(r"[-+]?\d+,\d+")
_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2},\d{3}")
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
                None if v != v else str(np.datetime64(0, "D") + np.timedelta64(math.floor(v), "D"))
                for v in self.values.tolist()
            ]
        # As few digits as tell it from every other.
        return [
            None if v != v else str(int(v)) if abs(v) < _LARGEST and v == int(v) else str(np.float32(v))
            for v in self.values.tolist()
        ]


@final
@dataclass(frozen=True, eq=False)
class Piece:
    """Some rows of a column as pandas read them, small enough to keep while the rest is read.

    Attributes:
        kind: "number", "boolean", "date" or "text".
        values: numbers, or codes of the texts with −1.
        texts: the different values of text.
        given: whether its text stands for categories, whatever it looks like.
    """

    kind: str
    values: NDArray[Any]
    texts: tuple[str, ...] = ()
    given: bool = False

    @property
    def blank(self) -> bool:
        """Whether no row has a value; what pandas then takes the column for says nothing."""
        return not self.texts if self.kind == "text" else bool(np.isnan(self.values).all())


def piece(name: str, rows: "pd.Series[Any]", *, before: int = 0, given: bool = False) -> Piece:
    """Some rows of a column.

    Args:
        name: of the column.
        rows: as pandas read them; what pandas calls categories is nothing else, even if they are numbers.
        before: rows that stand before these, for what is said of a wrong one.
        given: whether they are categories, whatever pandas calls them.

    Raises:
        EnvariantError: a number is too large to compute with, or a value is no single one.
    """
    if given or isinstance(rows.dtype, pd.CategoricalDtype):
        return _words(name, rows, given=True)
    if pd.api.types.is_bool_dtype(rows):
        return Piece("boolean", rows.to_numpy(dtype=np.float32, na_value=np.nan))
    if pd.api.types.is_datetime64_any_dtype(rows):
        return Piece("date", _days(rows))
    if pd.api.types.is_complex_dtype(rows):
        raise EnvariantError(f"column '{name}': holds complex numbers; part them into two columns")
    if rows.dtype.kind == "m":
        return Piece("number", (rows.dt.total_seconds() / 86_400).to_numpy(dtype=np.float32, na_value=np.nan))
    if pd.api.types.is_numeric_dtype(rows):
        return Piece("number", _checked(name, rows.to_numpy(dtype=np.float64, na_value=np.nan), before))
    return _words(name, rows, given=False)


def _words(name: str, rows: "pd.Series[Any]", *, given: bool) -> Piece:
    try:
        codes, values = pd.factorize(rows)
    except TypeError:
        value = next((value for value in rows if not isinstance(value, Hashable)), rows.iloc[0])
        raise EnvariantError(
            f"column '{name}': holds a {type(value).__name__} where one value should be; make a column of "
            f"each of its parts, or leave it out"
        ) from None
    # Different values may be written alike.
    again, texts = pd.factorize(np.array([_text(value) for value in values], dtype=object))
    return Piece("text", np.append(again, -1)[codes].astype(np.int32), tuple(texts), given)


def typed(name: str, pieces: Sequence[Piece]) -> Column:
    """The column that pieces of it, read one after another, make.

    Args:
        name: of the column.
        pieces: one or more, in order; pandas may have guessed another type for each.

    Raises:
        EnvariantError: text stands between numbers or dates.
    """
    kinds = {each.kind for each in pieces if not each.blank}
    given = any(each.given for each in pieces)
    if given or len(kinds) > 1 or "text" in kinds:
        return _of_text(name, [_in_words(each) for each in pieces], given=given)
    values = [np.full(len(p.values), np.nan, np.float32) if p.blank else p.values for p in pieces]
    return Column(name, cast("Kind", kinds.pop() if kinds else "number"), np.concatenate(values))


def mixed(pieces: Sequence[Piece]) -> bool:
    """Whether pandas guessed several types for pieces of one column, and may have lost how it was written."""
    return len({each.kind for each in pieces if not each.blank}) > 1


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
        words = _in_words(found)
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
        row, mend = before + row + 1, "Write it as 2020-12-31" if kind == "date" else "Mend it"
        raise EnvariantError(
            f"column '{name}': holds '{_shown(value)}' in row {row}; the model learned from a {kind} of that "
            f"name. {mend}, or leave it empty"
        )
    number = kind == "number"
    return Column(name, kind, _checked(name, values, before) if number else values.astype(np.float32))


def _read_as(texts: Sequence[str], kind: Kind) -> NDArray[np.float64]:
    """What texts stand for; NaN where one is not of that kind."""
    if kind != "boolean":
        return _dates(texts) if kind == "date" else _numbers(texts)
    small = [text.lower() for text in texts]
    said = [float(t[0] in "ty") if any(t in pair for pair in _TRUE_AND_FALSE) else np.nan for t in small]
    numbers = _numbers(texts)
    return np.where(np.isin(numbers, (0, 1)), numbers, said)


def _numbers(texts: Sequence[str]) -> NDArray[np.float64]:
    """Numbers with a point or, where nothing else can be meant, a comma; NaN where a text is none."""
    written = pd.Series(texts, dtype=object)
    found = pd.to_numeric(written, errors="coerce").to_numpy(dtype=np.float64, copy=True)
    commas = [k for k, text in enumerate(texts) if "," in text and _COMMA.fullmatch(text)]
    # 3,141 may be three thousand, 3,14 may not; beside 3.14 nobody knows what it is.
    if any(not _THOUSANDS.fullmatch(texts[k]) for k in commas) and not any(
        "." in text for text, number in zip(texts, found, strict=True) if number == number
    ):
        found[commas] = [float(texts[k].replace(",", ".")) for k in commas]
    return found


def _dates(texts: Sequence[str]) -> NDArray[np.float64]:
    """Days since 1970; NaN where a text is no date, or where nothing tells its day from its month."""
    parts = [_DATE.fullmatch(text) for text in texts]
    turned = [each for each in parts if each and each["first"]]
    # 31.12. is written with dots only day first; with other signs, a number above 12 tells.
    day_first = any(each["dot"] == "." or int(each["first"]) > 12 for each in turned)
    known = day_first != any(int(each["second"]) > 12 for each in turned)

    def iso(each: re.Match[str] | None) -> str | None:
        if each is None or (each["first"] and not known):
            return None
        year, month, day = each["year"], each["month"], each["day"]
        if each["first"]:
            day, month = (each["first"], each["second"]) if day_first else (each["second"], each["first"])
            # Of two digits, as POSIX has it: 69 is 1969, 68 is 2068.
            year = each["last"] if len(each["last"]) == 4 else 1969 + (int(each["last"]) - 69) % 100
        return f"{year}-{month:0>2}-{day:0>2}{(each['time'] or '').replace('T', ' ')}"

    written = pd.Series([iso(each) for each in parts], dtype=object)
    return _days(pd.to_datetime(written, errors="coerce", format="mixed")).astype(np.float64)


def _absent(texts: Sequence[str]) -> NDArray[np.bool_]:
    """Which texts stand for no value; and one more, which does: code −1 looks up the last."""
    return np.array([*(text.lower() in ABSENT for text in texts), True], dtype=bool)


def _in_words(found: Piece) -> Piece:
    if found.kind == "text":
        return found
    if found.kind == "boolean":
        codes = np.where(np.isnan(found.values), -1, found.values).astype(np.int32)
        return Piece("text", codes, ("False", "True"))
    codes, values = pd.factorize(found.values)
    texts = Column("", cast("Kind", found.kind), values).texts()
    return Piece("text", codes.astype(np.int32), tuple(map(str, texts)))


def _of_text(name: str, pieces: Sequence[Piece], *, given: bool) -> Column:
    """A column of text; what it stands for is found from its different values, however many rows it has."""
    places: dict[str, int] = {}
    codes: list[NDArray[np.int32]] = []
    for each in pieces:
        # One code more than texts: missing rows have −1, the last.
        table = [places.setdefault(value, len(places)) for value in each.texts]
        codes.append(np.array([*table, -1], dtype=np.int32)[each.values])
    whole, values = np.concatenate(codes), list(places)
    absent = _absent(values)[:-1]
    if not given:
        present = {text.lower() for text, gone in zip(values, absent, strict=True) if not gone}
        if present in _TRUE_AND_FALSE:
            truth = [np.nan if gone else text[0] in "tTyY" for text, gone in zip(values, absent, strict=True)]
            return Column(name, "boolean", np.array([*truth, np.nan], dtype=np.float32)[whole])
        counts = np.bincount(whole[whole >= 0], minlength=len(values)) * ~absent
        kinds: tuple[Kind, ...] = ("number", "date")
        for kind in kinds if counts.any() else ():
            found = _read_as(values, kind)
            usual = np.isfinite(found) & ~absent
            if counts[usual].sum() < _MOSTLY * counts.sum():
                continue
            if len(wrong := np.flatnonzero(~usual & ~absent)):
                row, value = int(np.flatnonzero(whole == wrong[0])[0]) + 1, _shown(values[wrong[0]])
                raise EnvariantError(
                    f"column '{name}': {counts[wrong].sum()} of {counts.sum()} values are no {kind}s (the "
                    f"first: '{value}' in row {row}); mend them, leave them empty, or exclude the column"
                )
            taken = np.append(np.where(usual, found, np.nan), np.nan)[whole]
            return Column(name, kind, _checked(name, taken) if kind == "number" else taken.astype(np.float32))
    kept = [k for k in sorted(range(len(values)), key=lambda k: values[k]) if not absent[k]]
    table = np.full(len(values) + 1, -1, dtype=np.int32)
    table[kept] = np.arange(len(kept), dtype=np.int32)
    return Column(name, "category", table[whole], tuple(values[k] for k in kept))


def _text(value: object) -> str:
    # 3 and 3.0 are one thing, whatever type pandas had to give a piece of the column.
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    text = str(value).strip()
    return text.removesuffix(" 00:00:00") if isinstance(value, datetime) else text


def _shown(text: str) -> str:
    """On one line, and short."""
    line = "".join(sign if sign.isprintable() else " " for sign in text)
    return line if len(line) <= _LONGEST else line[:_LONGEST] + "…"


def _days(part: "pd.Series[Any]") -> NDArray[np.float32]:
    stamps = part.dt.tz_localize(None) if getattr(part.dt, "tz", None) is not None else part
    whole = stamps.to_numpy(dtype="datetime64[s]")
    days = whole.astype(np.int64) / 86_400
    return np.where(np.isnat(whole), np.nan, days).astype(np.float32)


def _checked(name: str, values: NDArray[Any], before: int = 0) -> NDArray[np.float32]:
    with np.errstate(invalid="ignore"):
        large = np.flatnonzero(np.abs(values) > _LARGEST)
    if len(large):
        value, row = values[large[0]], before + int(large[0]) + 1
        raise EnvariantError(
            f"column '{name}': holds {value:g} in row {row}, too large to compute with (from {_LARGEST:g} "
            f"on). Mend it, leave it empty, or leave the column out"
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
