"""Preprocess the columns that are not inputs: environment, target, sample weights and groups."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import final

import numpy as np
from numpy.typing import NDArray

from envariant.core.conversion import MOST_GROUPS, in_order, look_alikes
from envariant.core.environments import RESERVED
from envariant.core.errors import EnvariantError, listed
from envariant.core.printable import number_of
from envariant.data.tables.columns import Column, text_of
from envariant.data.tables.kinds import TaskName
from envariant.data.tables.kinds.missing import MISSING_TEXTS
from envariant.data.tables.time_order import time_order


@final
@dataclass(frozen=True)
class LogEntry:
    """Entry of the preprocessing log, for a column or for the whole table.

    Attributes:
        column: Name of the column; "" for the whole table.
        what: Description of the preprocessing step.
        notable: Whether the step also needs a warning, because rows, columns or values changed.
    """

    column: str
    what: str
    notable: bool = False

    def __str__(self) -> str:
        return f"'{self.column}': {self.what}" if self.column else self.what


def rows_with_values(
    label: str, target: Column, environment: Column, log: list[LogEntry]
) -> NDArray[np.bool_]:
    """Return the mask of rows with both a target and an environment, `[rows]`.

    Entries with the number of rows without a target or an environment are appended to the log.

    Raises:
        EnvariantError: If all targets or all environments are missing.
    """
    for role, column in (("target", target), ("environment", environment)):
        words = listed([f"'{text}'" for text in column.missing_as])
        if column.missing.all():
            read = (
                f" ({words} were read as missing values; to keep them, set missing_values)" if words else ""
            )
            raise EnvariantError(f"{label}: {role} '{column.name}' is empty in all rows{read}")
        if missing := int(column.missing.sum()):
            how = f" (empty or {words}; to keep these, set missing_values)" if words else ""
            rows = f"{missing:,} of {len(column):,} rows without a value{how}"
            log.append(LogEntry(column.name, f"{role}; {rows} are left out", notable=True))
    return ~(environment.missing | target.missing)


def words_as_values(column: Column) -> list[LogEntry]:
    """Return a log entry for each word such as "none" that is read as a value, not as missing."""
    counts = np.bincount(column.values[column.values >= 0], minlength=len(column.categories))
    return [
        LogEntry(
            column.name,
            f"'{name}' counts as a value, in {count:,} of {len(column):,} rows; if it represents a missing "
            f"value, set missing_values",
            notable=True,
        )
        for name, count in zip(column.categories, counts.tolist(), strict=True)
        if name.lower() in MISSING_TEXTS
    ]


def named_environments(column: Column) -> Column:
    """Convert the environment column to categories with one-line names; numeric names are sorted by value."""
    names = [_one_line(category) for category in column.categories]
    ordered = in_order(names)
    code_of = {name: code for code, name in enumerate(ordered)}
    codes = np.array([*(code_of[name] for name in names), -1], dtype=np.int32)[column.values]
    return replace(column, kind="category", values=codes, categories=ordered)


def in_time_order(label: str, column: Column) -> Column:
    """Sort the categories of the environment column by time.

    Raises:
        EnvariantError: If the names cannot be ordered in time.
    """
    order = time_order(column.categories)
    if order is None:
        names = listed([f"'{name}'" for name in column.categories])
        raise EnvariantError(
            f"{label}: the order of column '{column.name}' in time is unknown ({names}); use numbers, "
            f"years, dates or quarters as its values, such as 2021, 2021-03 or 2021-Q1"
        )
    new_code = np.empty(len(order) + 1, dtype=np.int32)
    new_code[[column.categories.index(name) for name in order]] = np.arange(len(order))
    new_code[-1] = -1
    return replace(column, values=new_code[column.values], categories=order)


def pool_small(
    label: str, environment: Column, complete: NDArray[np.bool_], min_rows: int, log: list[LogEntry],
    *, pool: bool = True,
) -> tuple[Column, NDArray[np.bool_]]:  # fmt: skip
    """Pool environments with too few complete rows, or omit them if the pool is also too small.

    Args:
        label: Name of the table, for error messages.
        environment: Environment column.
        complete: Mask of the rows with a target and an environment, `[rows]`.
        min_rows: Minimum number of complete rows of an environment.
        log: Preprocessing log, to which entries are appended.
        pool: Whether to pool small environments; if not, they are omitted.

    Returns:
        Environment column of all rows, in which omitted environments are missing values; and mask of the
        complete rows whose environment was not omitted, `[rows]`.
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
        if pool and pooled_rows >= min_rows and len(small) > 1:
            table[small] = len(large)
            names.append(f"{len(small)} small ones")
            what = f"{what}: pooled, {pooled_rows:,} rows together"
        else:
            what = f"{what}: left out, {pooled_rows:,} rows"
        log.append(LogEntry(environment.name, what, notable=True))
    if len(names) < 2:
        shown = ", ".join(environment.categories[k] for k in large) or "none"
        gone = "".join(f". {entry}" for entry in log if "without a value" in entry.what)
        raise EnvariantError(
            f"{label}: column '{environment.name}' has {len(large)} environment(s) of at least {min_rows} "
            f"rows ({shown}) and {len(small)} smaller ones; at least two are needed, one of them for "
            f"testing. Lower min_rows, or choose another column{gone}"
        )
    codes = table[environment.values]
    log.append(LogEntry(environment.name, f"environment column; {len(names)} environments"))
    pooled = replace(environment, values=codes, categories=tuple(names))
    return pooled, complete & (codes >= 0)


def weights_entry(label: str, weights: Column) -> LogEntry:
    """Check the column of sample weights and return its log entry.

    Raises:
        EnvariantError: If a weight is missing, negative or not a number.
    """
    if weights.kind != "number" or weights.missing.any() or weights.values.min() < 0:
        raise EnvariantError(
            f"{label}: sample_weight '{weights.name}' must be a number of at least 0 in every row; fill in "
            f"missing values, or leave those rows out"
        )
    return LogEntry(
        weights.name,
        "weights of rows in training and, in a comparison, in scores, intervals and drops; ignored in the "
        "data check, in the tests of shift and of unstable columns, in calibration and in the gain from "
        "labels",
    )


def group_entry(label: str, group: Column, environment: Column, *, ordered: bool) -> LogEntry:
    """Check the column of groups and return its log entry.

    Raises:
        EnvariantError: If values are missing, or all rows belong to one group.
    """
    if missing := int(group.missing.sum()):
        raise EnvariantError(
            f"{label}: the grouping column '{group.name}' has no value in {number_of(missing, 'row')}; every "
            f"row needs a group"
        )
    pairs = np.unique(np.stack([group.values, environment.values]), axis=1)
    n_environments = np.unique(pairs[0], return_counts=True)[1]
    what = f"groups of rows that are never split; {len(n_environments):,} groups"
    if spanning := int((n_environments > 1).sum()):
        what += f", {spanning:,} of them in several environments: "
        what += (
            "their earlier rows are used to predict their later rows"
            if ordered
            else (
                "their rows are left out of training when one of these environments is the test environment"
            )
        )
    what += "; tests of shift and of unstable columns treat rows as independent"
    return LogEntry(group.name, what, notable=bool(spanning))


def as_target(label: str, target: Column, task: TaskName) -> Column:
    """Convert the target to numbers for regression, else to categories without unused classes."""
    if len(np.unique(target.values)) < 2:
        value = f"'{target.rows(np.array([0])).texts()[0]}' in every row"
        raise EnvariantError(f"{label}: target '{target.name}' is {value}; there is nothing to predict")
    if task == "regression":
        if target.type.categorical:
            raise EnvariantError(
                f"{label}: target '{target.name}' holds text ('{target.categories[0]}', …); a regression "
                f"needs numbers"
            )
        return replace(target, kind="number")
    classes = as_category(target)
    present = np.unique(classes.values)
    if task == "binary" and len(present) != 2:
        raise EnvariantError(
            f"{label}: target '{target.name}' has {len(present)} values; a binary task has two (use "
            f"multiclass)"
        )
    if len(present) > len(target) / 2:
        raise EnvariantError(
            f"{label}: target '{target.name}' has {len(present)} different values in {len(target)} rows, too "
            f"many for classes; choose another column, or use regression if they are numbers"
        )
    table = np.full(len(classes.categories), -1, dtype=np.int32)
    table[present] = np.arange(len(present), dtype=np.int32)
    names = tuple(classes.categories[k] for k in present)
    return replace(target, kind="category", values=table[classes.values], categories=names)


def in_declared_order(classes: Column, declared: Iterable[object]) -> Column:
    """Sort the classes of a column in a declared order, such as the order of a pandas categorical."""
    names = [name for name in dict.fromkeys(map(text_of, declared)) if name in classes.categories]
    codes = np.array([names.index(name) for name in classes.categories], dtype=np.int32)
    return replace(classes, values=codes[classes.values], categories=tuple(names))


def target_entry(target: Column, task: TaskName, *, inferred: bool) -> LogEntry:
    """Return the log entry of the target, which states the task and the share of each class."""
    start = f"target; {task}, {'inferred' if inferred else 'as requested'}"
    if task == "regression":
        distinct = len(np.unique(target.values))
        whole = bool((target.values == np.round(target.values)).all())
        levels = f" from {distinct:,} different whole numbers" if inferred and whole else ""
        return LogEntry(
            target.name, f"{start}{levels}; standardized for training, based on the training environments"
        )
    names = target.categories
    shares = np.bincount(target.values.astype(int), minlength=len(names)) / len(target)
    texts = [f"{name} {share:.1%}" for name, share in zip(names, shares, strict=True)]
    return LogEntry(target.name, f"{start}; {listed(texts, 6)}")


def missing_classes(target: Column, environment: Column, task: TaskName) -> list[LogEntry]:
    """Return a log entry for every environment in which a class does not occur."""
    if task == "regression":
        return []
    names = target.categories
    cells = environment.values.astype(np.int64) * len(names) + target.values.astype(np.int64)
    counts = np.bincount(cells, minlength=len(environment.categories) * len(names)).reshape(-1, len(names))
    entries: list[LogEntry] = []
    for where, row in zip(environment.categories, counts, strict=True):
        if absent := [name for name, count in zip(names, row, strict=True) if not count]:
            entries.append(LogEntry(target.name, f"no row of {where} is {listed(absent)}"))
    return entries


def similar_categories(column: Column, *, notable: bool) -> list[LogEntry]:
    """Return log entries for categories that differ only in case, spaces or character form.

    Args:
        column: Column of categories.
        notable: Whether the entries also need a warning, because the column is the target or environment.
    """
    remedy = "; if they mean the same, spell them identically" if notable else ""
    return [
        LogEntry(column.name, f"{sentence}, and are treated as different{remedy}", notable)
        for sentence in look_alikes(column.categories)[:MOST_GROUPS]
    ]


def as_category(column: Column) -> Column:
    """Convert a column to categories, sorted by value."""
    if column.type.categorical:
        return column
    distinct, codes = np.unique(column.values[~column.missing], return_inverse=True)
    values = np.full(len(column), -1, dtype=np.int32)
    values[~column.missing] = codes
    return replace(
        column, kind="category", values=values, categories=tuple(column.type.class_names(distinct))
    )


def _one_line(name: str) -> str:
    """Convert an environment name to one line, and change reserved names."""
    text = " ".join("".join(character if character.isprintable() else " " for character in name).split())
    # If one value is missing, pandas converts all integers to 1.0, 2.0, ….
    text = text.removesuffix(".0") if re.fullmatch(r"-?\d+\.0", text) else text
    return f"'{text}'" if text in ("", "mean", *RESERVED) else text
