"""Convert user inputs (lists, arrays, data frames, datasets) to tensors and tasks.

Missing values, values of a wrong type and inconsistent shapes are rejected; the error message gives their
position.
"""

import math
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envariant.core import image_rows
from envariant.core.errors import EnvariantError, EnvariantWarning, listed, shown, unknown_name
from envariant.core.multi_target import MultiLabel, MultiOutputRegression
from envariant.core.tasks import Binary, Multiclass, Regression, Task


def in_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct labels: first numbers in ascending order, then strings in alphabetical order."""

    def key(text: str) -> tuple[float, str]:
        try:
            number = float(text)
        except ValueError:
            number = math.inf
        return (number if math.isfinite(number) else math.inf), text

    return tuple(sorted(set(labels), key=key))


# Zero-width characters, which make strings different that look equal.
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200e\u200f\u2060\ufeff"))
_ACCENTS = dict.fromkeys(range(0x300, 0x370))
MOST_GROUPS = 5
"""Largest number of groups of look-alike labels that are reported."""


def clean(text: str) -> str:
    """Normalize a label: apply Unicode NFC, and remove invisible characters and surrounding spaces."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text).translate(_INVISIBLE)
    return text.strip()


def look_alikes(labels: Iterable[str]) -> list[str]:
    """Return one sentence per group of labels that differ only in case, spaces, accents or Unicode form."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault(_without_accents(_folded(label)), []).append(label)
    sentences: list[str] = []
    for names in groups.values():
        if len(names) < 2:
            continue
        shown = listed([f"'{name}'" for name in names], 4, " and ")
        how = "capitals" if len({name.casefold() for name in names}) == 1 else "blanks or character form"
        if len({_folded(name) for name in names}) > 1:
            plain = {_without_accents(name) for name in names}
            how = "accents" if len(plain) == 1 else "accents, capitals or blanks"
        sentences.append(f"{shown} differ in {how} only")
    return sentences


def _folded(label: str) -> str:
    """Return a label in a standard Unicode form, in lower case and without spaces."""
    if not label.isascii():
        label = unicodedata.normalize("NFKC", label).translate(_INVISIBLE)
    return "".join(label.casefold().split())


def _without_accents(label: str) -> str:
    """Return a label without accents; marks of other scripts, such as vowel signs, are kept."""
    return label if label.isascii() else unicodedata.normalize("NFD", label).translate(_ACCENTS)


def warn_of_look_alikes(labels: Iterable[str], what: str) -> None:
    """Warn if labels differ only in case, spaces, accents or Unicode form.

    Args:
        labels: Labels of classes or environments.
        what: Data set and role of the labels, such as "arrays: targets".

    Warns:
        EnvariantWarning: One warning per group of such labels, for at most `MOST_GROUPS` groups.
    """
    for sentence in look_alikes(dict.fromkeys(labels))[:MOST_GROUPS]:
        text = (
            f"{what}: {sentence}, and are treated as different; if they mean the same, spell them identically"
        )
        warnings.warn(text, EnvariantWarning, stacklevel=4)


# Integers with more distinct values than this are a quantity, not classes.
_MOST_CLASSES = 20


def targets_of(values: Any, task: Task | None, label: str) -> tuple[Tensor, Task, tuple[str, ...]]:
    """Convert targets to numbers, and infer the task if it is not given.

    Args:
        values: Numbers or text `[rows]`, or numbers `[rows, targets]`.
        task: Task, or None to infer it.
        label: Name of the data set, for error messages.

    Returns:
        The targets `[rows]` or `[rows, targets]`, the task, and the class names. Class names are empty for
        regression, and for numeric targets with a given task.

    Raises:
        EnvariantError: If the values are not valid targets of the task, or no task can be inferred from them.
    """
    several_targets = _several_targets(values)
    if several_targets is not None:
        return _with_several_targets(several_targets, task, label)
    column = column_of(values, f"{label}: targets")
    different = len(np.unique(column))
    words = column.dtype.kind not in "biuf"
    if task is None:
        classes = different == 2 or words or (column.dtype.kind in "iub" and different <= _MOST_CLASSES)
        if different < 2 and (classes or len(column) > 1):
            value = text_of(column[0])
            raise EnvariantError(f"{label}: all targets are {value}; there is nothing to predict")
        if words and different > max(_MOST_CLASSES, len(column) // 2):
            raise EnvariantError(
                f"{label}: targets hold {different} different strings in {len(column)} rows; use numbers, or "
                f"set task=Multiclass({different}) if they are classes"
            )
        task = Regression() if not classes else Binary() if different == 2 else Multiclass(different)
    else:
        classes = words
    if not classes:
        # PyTorch does not support all unsigned types.
        plain = column.astype(np.float64 if column.dtype.kind == "f" else np.int64)
        return torch.from_numpy(plain), task, ()
    codes, labels = coded(column, f"{label}: targets")
    most = 2 if isinstance(task, Binary) else task.outputs
    if isinstance(task, Regression) or len(labels) > most:
        expected = "numbers" if isinstance(task, Regression) else f"at most {most} classes"
        raise EnvariantError(f"{label}: {task.name} targets must be {expected}; got {listed(labels)}")
    return torch.from_numpy(codes), task, labels


def _several_targets(values: Any) -> NDArray[Any] | None:
    """Return numbers `[rows, targets]` with at least two targets; None for other shapes and types."""
    try:
        values = _stacked(values)
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    except (TypeError, ValueError, RuntimeError):
        return None
    is_table = array.ndim == 2 and array.shape[0] > 0 and array.shape[1] > 1
    return array if is_table and array.dtype.kind in "biuf" else None


def _with_several_targets(
    values: NDArray[Any], task: Task | None, label: str
) -> tuple[Tensor, Task, tuple[str, ...]]:
    if len(missing := np.flatnonzero(np.isnan(values.astype(np.float64)).any(axis=1))):
        rows = f"{len(missing)} of {len(values)} rows (first: row {missing[0]})"
        raise EnvariantError(f"{label}: targets are missing in {rows}; fill in or remove them")
    if task is None:
        width = values.shape[1]
        are_labels = bool(np.isin(values, (0, 1)).all())
        task = MultiLabel(width) if are_labels else MultiOutputRegression(width)
    elif not task.target_shape:
        raise EnvariantError(
            f"{label}: {task.name} needs one target per row; got shape {values.shape}, which fits "
            f"MultiLabel({values.shape[1]}) or MultiOutputRegression({values.shape[1]})"
        )
    return torch.from_numpy(values.astype(np.float64)), task, ()


def column_of(values: Any, what: str) -> NDArray[Any]:
    """Convert values to an array of numbers or text, `[rows]`.

    Raises:
        EnvariantError: If there is not exactly one value per row, or a value is missing.
    """
    import pandas as pd

    try:
        values = _stacked(values)
        if isinstance(values, Tensor):
            values = values.detach().cpu()
        column = np.asarray(values)
        if column.dtype.kind in "US":
            # Among words, a missing number would have become the word "nan".
            column = np.asarray(values, dtype=object)
    except (TypeError, ValueError, RuntimeError):
        column = np.empty((0, 0))
    if column.ndim == 2 and column.shape[1] == 1:
        column = column[:, 0]
    if column.ndim != 1 or column.dtype.kind == "c":
        raise EnvariantError(f"{what} must hold one number or string per row; got shape {column.shape}")
    if not len(column):
        raise EnvariantError(f"{what} hold no rows")
    if len(missing := np.flatnonzero(pd.isna(column))):
        rows = f"{len(missing)} of {len(column)} rows (first: row {missing[0]})"
        raise EnvariantError(f"{what} are missing in {rows}; fill in or remove them")
    if column.dtype.kind != "O":
        return column
    numbers = np.array(column.tolist())
    return numbers if numbers.dtype.kind in "biuf" else np.array(list(map(text_of, column)), dtype=str)


def coded(column: NDArray[Any], what: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Encode labels as integers; return the code of each row, and the labels in the order of the codes.

    Warns:
        EnvariantWarning: If labels differ only in case, spaces, accents or Unicode form.
    """
    distinct, inverse = np.unique(column, return_inverse=True)
    texts = [text_of(value) for value in distinct]
    labels = in_order(texts)
    warn_of_look_alikes(labels, what)
    number = {text: k for k, text in enumerate(labels)}
    return np.array([number[text] for text in texts], dtype=np.int64)[inverse], labels


def several(names: object, what: str = "names") -> tuple[Any, ...]:
    """Convert a single name, or a collection of names, to a tuple of names.

    Args:
        names: One name, or several.
        what: Name of the argument, for the error message.

    Raises:
        EnvariantError: If `names` is neither a string nor a collection.
    """
    if isinstance(names, str):
        return (names,)
    if not isinstance(names, Iterable):
        raise EnvariantError(f"{what} must be a list of names; got {shown(names)}")
    return tuple(cast("Iterable[Any]", names))


def attributes_of(attributes: Any, rows: int, where: str) -> dict[str, Tensor]:
    """Convert the attributes of rows to tensors with one value per row.

    Raises:
        EnvariantError: If an attribute does not have one value per row, or its values are not numbers.
    """
    if not isinstance(attributes, Mapping):
        raise EnvariantError(f"{where}: attributes must be a mapping from names to values")
    tensors = {
        key: values if isinstance(values, Tensor) else tensor_of(values, f"{where}: attribute '{key}'")
        for key, values in attributes.items()
    }
    for key, values in tensors.items():
        if not values.dim() or len(values) != rows:
            count = len(values) if values.dim() else 1
            raise EnvariantError(f"{where}: attribute '{key}' has {count} values for {rows} rows")
    return tensors


def text_of(value: object) -> str:
    """Convert a label to text: 2019.0 becomes "2019", True becomes "true"."""
    if isinstance(value, bool | np.bool_):
        return str(value).lower()
    # 2019 and 2019.0 are the same label, independent of the type of the column.
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def column_of_table(table: Any, name: str, label: str) -> Any:
    """Return the column with a given name from a table.

    Raises:
        EnvariantError: If the table has no column of that name.
    """
    if not hasattr(table, "column_names") and not hasattr(table, "keys"):
        raise EnvariantError(
            f"{label}: must be a table with named columns, such as a data frame; got {shown(table)}"
        )
    known = [str(key) for key in getattr(table, "column_names", None) or table.keys()]
    if name not in known:
        raise unknown_name("column", name, known, where=label)
    column = table[name]
    # A column may be lazy, and becomes a list by iteration.
    if not isinstance(column, Tensor) and not hasattr(column, "__array__"):
        column = image_rows.pixels_of(list(column), f"{label}: column '{name}'")
    if hasattr(table, "with_transform") and hasattr(table, "select") and not isinstance(column, list):
        values = tensor_of(column, label)
        image_rows.check_repeatable(
            table, values, (), lambda n: (_first_rows(table, name, n, label), ()), label
        )
    return column


def _first_rows(table: Any, name: str, count: int, label: str) -> Tensor:
    column = table.select(range(count))[name]
    values = column if isinstance(column, Tensor) or hasattr(column, "__array__") else list(column)
    return tensor_of(image_rows.pixels_of(values, label) if isinstance(values, list) else values, label)


def _stacked(values: Any) -> Any:
    """Stack a list of tensors into one tensor; return other values unchanged."""
    first = values[0] if isinstance(values, list) and values else None
    return torch.stack(values) if isinstance(first, Tensor) else values


def tensor_of(values: Any, what: str) -> Tensor:
    """Convert numbers to a tensor; an existing tensor keeps its device.

    Raises:
        EnvariantError: If the values are not numbers.
    """
    several = isinstance(values, Mapping)
    try:
        values = _stacked(values)
        if not isinstance(values, Tensor):
            # Via NumPy: data frames convert to arrays, and lists of arrays convert faster. PyTorch
            # warns about read-only arrays, so they are copied.
            array = np.asarray(values)
            values = array if array.flags.writeable else array.copy()
        tensor = torch.as_tensor(values)
        return tensor.detach() if tensor.requires_grad else tensor
    except (TypeError, ValueError, RuntimeError):
        pack = "combine a dictionary of tensors with envariant.models.pack_inputs"
        remedy = pack if several else "encode words as numbers first"
        raise EnvariantError(f"{what} must be numbers in a tensor, an array or a list; {remedy}") from None


def joined(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Concatenate tensors along a dimension; a single tensor is returned without a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=dim)


def side_by_side(columns: Mapping[str, Any], names: Sequence[str], label: str) -> Tensor:
    """Concatenate columns that contain numbers or arrays into one tensor of inputs, `[rows, …]`.

    Args:
        columns: Columns by name.
        names: Names of the columns to concatenate, in order.
        label: Name of the data set, for error messages.

    Raises:
        EnvariantError: If a column contains values other than numbers, or the numbers of rows differ.
    """
    parts = [tensor_of(columns[name], f"{label}: column '{name}'") for name in names]
    flat = [part[:, None] if part.dim() == 1 else part for part in parts]
    try:
        return joined(flat, dim=1)
    except (RuntimeError, IndexError):
        shapes = ", ".join(f"'{name}' {tuple(part.shape)}" for name, part in zip(names, flat, strict=True))
        raise EnvariantError(f"{label}: columns cannot be concatenated: {shapes}") from None


def check_lengths(lengths: Mapping[str, int], label: str) -> None:
    """Check that inputs, targets and environment labels have the same number of rows.

    Raises:
        EnvariantError: If the numbers of rows differ.
    """
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{length} {what}" for what, length in lengths.items())
        raise EnvariantError(f"{label}: lengths must be equal; got {counts}")
