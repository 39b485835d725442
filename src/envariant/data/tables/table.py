"""Tables with a column that says where each row came from, as environments.

A CSV or Parquet file, a data frame of pandas, polars or Arrow. Every column is typed, and there is an
account of what was done to it; what is learned from rows to encode them is learned where training happens.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from envariant.core.conversion import in_order
from envariant.core.environments import RESERVED
from envariant.core.errors import EnvariantError, unknown_name
from envariant.data.tables import columns as column_files
from envariant.data.tables.columns import Column, Piece, mixed, piece, typed
from envariant.data.tables.reading import labeled, lacking_columns, stretches

TaskName = Literal["binary", "multiclass", "regression"]
TASKS: tuple[TaskName, ...] = ("binary", "multiclass", "regression")


# Whole numbers with more different values than this are a quantity and not a class.
_MOST_CLASSES = 20
# A name in nearly every row is no category.
_IDENTIFIER = 0.5
_SMALLEST = 50


@final
@dataclass(frozen=True)
class LogEntry:
    """What was done to one column.

    Attributes:
        column: its name; "" for the table as a whole.
        what: in words.
    """

    column: str
    what: str


@final
@dataclass(frozen=True, eq=False)
class Table:
    """Typed columns, a target, and the environment of every row.

    Attributes:
        columns: what a model may look at.
        target: classes as a category or boolean, or a number.
        environment: a category; no row is without one.
        task: what is predicted.
        account: what was done to each column, and to the table.
        weights: of rows, how often each is drawn into minibatches; None where all are alike.
    """

    columns: tuple[Column, ...]
    target: Column
    environment: Column
    task: TaskName
    preprocessing_log: tuple[LogEntry, ...]
    weights: Column | None = None

    def __len__(self) -> int:
        return len(self.target)

    @property
    def environments(self) -> tuple[str, ...]:
        """Their names, in order."""
        return self.environment.categories

    @property
    def classes(self) -> tuple[str, ...]:
        """What is told apart, in the order of the model's targets; none for a regression."""
        if self.task == "regression":
            return ()
        return ("false", "true") if self.target.kind == "boolean" else self.target.categories

    @property
    def every(self) -> tuple[Column, ...]:
        """All its columns: those that models look at, target, environment, and weights if there are any."""
        return (*self.columns, self.target, self.environment, *([self.weights] if self.weights else []))

    def rows(self, index: NDArray[Any], *lines: LogEntry) -> "Table":
        """Some of its rows, and what is to be said of that."""
        weights = self.weights and self.weights.rows(index)
        columns = tuple(column.rows(index) for column in self.columns)
        target, environment = self.target.rows(index), self.environment.rows(index)
        return Table(columns, target, environment, self.task, (*self.preprocessing_log, *lines), weights)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the task and every column: equal for equal tables, wherever they are stored."""
        digest = hashlib.blake2b(self.task.encode(), digest_size=16)
        for column in self.every:
            header = json.dumps([column.name, column.kind, column.categories, str(column.values.dtype)])
            digest.update(f"{header}\0{len(column)}\0".encode())
            digest.update(np.ascontiguousarray(column.values).tobytes())
        return digest.hexdigest()

    def targets(self) -> NDArray[Any]:
        """`[rows]`: the number of the class, or the number itself."""
        return self.target.values

    def write(self, folder: Path) -> None:
        """Stores the table in a folder, for `load`.

        Raises:
            EnvariantError: it cannot be written there.
        """
        column_files.write(self.every, folder)
        partial = folder / "table.partial"
        side = {
            "task": self.task,
            "weighted": self.weights is not None,
            "preprocessing_log": [
                {"column": line.column, "what": line.what} for line in self.preprocessing_log
            ],
        }
        try:
            partial.write_text(json.dumps(side, ensure_ascii=False, indent=1), encoding="utf-8")
            partial.replace(folder / "table.json")
        except OSError as error:
            raise EnvariantError(f"{folder}: cannot be written ({error.strerror or error})") from None


def load(folder: Path) -> Table:
    """A table that `Table.write` stored.

    Raises:
        EnvariantError: it is not there, or damaged.
    """
    try:
        side = _SIDE.validate_json((folder / "table.json").read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError):
        raise EnvariantError(f"{folder}: holds no table") from None
    *columns, last = column_files.read(folder)
    if side.weighted:
        *columns, target, environment = columns
        return Table(tuple(columns), target, environment, side.task, side.preprocessing_log, last)
    *columns, target = columns
    return Table(tuple(columns), target, last, side.task, side.preprocessing_log)


def read(
    data: Any,
    target: str,
    environment: str,
    *,
    task: str | None = None,
    exclude: Sequence[str] = (),
    weights: str | None = None,
    least: int = _SMALLEST,
    encoding: str = "utf-8",
) -> Table:
    """A table from a file or a data frame.

    Args:
        data: a path (.csv, .tsv, .txt, .parquet, compressed or not), or a frame of pandas, polars or Arrow.
        target: the name of the column to predict.
        environment: the name of the column that says where a row came from.
        task: binary, multiclass or regression; None infers it from the target.
        exclude: names of columns that no model may look at.
        weights: the name of a column that says how often a row is drawn in training; measured are all alike.
        least: rows that an environment needs; smaller ones are pooled.
        encoding: of a text file.

    Raises:
        EnvariantError: the file cannot be read, a column is missing, or what is in one makes no sense.
    """
    if task is not None and task not in TASKS:
        raise unknown_name("task", task, TASKS)
    # Names of environments as they are written: 03 is not 3, and long numbers keep all their digits.
    label, parts, header = stretches(data, encoding, [environment])
    roles = {"target": target, "environment": environment}
    roles |= {} if weights is None else {"weights": weights}
    for what, name in roles.items():
        if name not in header:
            raise lacking_columns(label, [name], header, f"{what} column")
        if name in exclude:
            raise EnvariantError(f"{label}: the {what} column '{name}' cannot be excluded")
    if unknown := [name for name in exclude if name not in header]:
        raise lacking_columns(label, unknown, header)
    if len(set(roles.values())) < len(roles):
        twice = ", ".join(f"{what} '{name}'" for what, name in roles.items())
        raise EnvariantError(f"{label}: one column cannot be two things ({twice}); name another")
    wanted = [name for name in header if name not in exclude]
    try:
        pieces, rows = _grown(parts, wanted, environment)
        if not rows:
            raise EnvariantError("holds no rows under its header")
        # Of some columns pandas read the first rows as numbers, and found later that they are none.
        if again := [name for name, own in pieces.items() if mixed(own)]:
            pieces |= _grown(stretches(data, encoding, again)[1], again, environment)[0]
        columns = {name: typed(name, pieces.pop(name)) for name in wanted}
    except EnvariantError as error:
        raise labeled(label, error) from None
    return _table(label, columns, roles, task, tuple(dict.fromkeys(exclude)), least)


def _grown(
    parts: Iterator[pd.DataFrame], names: Sequence[str], environment: str
) -> tuple[dict[str, list[Piece]], int]:
    """Columns in pieces, and how many rows there are."""
    found: dict[str, list[Piece]] = {name: [] for name in names}
    rows = 0
    for part in parts:
        for name, own in found.items():
            own.append(piece(name, part[name], before=rows, given=name == environment))
        rows += len(part)
    return found, rows


def _table(
    label: str,
    columns: dict[str, Column],
    roles: Mapping[str, str],
    task: TaskName | None,
    excluded: Sequence[str],
    least: int,
) -> Table:
    target, environment = roles["target"], roles["environment"]
    rows = len(columns[target])
    preprocessing_log = [LogEntry(name, "left out, as asked") for name in excluded]
    place, wanted = _named(columns.pop(environment)), columns.pop(target)
    weights = columns.pop(roles["weights"]) if "weights" in roles else None
    for what, column in ((f"target '{target}'", wanted), (f"environment '{environment}'", place)):
        if column.missing.all():
            raise EnvariantError(f"{label}: {what} holds no value at all")
    keep = ~(place.missing | wanted.missing)
    for what, column in (("target", wanted), ("environment", place)):
        if gone := int(column.missing.sum()):
            written = "without a value (empty, NA, none, unknown …)"
            preprocessing_log.append(
                LogEntry(column.name, f"{what}; {gone:,} of {rows:,} rows {written} are left out")
            )
    preprocessing_log += _alike(place)
    place, kept, pooled = _pooled(label, place, keep, least)
    preprocessing_log += pooled
    if not kept.all():
        columns = {name: column.rows(kept) for name, column in columns.items()}
        wanted, place = wanted.rows(kept), place.rows(kept)
        weights = weights and weights.rows(kept)
    if weights is not None:
        preprocessing_log.append(_weighing(label, weights))
    inferred = task or _task_of(wanted)
    wanted = _target(label, wanted, inferred)
    preprocessing_log.append(LogEntry(target, _told(wanted, inferred, given=task is not None)))
    preprocessing_log += _unbalanced(wanted, place, inferred)
    found: list[Column] = []
    order = np.argsort(place.values, kind="stable")
    for column in columns.values():
        why = _useless(column)
        told = f"left out: {why}" if why else _described(column) + _where(column, place, order)
        preprocessing_log.append(LogEntry(column.name, told))
        if not why:
            found.append(column)
            preprocessing_log += _alike(column)
    if not found:
        gone = ", ".join([*excluded, *columns]) or "there is no other"
        raise EnvariantError(f"{label}: no column is left to predict '{target}' from (left out: {gone})")
    return Table(tuple(found), wanted, place, inferred, tuple(preprocessing_log), weights)


def _weighing(label: str, weights: Column) -> LogEntry:
    if weights.kind != "number" or weights.missing.any() or weights.values.min() < 0:
        raise EnvariantError(
            f"{label}: weights '{weights.name}' must be a number of at least 0 in every row; fill in what is "
            f"missing, or leave those rows out"
        )
    return LogEntry(weights.name, "weights: how often a row is drawn in training; measured are all alike")


def _as_category(column: Column) -> Column:
    """Different values as classes, in their order."""
    if column.kind == "category":
        return column
    # A date's class is its day.
    values = np.floor(column.values) if column.kind == "date" else column.values
    different, codes = np.unique(values, return_inverse=True)
    names = [text for text in Column(column.name, column.kind, different).texts() if text is not None]
    # Where values are missing they come last.
    codes = np.where(codes < len(names), codes, -1).astype(np.int32)
    return Column(column.name, "category", codes, tuple(names))


def _named(column: Column) -> Column:
    """Environments under names that fit on a line, numbers in order."""
    plain = [_plain(category) for category in column.categories]
    names = in_order(plain)
    places = {name: code for code, name in enumerate(names)}
    codes = np.array([*(places[name] for name in plain), -1], dtype=np.int32)[column.values]
    return Column(column.name, "category", codes, names)


def _pooled(
    label: str, place: Column, keep: NDArray[np.bool_], least: int
) -> tuple[Column, NDArray[np.bool_], list[LogEntry]]:
    """Environments large enough; those that are not, as one if together they are, or left out."""
    counts = np.bincount(place.values[keep], minlength=len(place.categories))
    present = np.flatnonzero(counts)
    small = [k for k in present if counts[k] < least]
    large = [k for k in present if counts[k] >= least]
    names = [place.categories[k] for k in large]
    table = np.full(len(place.categories) + 1, -1, dtype=np.int32)
    table[large] = np.arange(len(large), dtype=np.int32)
    preprocessing_log: list[LogEntry] = []
    together = int(counts[small].sum())
    if small:
        listed = ", ".join(place.categories[k] for k in small[:5]) + (", …" if len(small) > 5 else "")
        what = f"{len(small)} of {len(present)} environments have fewer than {least} rows ({listed})"
        if together >= least and len(small) > 1:
            table[small] = len(large)
            names.append(f"{len(small)} small ones")
            preprocessing_log.append(LogEntry(place.name, f"{what}: pooled, {together:,} rows together"))
        else:
            preprocessing_log.append(LogEntry(place.name, f"{what}: left out, {together:,} rows"))
    if len(names) < 2:
        large_ones = ", ".join(place.categories[k] for k in large) or "none"
        raise EnvariantError(
            f"{label}: column '{place.name}' has {len(large)} environment(s) of at least {least} rows "
            f"({large_ones}) and {len(small)} smaller; it takes two, to hold one out. Allow fewer rows "
            f"(least, --least), or name another column"
        )
    codes = table[place.values]
    kept = keep & (codes >= 0)
    preprocessing_log.append(LogEntry(place.name, f"environment; {len(names)} of them"))
    return Column(place.name, "category", codes, tuple(names)), kept, preprocessing_log


def _plain(name: str) -> str:
    """On one line, and no name that tables use for something else."""
    text = " ".join("".join(sign if sign.isprintable() else " " for sign in name).split())
    # Where one row has no number, pandas makes all others 1.0, 2.0, ….
    text = text.removesuffix(".0") if re.fullmatch(r"-?\d+\.0", text) else text
    return f"'{text}'" if text in ("", "mean", *RESERVED) else text


def _task_of(target: Column) -> TaskName:
    if target.kind == "boolean":
        return "binary"
    if target.kind == "category":
        return "binary" if len(np.unique(target.values)) == 2 else "multiclass"
    values = np.unique(target.values)
    if len(values) == 2:
        return "binary"
    whole = bool((values == np.round(values)).all())
    return (
        "multiclass" if target.kind == "number" and whole and len(values) <= _MOST_CLASSES else "regression"
    )


def _target(label: str, target: Column, task: TaskName) -> Column:
    if len(np.unique(target.values)) < 2:
        value = target.rows(np.array([0])).texts()[0]
        raise EnvariantError(
            f"{label}: target '{target.name}' is '{value}' in every row; there is nothing to predict"
        )
    if task == "regression":
        if target.kind == "category":
            raise EnvariantError(
                f"{label}: target '{target.name}' holds text ('{target.categories[0]}', …); a regression "
                f"needs numbers"
            )
        return Column(target.name, "number", target.values.astype(np.float32))
    if target.kind == "boolean":
        return target
    named = _as_category(target)
    seen = np.unique(named.values)
    if task == "binary" and len(seen) != 2:
        raise EnvariantError(
            f"{label}: target '{target.name}' has {len(seen)} values; a binary task has two (use multiclass)"
        )
    if len(seen) > len(target) / 2:
        raise EnvariantError(
            f"{label}: target '{target.name}' has {len(seen)} different values in {len(target)} rows: no "
            f"classes; name another column, or use regression if they are numbers"
        )
    table = np.full(len(named.categories), -1, dtype=np.int32)
    table[seen] = np.arange(len(seen), dtype=np.int32)
    return Column(target.name, "category", table[named.values], tuple(named.categories[k] for k in seen))


def _told(target: Column, task: TaskName, *, given: bool) -> str:
    how = "as asked" if given else "inferred"
    if task == "regression":
        return f"target; regression, {how}; standardized for training, by the training environments"
    names = ("false", "true") if target.kind == "boolean" else target.categories
    shares = np.bincount(target.values.astype(int), minlength=len(names)) / len(target)
    listed = ", ".join(f"{n} {s:.1%}" for n, s in list(zip(names, shares, strict=True))[:6])
    return f"target; {task}, {how}; {listed}" + (", …" if len(names) > 6 else "")


def _unbalanced(target: Column, place: Column, task: TaskName) -> list[LogEntry]:
    """Which class is missing where."""
    if task == "regression":
        return []
    names = ("false", "true") if target.kind == "boolean" else target.categories
    cells = place.values.astype(np.int64) * len(names) + target.values.astype(np.int64)
    counts = np.bincount(cells, minlength=len(place.categories) * len(names)).reshape(-1, len(names))
    found: list[LogEntry] = []
    for environment, own in zip(place.categories, counts, strict=True):
        if lacking := [name for name, count in zip(names, own, strict=True) if not count]:
            listed = ", ".join(lacking[:5]) + (", …" if len(lacking) > 5 else "")
            found.append(LogEntry(target.name, f"no row of {environment} is {listed}"))
    return found


def _alike(column: Column) -> list[LogEntry]:
    """Categories that are probably one, written in two ways."""
    small: dict[str, list[str]] = {}
    for category in column.categories:
        small.setdefault(category.casefold(), []).append(category)
    pairs = [" and ".join(f"'{name}'" for name in names) for names in small.values() if len(names) > 1]
    listed = "; ".join(pairs[:3]) + ("; …" if len(pairs) > 3 else "")
    return (
        [LogEntry(column.name, f"{listed} differ in capitals only, and count as different")] if pairs else []
    )


def _useless(column: Column) -> str:
    """Why a column cannot help anybody; empty where it may."""
    missing = column.missing
    if missing.all():
        return "it holds no value"
    values = column.values[~missing]
    if values.min() == values.max() and not missing.any():
        return "it is the same in every row"
    if column.kind == "category":
        different = len(np.unique(values))
        if different > max(_MOST_CLASSES, _IDENTIFIER * len(values)):
            return f"{different:,} different texts in {len(values):,} rows: a name, not a category"
    if column.kind == "number" and len(values) == len(column) > _MOST_CLASSES:
        # In whatever order, and though some rows have been left out.
        dense = float(values.max()) - float(values.min()) < 2 * len(values)
        if dense and (values == np.floor(values)).all() and len(np.unique(values)) == len(values):
            return "it numbers the rows"
    return ""


def _where(column: Column, place: Column, order: NDArray[np.int64]) -> str:
    """Which environments no model can use it in, because outside of them it never varies.

    Args:
        column: the column.
        place: the environment of each row; all have some.
        order: of the rows, environment by environment.
    """
    starts = np.searchsorted(place.values, np.arange(len(place.categories)), sorter=order)
    # A gap is a value here: that it is one is told.
    values = np.where(column.missing, np.float32(-np.inf), column.values)[order]
    low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    if (low != high).sum() > 1:
        return ""
    names = [
        name for k, name in enumerate(place.categories) if np.delete(low, k).min() == np.delete(high, k).max()
    ]
    return f"; not used where {' or '.join(names)} is held out: elsewhere it never varies" if names else ""


def _described(column: Column) -> str:
    gone = column.missing.mean()
    gaps = f"; {gone:.1%} missing: filled in and marked" if gone else ""
    if column.kind == "category":
        return f"category of {len(column.categories)}{gaps}"
    if column.kind == "date":
        return f"date, as days and as the season{gaps}"
    return f"{column.kind}, standardized{gaps}"


@final
@dataclass(frozen=True)
class _Side:
    task: TaskName
    preprocessing_log: tuple[LogEntry, ...]
    weighted: bool = False


_SIDE = TypeAdapter(_Side)
