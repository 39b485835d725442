"""Preprocessing of the columns that are not inputs: environment, target and sample weights."""

import re
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from envariant.core.conversion import in_order
from envariant.core.environments import RESERVED
from envariant.core.errors import EnvariantError, listed
from envariant.data.tables.columns import Column
from envariant.data.tables.kinds import TaskName


@final
@dataclass(frozen=True)
class LogEntry:
    """Entry of the preprocessing log for a column, or for the whole table if the column name is ""."""

    column: str
    what: str


def rows_with_values(
    label: str, target: Column, environment: Column, log: list[LogEntry]
) -> NDArray[np.bool_]:
    """Return the mask of rows with both target and environment, `[rows]`, and log the other rows.

    Raises:
        EnvariantError: If all targets or all environments are missing.
    """
    for role, column in (("target", target), ("environment", environment)):
        if column.missing.all():
            raise EnvariantError(f"{label}: {role} '{column.name}' holds no value at all")
        if missing := int(column.missing.sum()):
            rows = f"{missing:,} of {len(column):,} rows without a value (empty, NA, none, unknown …)"
            log.append(LogEntry(column.name, f"{role}; {rows} are left out"))
    return ~(environment.missing | target.missing)


def named_environments(column: Column) -> Column:
    """Convert the environment column to one-line names; numbers are sorted by size."""
    names = [_one_line(category) for category in column.categories]
    ordered = in_order(names)
    code_of = {name: code for code, name in enumerate(ordered)}
    codes = np.array([*(code_of[name] for name in names), -1], dtype=np.int32)[column.values]
    return Column(column.name, "category", codes, ordered)


def pool_small(
    label: str, environment: Column, complete: NDArray[np.bool_], min_rows: int, log: list[LogEntry]
) -> tuple[Column, NDArray[np.bool_]]:
    """Pool environments with too few complete rows, or omit them if the pool is also too small.

    Returns:
        The new environment column, and a mask of the used rows, `[rows]`.
    """
    counts = np.bincount(environment.values[complete], minlength=len(environment.categories))
    present = np.flatnonzero(counts)
    small = [k for k in present if counts[k] < min_rows]
    large = [k for k in present if counts[k] >= min_rows]
    names = [environment.categories[k] for k in large]
    table = np.full(len(environment.categories) + 1, -1, dtype=np.int32)
    table[large] = np.arange(len(large), dtype=np.int32)
    pooled_rows = int(counts[small].sum())
    if small:
        shown = listed([environment.categories[k] for k in small])
        what = f"{len(small)} of {len(present)} environments have fewer than {min_rows} rows ({shown})"
        if pooled_rows >= min_rows and len(small) > 1:
            table[small] = len(large)
            names.append(f"{len(small)} small ones")
            log.append(LogEntry(environment.name, f"{what}: pooled, {pooled_rows:,} rows together"))
        else:
            log.append(LogEntry(environment.name, f"{what}: left out, {pooled_rows:,} rows"))
    if len(names) < 2:
        shown = ", ".join(environment.categories[k] for k in large) or "none"
        raise EnvariantError(
            f"{label}: column '{environment.name}' has {len(large)} environment(s) of at least {min_rows} "
            f"rows ({shown}) and {len(small)} smaller; two are needed, one of them for testing. Lower "
            f"min_rows, or name another column"
        )
    codes = table[environment.values]
    log.append(LogEntry(environment.name, f"environment; {len(names)} of them"))
    return Column(environment.name, "category", codes, tuple(names)), complete & (codes >= 0)


def weights_entry(label: str, weights: Column) -> LogEntry:
    """Check the column of sample weights and return its log entry.

    Raises:
        EnvariantError: If the weights are not non-negative numbers.
    """
    if weights.kind != "number" or weights.missing.any() or weights.values.min() < 0:
        raise EnvariantError(
            f"{label}: sample_weight '{weights.name}' must be a number of at least 0 in every row; fill in "
            f"missing values, or leave those rows out"
        )
    return LogEntry(weights.name, "sampling weights for training; evaluation weights all rows equally")


def as_target(label: str, target: Column, task: TaskName) -> Column:
    """Convert the target for a task: numbers, Booleans, or categories without unused classes."""
    if len(np.unique(target.values)) < 2:
        value = f"'{target.rows(np.array([0])).texts()[0]}' in every row"
        raise EnvariantError(f"{label}: target '{target.name}' is {value}; there is nothing to predict")
    if task == "regression":
        if target.type.categorical:
            raise EnvariantError(
                f"{label}: target '{target.name}' holds text ('{target.categories[0]}', …); a regression "
                f"needs numbers"
            )
        return Column(target.name, "number", target.values.astype(np.float32))
    if target.kind == "boolean":
        return target
    classes = _as_category(target)
    present = np.unique(classes.values)
    if task == "binary" and len(present) != 2:
        raise EnvariantError(
            f"{label}: target '{target.name}' has {len(present)} values; a binary task has two (use "
            f"multiclass)"
        )
    if len(present) > len(target) / 2:
        raise EnvariantError(
            f"{label}: target '{target.name}' has {len(present)} different values in {len(target)} rows: no "
            f"classes; name another column, or use regression if they are numbers"
        )
    table = np.full(len(classes.categories), -1, dtype=np.int32)
    table[present] = np.arange(len(present), dtype=np.int32)
    names = tuple(classes.categories[k] for k in present)
    return Column(target.name, "category", table[classes.values], names)


def target_entry(target: Column, task: TaskName, *, inferred: bool) -> LogEntry:
    """Return the log entry of the target, with the task and the share of each class."""
    start = f"target; {task}, {'inferred' if inferred else 'as requested'}"
    if task == "regression":
        return LogEntry(target.name, f"{start}; standardized for training, by the training environments")
    names = target.class_names
    shares = np.bincount(target.values.astype(int), minlength=len(names)) / len(target)
    texts = [f"{name} {share:.1%}" for name, share in zip(names, shares, strict=True)]
    return LogEntry(target.name, f"{start}; {listed(texts, 6)}")


def missing_classes(target: Column, environment: Column, task: TaskName) -> list[LogEntry]:
    """Return a log entry for every environment with missing classes."""
    if task == "regression":
        return []
    names = target.class_names
    cells = environment.values.astype(np.int64) * len(names) + target.values.astype(np.int64)
    counts = np.bincount(cells, minlength=len(environment.categories) * len(names)).reshape(-1, len(names))
    entries: list[LogEntry] = []
    for where, row in zip(environment.categories, counts, strict=True):
        if absent := [name for name, count in zip(names, row, strict=True) if not count]:
            entries.append(LogEntry(target.name, f"no row of {where} is {listed(absent)}"))
    return entries


def similar_categories(column: Column) -> list[LogEntry]:
    """Return a log entry for categories that differ only in upper and lower case."""
    by_lower: dict[str, list[str]] = {}
    for category in column.categories:
        by_lower.setdefault(category.casefold(), []).append(category)
    groups = [" and ".join(f"'{name}'" for name in names) for names in by_lower.values() if len(names) > 1]
    what = f"{listed(groups, 3, '; ')} differ in capitals only, and count as different"
    return [LogEntry(column.name, what)] if groups else []


def _as_category(column: Column) -> Column:
    """Convert a column to a category column; categories keep the order of the values."""
    if column.type.categorical:
        return column
    distinct, codes = np.unique(column.type.class_values(column.values), return_inverse=True)
    names = [text for text in Column(column.name, column.kind, distinct).texts() if text is not None]
    # Missing values sort last.
    codes = np.where(codes < len(names), codes, -1).astype(np.int32)
    return Column(column.name, "category", codes, tuple(names))


def _one_line(name: str) -> str:
    """Convert a name to one line, and change it if it is reserved."""
    text = " ".join("".join(character if character.isprintable() else " " for character in name).split())
    # If one value is missing, pandas converts all integers to 1.0, 2.0, ….
    text = text.removesuffix(".0") if re.fullmatch(r"-?\d+\.0", text) else text
    return f"'{text}'" if text in ("", "mean", *RESERVED) else text
