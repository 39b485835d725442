"""What people hand in, read as what the house works with: lists, arrays, frames and datasets as tensors.

Nothing is guessed that cannot be said: what is no number, is missing or does not fit is named with its place.
At the end stands how rows are laid end to end, here and everywhere else.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envariant.core.errors import EnvariantError, unknown_name
from envariant.core.tasks import Binary, Multiclass, Regression, Task


def in_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Different labels in the order people expect: numbers by their size, then words by text."""

    def place(text: str) -> tuple[float, str]:
        try:
            number = float(text)
        except ValueError:
            return math.inf, text
        return (number if math.isfinite(number) else math.inf), text

    return tuple(sorted(set(labels), key=place))


# Whole numbers with more different values than this are a quantity and not a class.
_MOST_CLASSES = 20


def targets_of(values: Any, task: Task | None, label: str) -> tuple[Tensor, Task, tuple[str, ...]]:
    """Targets as numbers, the task, and what the numbers stand for.

    Args:
        values: `[rows]`, numbers or words.
        task: what is predicted; None is what the values suggest.
        label: of the data set, for messages.

    Raises:
        EnvariantError: they are no targets of any task, or not of this one.
    """
    column = column_of(values, f"{label}: targets")
    different = len(np.unique(column))
    words = column.dtype.kind not in "biuf"
    if task is None:
        classes = different == 2 or words or (column.dtype.kind in "iub" and different <= _MOST_CLASSES)
        if classes and different < 2:
            raise EnvariantError(
                f"{label}: all targets are {text_of(column[0])}; nothing is to be told apart"
            )
        if words and different > max(_MOST_CLASSES, len(column) // 2):
            raise EnvariantError(
                f"{label}: targets hold {different} different words in {len(column)} rows; give numbers, or "
                f"say task=Multiclass({different}) if they are classes"
            )
        task = Regression() if not classes else Binary() if different == 2 else Multiclass(different)
    else:
        classes = words
    if not classes:
        # Unsigned numbers are not all known to PyTorch.
        plain = column.astype(np.float64 if column.dtype.kind == "f" else np.int64)
        return torch.from_numpy(plain), task, ()
    codes, labels = coded(column)
    most = 2 if isinstance(task, Binary) else task.outputs
    if isinstance(task, Regression) or len(labels) > most:
        shown = ", ".join(labels[:5]) + (", …" if len(labels) > 5 else "")
        wanted = "numbers" if isinstance(task, Regression) else f"at most {most} classes"
        raise EnvariantError(f"{label}: {task.name} targets must be {wanted}; got {shown}")
    return torch.from_numpy(codes), task, labels


def column_of(values: Any, what: str) -> NDArray[Any]:
    """One value a row, none of them missing: numbers where they are numbers, else text.

    Raises:
        EnvariantError: there is not one value a row, or one is missing; the message begins with `what`.
    """
    import pandas as pd

    try:
        values = _stacked(values)
        if isinstance(values, Tensor):
            values = values.detach().cpu()
        column = np.asarray(values)
        if column.dtype.kind in "US":
            # Beside words a missing number would have become the word "nan".
            column = np.asarray(values, dtype=object)
    except (TypeError, ValueError, RuntimeError):
        column = np.empty((0, 0))
    if column.ndim == 2 and column.shape[1] == 1:
        column = column[:, 0]
    if column.ndim != 1 or column.dtype.kind == "c":
        raise EnvariantError(f"{what} must hold one number or word a row; got shape {column.shape}")
    if not len(column):
        raise EnvariantError(f"{what} hold no rows")
    missing = np.flatnonzero(pd.isna(column))
    if len(missing):
        raise EnvariantError(
            f"{what} are missing in {len(missing)} of {len(column)} rows (first: row {missing[0]}); "
            f"fill in or remove them"
        )
    if column.dtype.kind != "O":
        return column
    again = np.array(column.tolist())
    return again if again.dtype.kind in "biuf" else np.array([text_of(value) for value in column], dtype=str)


def coded(column: NDArray[Any]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Of every row the number of its label, and the labels in order."""
    found, places = np.unique(column, return_inverse=True)
    texts = [text_of(value) for value in found]
    labels = in_order(texts)
    number = {text: k for k, text in enumerate(labels)}
    return np.array([number[text] for text in texts], dtype=np.int64)[places], labels


def several(names: Sequence[Any]) -> tuple[Any, ...]:
    """Names from one or several: a single word is not its letters."""
    return (names,) if isinstance(names, str) else tuple(names)


def text_of(value: object) -> str:
    """A label as text."""
    if isinstance(value, bool | np.bool_):
        return str(value).lower()
    # 2019 and 2019.0 are one thing, whatever type a column had to have.
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def items_of(dataset: Any, where: str) -> tuple[Tensor, list[Any]]:
    """All inputs of a dataset, stacked, and its targets.

    Raises:
        EnvariantError: it is empty, or an item is no pair of numbers like those before it.
    """
    # PyTorch's datasets with a length need not say where they end when they are run through.
    measured = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    items = (dataset[k] for k in range(len(dataset))) if measured else iter(dataset)
    inputs: list[Tensor] = []
    targets: list[Any] = []
    for k, item in enumerate(items):
        if not isinstance(item, tuple | list) or len(item) < 2:
            raise EnvariantError(f"{where}: item {k} is no (input, target); got {type(item).__name__}")
        if type(item[0]).__module__.startswith("PIL."):
            raise EnvariantError(
                f"{where}: item {k} is an image; give the dataset a transform that makes tensors of them"
            )
        row = tensor_of(item[0], f"{where}: item {k}")
        if inputs and row.shape != inputs[0].shape:
            raise EnvariantError(
                f"{where}: item {k} has shape {tuple(row.shape)}, those before it {tuple(inputs[0].shape)}"
            )
        inputs.append(row)
        targets.append(item[1].item() if isinstance(item[1], Tensor) and item[1].numel() == 1 else item[1])
    if not inputs:
        raise EnvariantError(f"{where}: has no rows; leave it out")
    rows = torch.stack(inputs)
    return rows if rows.dim() > 1 else rows[:, None], targets


def column_of_table(table: Any, name: str, label: str) -> Any:
    """A column by its name, of anything that has columns.

    Raises:
        EnvariantError: there is none of that name.
    """
    known = [str(key) for key in getattr(table, "column_names", None) or table.keys()]
    if name not in known:
        raise unknown_name("column", name, known, where=label)
    column = table[name]
    # Lists as they are stored; a column may be no list until it is run through.
    return column if isinstance(column, Tensor) or hasattr(column, "__array__") else list(column)


def _stacked(values: Any) -> Any:
    """A list of tensors as one tensor; anything else as it is."""
    first = values[0] if isinstance(values, list) and values else None
    return torch.stack(values) if isinstance(first, Tensor) else values


def tensor_of(values: Any, what: str) -> Tensor:
    """Numbers as a tensor, on the device where they are.

    Raises:
        EnvariantError: they are no numbers; the message begins with `what`.
    """
    try:
        values = _stacked(values)
        if not isinstance(values, Tensor):
            # By way of an array, because a data frame knows that way and lists of arrays are quick so; of
            # an array that must not be written PyTorch wants a copy.
            array = np.asarray(values)
            values = array if array.flags.writeable else array.copy()
        return torch.as_tensor(values).detach()
    except (TypeError, ValueError, RuntimeError):
        raise EnvariantError(
            f"{what} must be numbers in a tensor, an array or a list; encode words as numbers first"
        ) from None


def joined(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Rows laid end to end; a single part is returned as it is, for a copy would cost as much as a pass."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=dim)
