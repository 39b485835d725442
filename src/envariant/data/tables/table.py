"""Tables with an environment column: typed columns, a target, and a log of all preprocessing.

The input is a file, such as CSV or Parquet, or a data frame of pandas, polars or Arrow. The encoding is
fitted later, on the training environments.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Any, final, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveInt, TypeAdapter, ValidationError

from envariant.core import specs
from envariant.core.conversion import several
from envariant.core.display import Displayed, Summary, counted, named
from envariant.core.errors import EnvariantError, EnvariantWarning, unknown_name
from envariant.core.files import read_tensors, write_tensors
from envariant.data.tables.assembly import assembled, remarks
from envariant.data.tables.columns import Column
from envariant.data.tables.kinds import Kind, Notation, TaskName
from envariant.data.tables.loading import load as load_columns
from envariant.data.tables.reading import labeled, lacking_columns, open_table
from envariant.data.tables.roles import LogEntry
from envariant.data.tables.target_type import TargetType

__all__ = ["TASKS", "LogEntry", "Table", "TaskName", "load", "read"]

TASKS: tuple[TaskName, ...] = get_args(TaskName)
FILE = "table.safetensors"
"""File name of a stored table in its folder."""
MIN_ROWS = 50
"""Default minimum number of rows of an environment."""


@final
@dataclass(frozen=True, eq=False, repr=False)
class Table(Displayed):
    """Table with typed input columns, a target column and an environment column.

    Attributes:
        columns: Input columns of the model.
        target: Target column: categories or Booleans for classification, numbers for regression.
        environment: Environment column: categories without missing values.
        task: Name of the prediction task.
        preprocessing_log: Log entries for each column and for the whole table.
        sample_weight: Column of case weights; None for equal weights.
        target_type: Original type of the target and original values of its classes. Predictions are converted
            back to them.
        missing_values: Strings that the user declared as missing values; None if the default words, such as
            NA, are used.
        texts: Columns of free text, which only predictors that select columns by name can use.
        ordered: Whether environments are ordered in time. Models are then trained only on environments before
            the test environment.
        group: Column with the group of each row, such as the patient. Groups are never split between training
            and validation rows. Unless `ordered`, they are not split between training and test rows either.
            None: rows are independent.
        subgroups: Columns whose values define subgroups to score separately; they do not affect training.
        embedded: Text columns that were replaced by features, each with the name of its encoder.
    """

    columns: tuple[Column, ...]
    target: Column
    environment: Column
    task: TaskName
    preprocessing_log: tuple[LogEntry, ...]
    sample_weight: Column | None = None
    target_type: TargetType = field(default_factory=TargetType)
    missing_values: tuple[str, ...] | None = None
    texts: tuple[Column, ...] = ()
    ordered: bool = False
    group: Column | None = None
    subgroups: tuple[Column, ...] = ()
    embedded: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.target)

    def summary(self) -> Summary:
        """Summarize the table for consoles and notebooks."""
        counts = np.bincount(self.environment.values, minlength=len(self.environments)).tolist()
        sizes = dict(zip(self.environments, counts, strict=True))
        classes = f", {named(self.classes)}" if self.classes else ""
        return Summary(
            "Table",
            {
                "rows": f"{len(self):,}",
                "columns": named((column.name for column in self.columns), 10),
                "free text": named(column.name for column in self.texts),
                "target": f"{self.target.name} ({self.task}{classes})",
                "environments": f"{self.environment.name}: {counted(sizes)}",
                "log": f"{len(self.preprocessing_log)} entries, see .preprocessing_log",
            },
        )

    def _display(self) -> Summary:
        return self.summary()

    @property
    def environments(self) -> tuple[str, ...]:
        """Names of the environments, in order."""
        return self.environment.categories

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of class indices; empty for regression."""
        return () if self.task == "regression" else self.target.categories

    @property
    def all_columns(self) -> tuple[Column, ...]:
        """All columns: inputs, free text, target, environment, and (if any) sample weights and groups."""
        extra = [column for column in (self.sample_weight, self.group) if column]
        return (*self.columns, *self.texts, self.target, self.environment, *extra)

    def rows(self, index: NDArray[Any], *entries: LogEntry) -> "Table":
        """Return a table with only the rows that an index or mask selects; add `entries` to its log."""
        columns = tuple(column.rows(index) for column in self.columns)
        target, environment = self.target.rows(index), self.environment.rows(index)
        return replace(
            self,
            columns=columns,
            target=target,
            environment=environment,
            preprocessing_log=(*self.preprocessing_log, *entries),
            sample_weight=self.sample_weight and self.sample_weight.rows(index),
            texts=tuple(column.rows(index) for column in self.texts),
            group=self.group and self.group.rows(index),
            subgroups=tuple(column.rows(index) for column in self.subgroups),
        )

    def training_rows(self, test: Sequence[str]) -> NDArray[np.bool_]:
        """Return the mask of the training rows, `[rows]`.

        If environments are ordered, these are the rows of all environments before the first test environment.
        Groups may then have rows in both, because the future of known groups is predicted from their past.

        Otherwise, these are all rows outside the test environments, except rows of groups that also occur in
        a test environment.

        Args:
            test: Names of the test environments. If there are none, all rows are training rows.
        """
        codes = self.environment.values
        tested = [self.environments.index(name) for name in test]
        if self.ordered and tested:
            return codes < min(tested)
        training = ~np.isin(codes, tested)
        if self.group is not None and tested:
            training &= ~np.isin(self.group.values, self.group.values[~training])
        return training

    def environments_until(self, test: Sequence[str]) -> tuple[str, ...]:
        """Return all environments that are needed for the test environments.

        If environments are ordered, these are all up to and including the last test environment. Otherwise,
        they are all environments.
        """
        last = max((self.environments.index(name) for name in test), default=-1) if self.ordered else -1
        return self.environments[: last + 1] or self.environments

    def in_domain_environments(self, test: Sequence[str]) -> tuple[str, ...]:
        """Return the training environments whose validation rows give in-domain scores.

        If environments are ordered, this is only the latest training environment. Its in-domain score then
        comes from a model that was not trained on any environment after it.
        """
        codes = np.unique(self.environment.values[self.training_rows(test)])
        return tuple(self.environments[code] for code in (codes[-1:] if self.ordered else codes))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the task and of all columns, independent of where the table is stored."""
        digest = hashlib.blake2b(self.task.encode(), digest_size=16)
        digest.update(b"ordered" if self.ordered else b"")
        digest.update(b"grouped" if self.group else b"")
        for column in self.all_columns:
            header = json.dumps([column.name, column.kind, column.categories, str(column.values.dtype)])
            digest.update(f"{header}\0{len(column)}\0".encode())
            digest.update(np.ascontiguousarray(column.values).tobytes())
        return digest.hexdigest()

    def targets(self) -> NDArray[Any]:
        """Return the class index of each row or, for regression, its target value, `[rows]`."""
        return self.target.values

    def write(self, folder: Path) -> None:
        """Write the table to the file `folder / FILE`, which `load` can read.

        Raises:
            EnvariantError: If the folder cannot be written.
        """
        headers = tuple((c.name, c.kind, c.categories, c.notation) for c in self.all_columns)
        header = _Header(
            self.task,
            self.preprocessing_log,
            self.sample_weight is not None,
            headers,
            self.target_type,
            self.missing_values,
            len(self.texts),
            self.ordered,
            self.group is not None,
            self.embedded,
        )
        tensors = {
            str(k): torch.from_numpy(column.values.copy()) for k, column in enumerate(self.all_columns)
        }
        write_tensors(folder / FILE, tensors, {"table": _HEADER.dump_json(header).decode()})


@final
@dataclass(frozen=True)
class _Header:
    task: TaskName
    preprocessing_log: tuple[LogEntry, ...]
    weighted: bool
    columns: tuple[tuple[str, Kind, tuple[str, ...], Notation | None], ...]
    target_type: TargetType
    missing_values: tuple[str, ...] | None
    texts: int = 0
    ordered: bool = False
    grouped: bool = False
    embedded: tuple[tuple[str, str], ...] = ()


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
            Column(name, kind, tensors[str(k)].numpy(), categories, notation)
            for k, (name, kind, categories, notation) in enumerate(header.columns)
        ]
    except ValidationError as error:
        raise EnvariantError(f"{folder}: holds a damaged table ({error.errors()[0]['msg']})") from None
    except KeyError:
        raise EnvariantError(f"{folder}: holds no table") from None
    if len(columns) < 3 + header.weighted + header.grouped or not all(
        map(_is_sound, columns, repeat(len(columns[0])))
    ):
        raise EnvariantError(f"{folder}: holds a damaged table (its columns do not match each other)")
    group = columns.pop() if header.grouped else None
    weights = columns.pop() if header.weighted else None
    *inputs, target, environment = columns
    if not environment.type.categorical or environment.missing.any() or target.missing.any():
        raise EnvariantError(f"{folder}: holds a damaged table (its target or environments are missing)")
    used = len(inputs) - header.texts
    return Table(
        tuple(inputs[:used]),
        target,
        environment,
        header.task,
        header.preprocessing_log,
        weights,
        header.target_type,
        header.missing_values,
        tuple(inputs[used:]),
        header.ordered,
        group,
        embedded=header.embedded,
    )


def _is_sound(column: Column, rows: int) -> bool:
    """Return whether a stored column is valid: one finite value or known category for each row."""
    values = column.values
    if values.shape != (rows,) or rows == 0:
        return False
    if column.type.categorical:
        return bool(values.dtype == np.int32 and values.min() >= -1 and values.max() < len(column.categories))
    return bool(values.dtype == np.float64 and not np.isinf(values).any())


def read(
    data: Any,
    target: Any,
    environment: Any,
    *,
    task: str | None = None,
    exclude: Sequence[Any] = (),
    sample_weight: Any = None,
    min_rows: int = MIN_ROWS,
    encoding: str = "utf-8",
    missing_values: Sequence[str] | None = None,
    ordered: bool = False,
    group: Any = None,
    subgroups: Sequence[Any] = (),
) -> Table:
    """Read a table from a file or a data frame.

    Args:
        data: Path (.csv, .tsv or .txt, compressed or not; .parquet, .feather, .xlsx, .json, .jsonl, .dta or
            .sav), or a pandas, polars or Arrow data frame.
        target: Name of the column to predict.
        environment: Name of the environment column.
        task: "binary", "multiclass" or "regression". Default: inferred from the target.
        exclude: Names of columns to exclude from the inputs.
        sample_weight: Name of the column with case weights. They are used for training and, in comparisons,
            also for scores. Default: equal weights.
        min_rows: Minimum number of rows of an environment; smaller environments are pooled or omitted.
        encoding: Encoding of a text file.
        missing_values: Words that represent a missing value in every column; empty cells are always missing.
            Default: words such as NA in columns of numbers, and in other input columns if they are rare.
        ordered: Whether environments are ordered in time, such as years. Small environments are then omitted
            instead of pooled.
        group: Name of the column with the group of each row, such as the patient; groups are never split
            between training and validation. Default: rows are independent.
        subgroups: Names of the columns whose values define subgroups to score separately, such as sex.
            Unless excluded, these columns remain inputs.

    Raises:
        EnvariantError: If the file cannot be read, a column is missing, or values are invalid.

    Warns:
        EnvariantWarning: For each notable entry of the preprocessing log.
    """
    return _read(
        data, target, environment, task=task, exclude=exclude, sample_weight=sample_weight,
        min_rows=min_rows, encoding=encoding, missing_values=missing_values, ordered=ordered, group=group,
        subgroups=subgroups,
    )  # fmt: skip


def read_with_texts(data: Any, target: Any, environment: Any, **settings: Any) -> Table:
    """Read a table as `read` does, but allow all inputs to be free text, which is embedded later.

    Args:
        data: Path or data frame, as for `read`.
        target: Name of the column to predict.
        environment: Name of the environment column.
        settings: Other arguments of `read`.
    """
    return _read(data, target, environment, only_texts=True, **settings)


def _read(
    data: Any,
    target: Any,
    environment: Any,
    *,
    task: str | None = None,
    exclude: Sequence[Any] = (),
    sample_weight: Any = None,
    min_rows: int = MIN_ROWS,
    encoding: str = "utf-8",
    missing_values: Sequence[str] | None = None,
    ordered: bool = False,
    group: Any = None,
    subgroups: Sequence[Any] = (),
    only_texts: bool = False,
) -> Table:
    if task is not None and task not in TASKS:
        raise unknown_name("task", str(task), TASKS)
    specs.check_value(min_rows, PositiveInt, "table: min_rows")
    declared = (
        None if missing_values is None else frozenset(map(str, several(missing_values, "missing_values")))
    )
    source = open_table(data, encoding, declared)
    if isinstance(target, list):
        remedy = "EnvironmentSet.from_huggingface(frame, target=[…]) reads several"
        raise EnvariantError(f"{source.label}: a table has one target column; {remedy}")
    # Column names may be numbers or tuples; they are identified by their text.
    role_names = {"target": str(target), "environment": str(environment)}
    optional = {"sample_weight": sample_weight, "group": group}
    role_names |= {role: str(name) for role, name in optional.items() if name is not None}
    excluded = tuple(dict.fromkeys(map(str, several(exclude, "exclude"))))
    _check_roles(source.label, role_names, source.header, excluded)
    divided = tuple(dict.fromkeys(map(str, several(subgroups, "subgroups"))))
    if unknown := [name for name in divided if name not in source.header]:
        raise lacking_columns(source.label, unknown, source.header, "subgroups column")
    if taken := [role for role, name in role_names.items() if name in divided]:
        raise EnvariantError(
            f"{source.label}: the {taken[0]} column cannot define subgroups; name another column"
        )
    names = [name for name in source.header if name not in excluded or name in divided]
    try:
        loaded = load_columns(
            source, names, target=str(target), environment=str(environment), declared=declared
        )
        if not len(loaded.index):
            raise EnvariantError("holds no rows under its header")
        columns = loaded.infer({str(target), str(environment)}, declared)
    except EnvariantError as error:
        raise labeled(source.label, error) from None
    log = [LogEntry(name, "left out, as requested") for name in excluded]
    parts = assembled(
        loaded, columns, role_names, task, log, min_rows, ordered=ordered, subgroups=divided,
        only_texts=only_texts,
    )  # fmt: skip
    # Texts that are embedded later are not left out.
    used_later = [column.name for column in parts.texts] if only_texts else []
    for remark in remarks([entry for entry in parts.preprocessing_log if entry.column not in used_later]):
        warnings.warn(f"{source.label}: {remark}", EnvariantWarning, stacklevel=3)
    declared_texts = None if declared is None else tuple(sorted(declared))
    return Table(*parts[:-3], declared_texts, parts.texts, ordered, parts.group, parts.subgroups)


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
        roles = ", ".join(f"{role} '{name}'" for role, name in role_names.items())
        raise EnvariantError(f"{label}: a column can have one role only ({roles}); name another column")
