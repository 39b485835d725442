"""Tables with a column that says where each row came from, as environments.

A CSV or Parquet file, a data frame of pandas, polars or Arrow. Every column is typed, and there is an
account of what was done to it; what is learned from rows to encode them is learned where training happens.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast, final

import narwhals
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from envariant import specs
from envariant.data import columns as stored
from envariant.data.columns import Column, Kind, Piece, of_kind, piece, typed
from envariant.data.encoding import Encoder, fit
from envariant.environments import Environment, EnvironmentSet, EnvironmentSource, Suggestion
from envariant.errors import EnvariantError, unknown_name
from envariant.tasks import Binary, Multiclass, Regression, Task

TaskName = Literal["binary", "multiclass", "regression"]
TASKS: tuple[TaskName, ...] = ("binary", "multiclass", "regression")

NAME = "table"
"""Of this kind of source, where data are named by a text."""

# Rows read at a time: a few dozen megabytes of text.
_AT_A_TIME = 200_000
# Whole numbers with more different values than this are a quantity and not a class.
_MOST_CLASSES = 20
# A name in nearly every row is no category.
_IDENTIFIER = 0.5
_SMALLEST = 50
_BATCH = 128


@final
@dataclass(frozen=True)
class Line:
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
    """

    columns: tuple[Column, ...]
    target: Column
    environment: Column
    task: TaskName
    account: tuple[Line, ...]

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

    def targets(self) -> NDArray[Any]:
        """`[rows]`: the number of the class, or the number itself."""
        return self.target.values

    def write(self, folder: Path) -> None:
        """Stores the table in a folder, for `load`.

        Raises:
            EnvariantError: it cannot be written there.
        """
        stored.write((*self.columns, self.target, self.environment), folder)
        side = {
            "task": self.task,
            "account": [{"column": line.column, "what": line.what} for line in self.account],
        }
        (folder / "table.json").write_text(json.dumps(side, ensure_ascii=False, indent=1), encoding="utf-8")


def load(folder: Path) -> Table:
    """A table that `Table.write` stored.

    Raises:
        EnvariantError: it is not there, or damaged.
    """
    try:
        side = _SIDE.validate_json((folder / "table.json").read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError):
        raise EnvariantError(f"{folder}: holds no table") from None
    *columns, target, environment = stored.read(folder)
    return Table(tuple(columns), target, environment, side.task, side.account)


def read(
    data: Any,
    target: str,
    environment: str,
    *,
    task: str | None = None,
    exclude: Sequence[str] = (),
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
        least: rows that an environment needs; smaller ones are pooled.
        encoding: of a text file.

    Raises:
        EnvariantError: the file cannot be read, a column is missing, or what is in one makes no sense.
    """
    if task is not None and task not in TASKS:
        raise unknown_name("task", task, TASKS)
    label, pieces, header = _pieces(data, encoding)
    for what, name in (("target", target), ("environment", environment), *(("column", n) for n in exclude)):
        if name not in header:
            raise unknown_name(f"{what} column" if what != "column" else what, name, header, where=label)
    if target == environment:
        raise EnvariantError(f"{label}: target and environment are both '{target}'; they must be two columns")
    grown: dict[str, list[Piece]] = {name: [] for name in header if name not in exclude}
    for part in pieces:
        for name, own in grown.items():
            own.append(piece(name, part[name]))
    if not next(iter(grown.values())) or not sum(len(p.values) for p in next(iter(grown.values()))):
        raise EnvariantError(f"{label}: holds no rows under its header")
    columns: dict[str, Column] = {}
    for name in list(grown):
        columns[name] = typed(name, grown.pop(name))
    return _table(label, columns, target, environment, task, exclude, least)


def read_columns(
    data: Any, kinds: Mapping[str, Kind], *, encoding: str = "utf-8"
) -> Iterator[tuple["pd.Index[Any]", dict[str, Column]]]:
    """Columns of kinds that are known already, by name, a stretch of rows at a time; others are passed over.

    Args:
        data: as for `read`.
        kinds: of the columns that are wanted.
        encoding: of a text file.

    Yields:
        What names these rows (a pandas frame's own index, else their numbers from 0), and their columns; at
        least one stretch, if of no rows.

    Raises:
        EnvariantError: the file cannot be read, a column is missing, or a value is not of its kind.
    """
    words = [name for name, kind in kinds.items() if kind == "category"]
    label, parts, header = _pieces(data, encoding, words)
    if lacking := [name for name in kinds if name not in header]:
        raise _lacking(label, lacking, header)
    named, before, some = isinstance(data, pd.DataFrame), 0, False
    for part in parts:
        index = part.index if named else pd.RangeIndex(before, before + len(part))
        try:
            columns = {
                name: of_kind(name, piece(name, part[name]), kind, before=before)
                for name, kind in kinds.items()
            }
        except EnvariantError as error:
            raise EnvariantError(f"{label}: {error}") from None
        yield index, columns
        before, some = before + len(part), True
    if not some:
        empty = pd.Series([], dtype=object)
        yield pd.RangeIndex(0), {n: of_kind(n, piece(n, empty), kind) for n, kind in kinds.items()}


def _lacking(label: str, lacking: Sequence[str], header: Sequence[str]) -> EnvariantError:
    small = {name.casefold(): name for name in header}
    told: list[str] = []
    for name in lacking[:5]:
        near = get_close_matches(name.casefold(), small, n=1)
        told.append(f"'{name}'" + (f" (did you mean '{small[near[0]]}'?)" if near else ""))
    more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
    return EnvariantError(
        f"{label}: lacks column{'s' if len(lacking) > 1 else ''} {', '.join(told)}{more}; it holds "
        f"{', '.join(header[:20]) or 'none'}{', …' if len(header) > 20 else ''}"
    )


def _table(
    label: str,
    columns: dict[str, Column],
    target: str,
    environment: str,
    task: TaskName | None,
    excluded: Sequence[str],
    least: int,
) -> Table:
    rows = len(columns[target])
    account = [Line(name, "left out, as asked") for name in excluded]
    place = _as_category(columns.pop(environment))
    wanted = columns.pop(target)
    for what, column in ((f"target '{target}'", wanted), (f"environment '{environment}'", place)):
        if column.missing.all():
            raise EnvariantError(f"{label}: {what} holds no value at all")
    keep = ~(place.missing | wanted.missing)
    for what, column in (("target", wanted), ("environment", place)):
        if gone := int(column.missing.sum()):
            account.append(
                Line(column.name, f"{what}; {gone:,} of {rows:,} rows without a value are left out")
            )
    place, kept, pooled = _pooled(label, place, keep, least)
    account += pooled
    if not kept.all():
        columns = {name: column.rows(kept) for name, column in columns.items()}
        wanted, place = wanted.rows(kept), place.rows(kept)
    inferred = task or _task_of(wanted)
    wanted = _target(label, wanted, inferred)
    account.append(Line(target, _told(wanted, inferred, given=task is not None)))
    account += _unbalanced(wanted, place, inferred)
    found: list[Column] = []
    for column in columns.values():
        why = _useless(column)
        account.append(Line(column.name, f"left out: {why}" if why else _described(column)))
        if not why:
            found.append(column)
    if not found:
        raise EnvariantError(f"{label}: no column is left to predict '{target}' from")
    return Table(tuple(found), wanted, place, inferred, tuple(account))


def _as_category(column: Column) -> Column:
    if column.kind == "category":
        return column
    texts = column.texts()
    names = sorted({text for text in texts if text is not None}, key=_in_order)
    places = {name: code for code, name in enumerate(names)}
    codes = np.array([-1 if text is None else places[text] for text in texts], dtype=np.int32)
    return Column(column.name, "category", codes, tuple(names))


def _in_order(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return np.inf, text


def _pooled(
    label: str, place: Column, keep: NDArray[np.bool_], least: int
) -> tuple[Column, NDArray[np.bool_], list[Line]]:
    """Environments large enough; those that are not, as one if together they are, or left out."""
    counts = np.bincount(place.values[keep], minlength=len(place.categories))
    present = np.flatnonzero(counts)
    small = [k for k in present if counts[k] < least]
    large = [k for k in present if counts[k] >= least]
    names = [_plain(place.categories[k]) for k in large]
    table = np.full(len(place.categories) + 1, -1, dtype=np.int32)
    table[large] = np.arange(len(large), dtype=np.int32)
    account: list[Line] = []
    together = int(counts[small].sum())
    if small:
        listed = ", ".join(place.categories[k] for k in small[:5]) + (", …" if len(small) > 5 else "")
        what = f"{len(small)} of {len(present)} environments have fewer than {least} rows ({listed})"
        if together >= least and len(small) > 1:
            table[small] = len(large)
            names.append(f"{len(small)} small ones")
            account.append(Line(place.name, f"{what}: pooled, {together:,} rows together"))
        else:
            account.append(Line(place.name, f"{what}: left out, {together:,} rows"))
    if len(names) < 2:
        raise EnvariantError(
            f"{label}: column '{place.name}' has {len(names)} environment(s) of at least {least} rows "
            f"({', '.join(names) or 'none'}); it takes two, to hold one out. Name a column with more, or "
            f"allow fewer rows"
        )
    codes = table[place.values]
    kept = keep & (codes >= 0)
    account.append(Line(place.name, f"environment; {len(names)} of them"))
    return Column(place.name, "category", codes, tuple(names)), kept, account


def _plain(name: str) -> str:
    """On one line, and no name that tables use for something else."""
    text = "".join(sign if sign.isprintable() else " " for sign in name).strip()
    return f"'{text}'" if text in ("", "worst", "*") else text


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
            f"{label}: target '{target.name}' is {value} in every row; there is nothing to predict"
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
        return f"target; regression, {how}; standardised for training, by the training environments"
    names = ("false", "true") if target.kind == "boolean" else target.categories
    shares = np.bincount(target.values.astype(int), minlength=len(names)) / len(target)
    listed = ", ".join(f"{n} {s:.1%}" for n, s in list(zip(names, shares, strict=True))[:6])
    return f"target; {task}, {how}; {listed}" + (", …" if len(names) > 6 else "")


def _unbalanced(target: Column, place: Column, task: TaskName) -> list[Line]:
    """Which class is missing where."""
    if task == "regression":
        return []
    names = ("false", "true") if target.kind == "boolean" else target.categories
    found: list[Line] = []
    for code, environment in enumerate(place.categories):
        present = set(np.unique(target.values[place.values == code]).astype(int).tolist())
        lacking = [name for k, name in enumerate(names) if k not in present]
        if lacking:
            listed = ", ".join(lacking[:5]) + (", …" if len(lacking) > 5 else "")
            found.append(Line(target.name, f"no row of {environment} is {listed}"))
    return found


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
        steps = np.diff(values)
        if (steps == 1).all():
            return "it counts the rows"
    return ""


def _described(column: Column) -> str:
    gone = column.missing.mean()
    gaps = f"; {gone:.1%} missing: filled in and marked" if gone else ""
    if column.kind == "category":
        return f"category of {len(column.categories)}{gaps}"
    if column.kind == "date":
        return f"date, as days and as the season{gaps}"
    return f"{column.kind}, standardised{gaps}"


def _pieces(
    data: Any, encoding: str, words: Sequence[str] = ()
) -> tuple[str, Iterator[pd.DataFrame], list[str]]:
    """What to call the table, its rows a stretch at a time, and the names of its columns.

    Columns named in `words` are read from a text file as they are written, numbers or not.
    """
    if isinstance(data, str | Path):
        path = Path(data)
        if path.is_dir():
            raise EnvariantError(f"{path}: is a folder; name a file (.csv or .parquet)")
        if not path.exists():
            raise EnvariantError(f"{path}: there is no such file")
        names = [suffix.lower() for suffix in path.suffixes]
        if ".parquet" in names:
            return (str(path), *_parquet(path))
        return (str(path), *_text(path, encoding, words))
    try:
        frame = narwhals.from_native(data, eager_only=True)
    except TypeError:
        raise EnvariantError(
            f"data must be a path or a data frame of pandas, polars or Arrow; got {type(data).__name__}"
        ) from None
    native: Any = narwhals.to_native(frame)
    if isinstance(native, pd.DataFrame):
        whole = native
    else:
        whole = pd.DataFrame({name: frame[name].to_numpy() for name in frame.columns})
    header = [str(name) for name in whole.columns]
    _single("data frame", header)
    return "data frame", iter([whole.set_axis(header, axis=1)]), header


def _text(path: Path, encoding: str, words: Sequence[str]) -> tuple[Iterator[pd.DataFrame], list[str]]:
    try:
        options: dict[str, Any] = {"encoding": encoding, "skipinitialspace": True}
        # By itself and as text: as a header, the second of two equal names would be given another.
        firsts = {
            sign: pd.read_csv(path, sep=sign, header=None, nrows=1, dtype=str, **options)
            for sign in (",", ";", "\t", "|")
        }
        widths = {sign: found.shape[1] for sign, found in firsts.items()}
        separator = max(widths, key=widths.__getitem__)
        header = [
            f"column {k + 1}" if pd.isna(name) else str(name).strip()
            for k, name in enumerate(firsts[separator].iloc[0])
        ]
        _single(str(path), header)
    except pd.errors.EmptyDataError:
        raise EnvariantError(f"{path}: is empty") from None
    except (UnicodeDecodeError, LookupError, pd.errors.ParserError, OSError, ValueError) as error:
        raise _unreadable(path, encoding, error) from None
    # As text, so that 03 stays 03.
    options["dtype"] = {name: str for name in words if name in header}
    options |= {"sep": separator, "names": header}
    return _stretches(path, encoding, options), header


def _stretches(path: Path, encoding: str, options: Mapping[str, Any]) -> Iterator[pd.DataFrame]:
    try:
        # Opened when the first rows are asked for, so that no file stays open where none are.
        with pd.read_csv(
            path, header=None, skiprows=1, chunksize=_AT_A_TIME, index_col=False, low_memory=False, **options
        ) as parts:
            yield from cast("Iterator[pd.DataFrame]", parts)
    except (UnicodeDecodeError, pd.errors.ParserError, OSError, ValueError) as error:
        raise _unreadable(path, encoding, error) from None


def _unreadable(path: Path, encoding: str, error: Exception) -> EnvariantError:
    if isinstance(error, UnicodeDecodeError):
        return EnvariantError(
            f"{path}: is not {encoding} text (byte {error.start}); name its encoding, such as latin-1, or is "
            f"it no text at all?"
        )
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return EnvariantError(f"{path}: cannot be read as a table ({reason})")


def _parquet(path: Path) -> tuple[Iterator[pd.DataFrame], list[str]]:
    try:
        parquet = import_module("pyarrow.parquet")
    except ImportError:
        raise EnvariantError(
            f"{path}: Parquet needs pyarrow; pip install pyarrow, or save it as CSV"
        ) from None
    try:
        file = parquet.ParquetFile(path)
        header = [str(name) for name in file.schema_arrow.names]
    except Exception as error:
        raise EnvariantError(f"{path}: is no Parquet file ({str(error).splitlines()[0]})") from None
    _single(str(path), header)
    return (batch.to_pandas() for batch in file.iter_batches(_AT_A_TIME)), header


def _single(label: str, header: Sequence[str]) -> None:
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise EnvariantError(f"{label}: column name '{repeated[0]}' is used twice; rename one")


@final
@dataclass(frozen=True, eq=False)
class TableSource(EnvironmentSource):
    """A table as environments; its columns are encoded by what the training environments hold.

    Attributes:
        table: the rows.
        label: what the source is called.
        test: names of the environments held out.
    """

    table: Table
    label: str = "table"
    test: tuple[str, ...] = ()
    _drawn: list[tuple[Encoder, EnvironmentSet]] = field(default_factory=list[Any], repr=False)

    @property
    def name(self) -> str:
        return self.label

    def holding_out(self, test: Sequence[str] | None) -> "TableSource":
        names = self.test if test is None else tuple(test)
        return self if names == self.test else _held_out(self.table, self.label, names)

    def suggestion(self, algorithm: str) -> Suggestion:
        return Suggestion(
            _SUGGESTED.get(algorithm, {}),
            model="mlp(hidden=(32, 32))",
            steps=STEPS,
            learning_rate=3e-3,
            batch_size=_BATCH,
            source="the library's defaults for tables",
        )

    def draw(self, seed: int) -> EnvironmentSet:
        del seed
        return self._encoded()[1]

    @property
    def columns(self) -> Mapping[str, slice]:
        return self.encoder.places

    @property
    def encoder(self) -> Encoder:
        """How columns become inputs, fitted on the environments that are not held out."""
        return self._encoded()[0]

    @property
    def task(self) -> Task:
        """With the mean and spread of the training environments' targets, where they are real numbers."""
        return self.draw(0).task

    def _encoded(self) -> tuple[Encoder, EnvironmentSet]:
        if not self._drawn:
            self._drawn.append(_encoded(self.table, self.label, self.test))
        return self._drawn[0]


# Every run of a study asks for its environments; two sets at a time are kept.
@lru_cache(maxsize=2)
def _held_out(table: Table, label: str, test: tuple[str, ...]) -> TableSource:
    return TableSource(table, label, test)


def _encoded(table: Table, label: str, test: tuple[str, ...]) -> tuple[Encoder, EnvironmentSet]:
    for name in test:
        if name not in table.environments:
            raise unknown_name("environment", name, table.environments, where=label)
    codes = table.environment.values
    order = np.argsort(codes, kind="stable")
    trained = np.isin(codes, [k for k, name in enumerate(table.environments) if name not in test])
    if not trained.any():
        raise EnvariantError(f"{label}: all environments are held out; none is left to train on")
    encoder = fit([column.rows(trained) for column in table.columns] if test else table.columns)
    if not encoder.columns:
        raise EnvariantError(f"{label}: no column varies in the training environments")
    inputs = encoder.encode({column.name: column for column in table.columns})
    targets = table.targets()
    task: Task = Binary() if table.task == "binary" else Multiclass(max(2, len(table.classes)))
    if table.task == "regression":
        known = targets[trained].astype(np.float64)
        spread = float(known.std())
        task = Regression(scale=spread or 1.0, centre=float(known.mean()))
        targets = ((targets - task.centre) / task.scale).astype(np.float32)
    ends = np.cumsum(np.bincount(codes, minlength=len(table.environments)))
    environments = [
        Environment(name, torch.from_numpy(inputs[rows]), torch.from_numpy(targets[rows]))
        for name, rows in zip(table.environments, np.split(order, ends[:-1]), strict=True)
    ]
    return encoder, EnvironmentSet(label, tuple(environments), task, test=test, classes=table.classes)


def source(path: str, target: str | None = None, environment: str | None = None, **more: Any) -> TableSource:
    """The source that `table("patients.csv", target=died, environment=hospital)` names.

    Args:
        path: of a file, or of a folder that `Table.write` made.
        target: the name of the column to predict; a stored table knows its own.
        environment: the name of the column that says where a row came from; likewise.
        more: as for `read`.

    Raises:
        EnvariantError: the table cannot be read.
    """
    place = Path(path)
    if target is None and environment is None and place.is_dir():
        stamp = (place / "table.json").stat().st_mtime_ns if (place / "table.json").exists() else 0
        return _held_out(_loaded(place, stamp), str(specs.Spec(NAME, (path,))), ())
    if target is None or environment is None:
        raise EnvariantError(f"table: '{path}' needs target=… and environment=…, the names of two columns")
    keywords: Mapping[str, Any] = {"target": target, "environment": environment, **more}
    return TableSource(read(path, target, environment, **more), str(specs.Spec(NAME, (path,), keywords)))


@lru_cache(maxsize=2)
def _loaded(folder: Path, stamp: int) -> Table:
    del stamp
    return load(folder)


@final
@dataclass(frozen=True)
class _Side:
    task: TaskName
    account: tuple[Line, ...]


_SIDE = TypeAdapter(_Side)

STEPS = 400
"""Of each run."""
_LATE = STEPS // 4
_SUGGESTED: dict[str, dict[str, Any]] = {
    # A penalty from the first step on keeps a network from learning anything.
    "irm": {"coefficient": f"step(1, 100, at={_LATE})"},
    "vrex": {"coefficient": f"step(1, 100, at={_LATE})"},
}
