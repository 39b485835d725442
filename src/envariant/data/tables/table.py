"""Tables with an environment column: typed columns, a target, and a log of all preprocessing.

The input is a CSV or Parquet file, or a data frame of pandas, polars or Arrow. The encoding
is fitted later, on the training environments.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pydantic import PositiveInt, TypeAdapter, ValidationError

from envariant.core import specs
from envariant.core.conversion import several
from envariant.core.errors import EnvariantError, unknown_name
from envariant.core.files import read_tensors, write_tensors
from envariant.data.tables import roles
from envariant.data.tables.columns import Column, has_mixed_types, infer_column, read_chunk
from envariant.data.tables.kinds import ColumnChunk, Kind, TaskName
from envariant.data.tables.reading import labeled, lacking_columns, read_chunks
from envariant.data.tables.roles import LogEntry

__all__ = ["TASKS", "LogEntry", "Table", "TaskName", "load", "read"]

TASKS: tuple[TaskName, ...] = get_args(TaskName)
FILE = "table.safetensors"
"""File name of a stored table in its folder."""
MIN_ROWS = 50
"""Default minimum number of rows of an environment."""


@final
@dataclass(frozen=True, eq=False)
class Table:
    """Table with typed input columns, a target column and an environment column.

    Attributes:
        columns: Input columns of the model.
        target: Target column: categories or Booleans for classification, numbers for regression.
        environment: Environment column: categories without missing values.
        task: Name of the prediction task.
        preprocessing_log: Log entries for each column and for the whole table.
        sample_weight: Column of sampling weights for training; None for equal weights.
    """

    columns: tuple[Column, ...]
    target: Column
    environment: Column
    task: TaskName
    preprocessing_log: tuple[LogEntry, ...]
    sample_weight: Column | None = None

    def __len__(self) -> int:
        return len(self.target)

    @property
    def environments(self) -> tuple[str, ...]:
        """Names of the environments, in order."""
        return self.environment.categories

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers; empty for regression."""
        return () if self.task == "regression" else self.target.class_names

    @property
    def all_columns(self) -> tuple[Column, ...]:
        """All columns: inputs, target, environment, and sample weights if there are any."""
        weights = [self.sample_weight] if self.sample_weight else []
        return (*self.columns, self.target, self.environment, *weights)

    def rows(self, index: NDArray[Any], *entries: LogEntry) -> "Table":
        """Return the table with the rows selected by an index or mask `[rows]`; add `entries` to the log."""
        columns = tuple(column.rows(index) for column in self.columns)
        target, environment = self.target.rows(index), self.environment.rows(index)
        weights = self.sample_weight and self.sample_weight.rows(index)
        return Table(columns, target, environment, self.task, (*self.preprocessing_log, *entries), weights)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the task and all columns, independent of the location of the table."""
        digest = hashlib.blake2b(self.task.encode(), digest_size=16)
        for column in self.all_columns:
            header = json.dumps([column.name, column.kind, column.categories, str(column.values.dtype)])
            digest.update(f"{header}\0{len(column)}\0".encode())
            digest.update(np.ascontiguousarray(column.values).tobytes())
        return digest.hexdigest()

    def targets(self) -> NDArray[Any]:
        """Return the class number of each row, or the target value for regression, `[rows]`."""
        return self.target.values

    def write(self, folder: Path) -> None:
        """Write the table to the file `FILE` in a folder; `load` reads it.

        Raises:
            EnvariantError: If the folder cannot be written.
        """
        headers = tuple((column.name, column.kind, column.categories) for column in self.all_columns)
        header = _Header(self.task, self.preprocessing_log, self.sample_weight is not None, headers)
        arrays = {str(k): np.ascontiguousarray(column.values) for k, column in enumerate(self.all_columns)}
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        write_tensors(folder / FILE, tensors, {"table": _HEADER.dump_json(header).decode()})


@final
@dataclass(frozen=True)
class _Header:
    task: TaskName
    preprocessing_log: tuple[LogEntry, ...]
    weighted: bool
    columns: tuple[tuple[str, Kind, tuple[str, ...]], ...]


_HEADER = TypeAdapter(_Header)


def load(folder: Path) -> Table:
    """Load a table written by `Table.write`.

    Raises:
        EnvariantError: If the folder contains no table, or the file is damaged.
    """
    texts, tensors = read_tensors(folder / FILE, "write the table again")
    try:
        header = _HEADER.validate_json(texts["table"])
        columns = [
            Column(name, kind, tensors[str(k)].numpy(), categories)
            for k, (name, kind, categories) in enumerate(header.columns)
        ]
    except ValidationError as error:
        raise EnvariantError(f"{folder}: holds a damaged table ({error.errors()[0]['msg']})") from None
    except KeyError:
        raise EnvariantError(f"{folder}: holds no table") from None
    weights = columns.pop() if header.weighted else None
    *inputs, target, environment = columns
    return Table(tuple(inputs), target, environment, header.task, header.preprocessing_log, weights)


def read(
    data: Any,
    target: str,
    environment: str,
    *,
    task: str | None = None,
    exclude: Sequence[str] = (),
    sample_weight: str | None = None,
    min_rows: int = MIN_ROWS,
    encoding: str = "utf-8",
) -> Table:
    """Read a table from a file or a data frame.

    Args:
        data: Path (.csv, .tsv, .txt or .parquet, compressed or not), or a pandas, polars or Arrow data frame.
        target: Name of the column to predict.
        environment: Name of the environment column.
        task: "binary", "multiclass" or "regression". Default: inferred from the target.
        exclude: Names of columns to exclude from the inputs.
        sample_weight: Name of the column of sampling weights for training; evaluation ignores them.
            Default: equal weights.
        min_rows: Minimum number of rows of an environment; smaller environments are pooled or omitted.
        encoding: Encoding of a text file.

    Raises:
        EnvariantError: If the file cannot be read, a column is missing, or values are invalid.
    """
    if task is not None and task not in TASKS:
        raise unknown_name("task", str(task), TASKS)
    specs.check_value(min_rows, PositiveInt, "table: min_rows")
    exclude = several(exclude, "exclude")
    # Environments are read as text: 03 is not 3, and long numbers keep all their digits.
    label, frames, header = read_chunks(data, encoding, [environment])
    role_names = {"target": target, "environment": environment}
    role_names |= {} if sample_weight is None else {"sample_weight": sample_weight}
    _check_roles(label, role_names, header, exclude)
    names = [name for name in header if name not in exclude]
    try:
        chunks, rows = _read_columns(frames, names, environment)
        if not rows:
            raise EnvariantError("holds no rows under its header")
        # pandas inferred numbers for some columns from the first rows, but later rows contain text.
        if mixed := [name for name, parts in chunks.items() if has_mixed_types(parts)]:
            chunks |= _read_columns(read_chunks(data, encoding, mixed)[1], mixed, environment)[0]
        columns = {name: infer_column(name, chunks.pop(name)) for name in names}
    except EnvariantError as error:
        raise labeled(label, error) from None
    return _assembled(label, columns, role_names, task, tuple(dict.fromkeys(exclude)), min_rows)


def _check_roles(
    label: str, role_names: Mapping[str, str], header: Sequence[str], exclude: Sequence[str]
) -> None:
    for role, name in role_names.items():
        if name not in header:
            raise lacking_columns(label, [name], header, f"{role} column")
        if name in exclude:
            raise EnvariantError(f"{label}: the {role} column '{name}' cannot be excluded")
    if unknown := [name for name in exclude if name not in header]:
        raise lacking_columns(label, unknown, header)
    if len(set(role_names.values())) < len(role_names):
        listed = ", ".join(f"{role} '{name}'" for role, name in role_names.items())
        raise EnvariantError(f"{label}: a column can have one role only ({listed}); name another column")


def _read_columns(
    frames: Iterator[pd.DataFrame], names: Sequence[str], environment: str
) -> tuple[dict[str, list[ColumnChunk]], int]:
    """Return the chunks of each named column, and the number of rows."""
    chunks: dict[str, list[ColumnChunk]] = {name: [] for name in names}
    rows = 0
    for frame in frames:
        for name, parts in chunks.items():
            parts.append(read_chunk(name, frame[name], first_row=rows, categorical=name == environment))
        rows += len(frame)
    return chunks, rows


def _assembled(
    label: str,
    columns: dict[str, Column],
    role_names: Mapping[str, str],
    task: TaskName | None,
    excluded: Sequence[str],
    min_rows: int,
) -> Table:
    log = [LogEntry(name, "left out, as requested") for name in excluded]
    target = columns.pop(role_names["target"])
    environment = roles.named_environments(columns.pop(role_names["environment"]))
    weights = columns.pop(role_names["sample_weight"]) if "sample_weight" in role_names else None
    complete = roles.rows_with_values(label, target, environment, log)
    log += roles.similar_categories(environment)
    environment, used = roles.pool_small(label, environment, complete, min_rows, log)
    if not used.all():
        columns = {name: column.rows(used) for name, column in columns.items()}
        target, environment = target.rows(used), environment.rows(used)
        weights = weights and weights.rows(used)
    if weights is not None:
        log.append(roles.weights_entry(label, weights))
    task_name = task or target.type.infer_task(target.values)
    target = roles.as_target(label, target, task_name)
    log.append(roles.target_entry(target, task_name, inferred=task is None))
    log += roles.missing_classes(target, environment, task_name)
    inputs: list[Column] = []
    order = np.argsort(environment.values, kind="stable")
    for column in columns.values():
        if reason := _unusable(column):
            log.append(LogEntry(column.name, f"left out: {reason}"))
            continue
        share = column.missing.mean()
        gaps = f"; {share:.1%} missing: filled in and marked" if share else ""
        constant = _constant_outside(column, environment, order)
        log.append(LogEntry(column.name, column.type.describe(column.categories) + gaps + constant))
        log += roles.similar_categories(column)
        inputs.append(column)
    if not inputs:
        left_out = ", ".join([*excluded, *columns]) or "the table has no other column"
        problem = f"no column is left to predict '{target.name}' from"
        raise EnvariantError(f"{label}: {problem} (left out: {left_out})")
    return Table(tuple(inputs), target, environment, task_name, tuple(log), weights)


def _unusable(column: Column) -> str:
    """Return the reason that a column cannot be useful to any model, or "" if there is none."""
    if column.missing.all():
        return "it holds no value"
    if not column.missing.any() and column.values.min() == column.values.max():
        return "it is the same in every row"
    return column.type.unusable(column.values)


def _constant_outside(column: Column, environment: Column, order: NDArray[np.int64]) -> str:
    """Return a log text if a column is constant outside of one environment; `order` sorts rows by it."""
    starts = np.searchsorted(environment.values, np.arange(len(environment.categories)), sorter=order)
    # A missing value counts as a value, because it has an indicator input.
    values = np.where(column.missing, np.float32(-np.inf), column.values)[order]
    low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    if (low != high).sum() > 1:
        return ""
    only = [k for k in range(len(starts)) if np.delete(low, k).min() == np.delete(high, k).max()]
    names = " or ".join(environment.categories[k] for k in only)
    return f"; not used if the test environment is {names}: it is constant in all others" if only else ""
