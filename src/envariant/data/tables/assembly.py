"""Build a table from its columns: select rows, environments, target and inputs, and log every step."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from envariant.core.conversion import look_alikes
from envariant.core.errors import EnvariantError, listed
from envariant.data.tables import roles
from envariant.data.tables.columns import Column, concatenated, rarely_observed
from envariant.data.tables.kinds import TaskName
from envariant.data.tables.kinds.base import MOST_CLASSES
from envariant.data.tables.loading import LoadedColumns
from envariant.data.tables.roles import LogEntry
from envariant.data.tables.target_type import TargetType

# Names that programs give to the index of a data frame in a file.
_INDEX = re.compile(
    r"column \d+|unnamed: \d+(\.\d+)*|index|level_\d+|\.\.\.\d+|row|row[._ ]?(names?|id|index|num(ber)?)",
    re.IGNORECASE,
)
# Largest mean step of a column that increases in every row and numbers the rows of a larger table.
_LARGEST_STEP = 1000
_LEFT_OUT = "left out: "
_MOST_REMARKS = 12


@final
class Parts(NamedTuple):
    """Components of a `Table`. The attributes have the same names and meanings as in `Table`."""

    columns: tuple[Column, ...]
    target: Column
    environment: Column
    task: TaskName
    preprocessing_log: tuple[LogEntry, ...]
    sample_weight: Column | None
    target_type: TargetType
    texts: tuple[Column, ...]
    group: Column | None
    subgroups: tuple[Column, ...]


def assembled(
    loaded: LoadedColumns,
    columns: Mapping[str, Column],
    role_names: Mapping[str, str],
    task: TaskName | None,
    log: list[LogEntry],
    min_rows: int,
    *,
    ordered: bool = False,
    subgroups: Sequence[str] = (),
    only_texts: bool = False,
) -> Parts:
    """Select the rows and input columns of a table, and log all steps.

    Args:
        loaded: Columns as read from the file or the data frame.
        columns: Columns with inferred kinds, by name.
        role_names: Column name of each role: "target", "environment", and optionally "sample_weight" and
            "group".
        task: Prediction task. Default: inferred from the target.
        log: Preprocessing log, to which entries are appended.
        min_rows: Minimum number of rows of an environment.
        ordered: Whether environments are ordered in time.
        subgroups: Names of the columns whose values define subgroups.
        only_texts: Whether columns of free text may be the only inputs.

    Raises:
        EnvariantError: If environments cannot be ordered in time, or there are too few environments, classes
            or inputs.
    """
    label, inputs = loaded.table.label, dict(columns)
    target, environment = inputs.pop(role_names["target"]), inputs.pop(role_names["environment"])
    weights, group = (
        inputs.pop(role_names[role]) if role in role_names else None for role in ("sample_weight", "group")
    )
    for column in (target, environment):
        log += [LogEntry(column.name, remark, notable=True) for remark in column.remarks]
    environment = roles.named_environments(environment)
    complete = roles.rows_with_values(label, target, environment, log)
    log += [*roles.words_as_values(environment), *roles.similar_categories(environment, notable=True)]
    environment = roles.in_time_order(label, environment) if ordered else environment
    environment, used = roles.pool_small(label, environment, complete, min_rows, log, pool=not ordered)
    divided = [inputs[name].rows(used) for name in subgroups]
    excluded = [entry.column for entry in log if entry.what.startswith("left out, as")]
    inputs = {name: column for name, column in inputs.items() if name not in excluded}
    if not used.all():
        inputs = {name: column.rows(used) for name, column in inputs.items()}
        environment, weights = environment.rows(used), weights and weights.rows(used)
        group = group and group.rows(used)
    if weights is not None:
        log.append(roles.weights_entry(label, weights))
    if group is not None:
        log.append(roles.group_entry(label, group, environment, ordered=ordered))
    task_name = task or target.type.infer_task(target.values[used])
    target, target_type = _target(loaded, target, used, task_name, log)
    log.append(roles.target_entry(target, task_name, inferred=task is None))
    log += roles.missing_classes(target, environment, task_name)
    log += _input_entries(inputs, environment)
    unusable = {entry.column for entry in log if entry.what.startswith(_LEFT_OUT)}
    usable = tuple(column for name, column in inputs.items() if name not in unusable)
    texts = tuple(
        column
        for name, column in inputs.items()
        if name in unusable and column.type.categorical and column.type.unusable(column.values)
    )
    if not usable and not (only_texts and texts):
        left_out = ", ".join([*excluded, *inputs]) or "the table has no other column"
        problem = f"no column is left to predict '{target.name}' from"
        raise EnvariantError(f"{label}: {problem} (left out: {left_out})")
    return Parts(
        usable, target, environment, task_name, tuple(log), weights, target_type, texts, group, tuple(divided)
    )


def remarks(log: Sequence[LogEntry]) -> list[str]:
    """Return warnings: one line per notable log entry, and one line that lists all omitted columns."""
    lines = [str(entry) for entry in log if entry.notable]
    columns = [
        f"'{entry.column}' ({entry.what.removeprefix(_LEFT_OUT)})"
        for entry in log
        if entry.what.startswith(_LEFT_OUT)
    ]
    lines += [f"columns left out: {listed(columns, _MOST_REMARKS)}"] if columns else []
    hidden = len(lines) - _MOST_REMARKS
    return (
        lines if hidden <= 1 else [*lines[:_MOST_REMARKS], f"{hidden} more remarks in the preprocessing log"]
    )


def _target(
    loaded: LoadedColumns, column: Column, used: NDArray[np.bool_], task: TaskName, log: list[LogEntry]
) -> tuple[Column, TargetType]:
    """Return the target column for the used rows, and the original type and values of the target."""
    dtype, chunk = loaded.target_dtype, concatenated(loaded.chunks[column.name])
    texts = None if chunk.kind is not None else replace(chunk, values=chunk.values[used])
    column = column.rows(used)
    target = roles.as_target(loaded.table.label, column, task)
    if task == "regression":
        return target, TargetType.of(dtype, column, texts, None)
    is_categorical = isinstance(dtype, pd.CategoricalDtype)
    if is_categorical:
        target = roles.in_declared_order(target, dtype.categories)
    elif all(name.lstrip("+-").isdecimal() for name in target.categories):
        # Integers that are too large for numbers were sorted as text.
        target = roles.in_declared_order(target, sorted(target.categories, key=int))
    target_type = TargetType.of(dtype, column, texts, target)
    if column.kind == "boolean" or "timedelta" in target_type.dtype:
        target = replace(target, categories=tuple(map(str, target_type.values)))
        written = [] if texts is None else [t for t in texts.texts if t not in column.missing_as]
        alike = [f"{sentence}, and are treated as one" for sentence in look_alikes(written)]
        log += [LogEntry(column.name, sentence, notable=True) for sentence in alike]
    log += [] if is_categorical else roles.words_as_values(target)
    log += roles.similar_categories(target, notable=True)
    return target, target_type


def _input_entries(inputs: Mapping[str, Column], environment: Column) -> list[LogEntry]:
    """Return the log entries of all input columns; entries for omitted columns begin with "left out: "."""
    entries: list[LogEntry] = []
    order = np.argsort(environment.values, kind="stable")
    for name, column in inputs.items():
        entries += [LogEntry(name, remark, notable=True) for remark in column.remarks]
        if reason := _unusable(column, environment, order):
            entries.append(LogEntry(name, f"{_LEFT_OUT}{reason}"))
            continue
        share = column.missing.mean()
        gaps = f"; {share:.1%} missing: filled in and marked" if share else ""
        constant = _missing_outside(column, environment) or _constant_outside(column, environment, order)
        entries.append(LogEntry(name, column.type.describe(column.categories) + gaps + constant))
        entries += roles.similar_categories(column, notable=False)
    return entries


def _unusable(column: Column, environment: Column, order: NDArray[np.int64]) -> str:
    """Return the reason why no model can use a column; "" if there is no such reason."""
    if column.missing.all():
        return "it holds no value"
    if rarely_observed(int((~column.missing).sum()), len(column)):
        return f"{column.missing.mean():.1%} of its values are missing"
    if not column.missing.any() and column.values.min() == column.values.max():
        return "its value is the same in every row"
    if reason := column.type.unusable(column.values):
        return reason
    return _index_reason(column, environment, order) if column.kind == "number" else ""


def _index_reason(column: Column, environment: Column, order: NDArray[np.int64]) -> str:
    """Return why a numeric column seems to be a row index, as text; "" if it does not."""
    values = column.values
    if column.missing.any() or len(values) <= MOST_CLASSES or (values % 1).any():
        return ""
    steps = np.diff(values)
    in_order = bool((steps > 0).all() or (steps < 0).all())
    if in_order and values.min() >= 0 and np.ptp(values) <= _LARGEST_STEP * len(values):
        return "it numbers the rows of a larger table"
    # Steps between rows of one environment, in the order of the file.
    within = np.diff(environment.values[order]) == 0
    own_steps = np.diff(values[order])[within]
    if (own_steps == 1).all() and len(own_steps) > MOST_CLASSES:
        return "it numbers the rows of each environment"
    pairs = np.unique(np.stack([environment.values, values]), axis=1)
    if _INDEX.fullmatch(column.name) and pairs.shape[1] == len(values):
        return "it is a row index, judging by its name and values"
    return ""


def _constant_outside(column: Column, environment: Column, order: NDArray[np.int64]) -> str:
    """Return a text for the log if a column is constant in all environments but one, else "".

    `order` sorts the rows by environment.
    """
    starts = np.searchsorted(environment.values, np.arange(len(environment.categories)), sorter=order)
    # A missing value counts as a value, because it has an indicator input.
    values = np.where(column.missing, -np.inf, column.values)[order]
    low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    if (low != high).sum() > 1:
        return ""
    only = [k for k in range(len(starts)) if np.delete(low, k).min() == np.delete(high, k).max()]
    names = " or ".join(environment.categories[k] for k in only)
    return (
        f"; not used if the test environment is {names}, because it is constant in all others" if only else ""
    )


def _missing_outside(column: Column, environment: Column) -> str:
    """Return a text for the log if a column is nearly always missing outside of one environment, else ""."""
    count = len(environment.categories)
    sizes = np.bincount(environment.values, minlength=count)
    observed = np.bincount(environment.values, ~column.missing, minlength=count)
    only = [
        environment.categories[k]
        for k in range(count)
        if rarely_observed(int(observed.sum() - observed[k]), int(sizes.sum() - sizes[k]))
    ]
    names = " or ".join(only)
    return (
        f"; not used if the test environment is {names}, because it is missing in nearly all others"
        if only
        else ""
    )
