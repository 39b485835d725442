"""Read rows from lists, arrays, tensors, series and data frames of any library."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, final

import narwhals
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from envariant.comparison.subgroups import subgroup_names
from envariant.core.conversion import column_of, in_order, text_of
from envariant.core.errors import EnvariantError, shown
from envariant.data.tables.loading import load
from envariant.data.tables.reading import open_table

Array = NDArray[Any]

# Columns of the data frame that `SavedModel.predict` returns.
_PREDICTION, _PROBABILITY = "prediction", "P("


@final
@dataclass(frozen=True, eq=False)
class Values:
    """Numbers or text with one entry, or one row of columns, per row.

    Attributes:
        array: Values, `[rows]` or `[rows, columns]`.
        names: Names of the columns of a data frame; empty for other containers.
    """

    array: Array
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.array)

    @property
    def is_numeric(self) -> bool:
        """Whether the values are numbers or Booleans."""
        return self.array.dtype.kind in "biuf"


@final
@dataclass(frozen=True, eq=False)
class Ids:
    """Identifiers of rows, such as environments.

    Attributes:
        codes: Index of each row's identifier in `names`, `[rows]`.
        names: Distinct identifiers as text: numbers in ascending order, then other texts.
    """

    codes: NDArray[np.int64]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.codes)


def values_of(values: Any, what: str) -> Values:
    """Read values with one entry, or several columns, per row.

    A data frame as returned by `SavedModel.predict` is reduced to its class probabilities or, for regression,
    to its predictions.

    Args:
        values: List, array, tensor, series or data frame.
        what: Description of the values, for error messages.

    Raises:
        EnvariantError: If the values have another shape, or a value is missing.
    """
    names: tuple[str, ...] = ()
    if hasattr(values, "columns") or hasattr(values, "column_names"):
        values, names = _of_frame(values, what)
    array = _numbers(values)
    if array is None or array.ndim != 2 or array.shape[1] < 2:
        return Values(column_of(values, what))
    if not len(array):
        raise EnvariantError(f"{what} hold no rows")
    if len(missing := np.flatnonzero(np.isnan(array.astype(np.float64)).any(axis=1))):
        rows = f"{len(missing)} of {len(array)} rows (first: row {missing[0]})"
        raise EnvariantError(f"{what} are missing in {rows}; fill in or remove them")
    return Values(array, names)


def ids_of(values: Any, what: str) -> Ids:
    """Read identifiers: any hashable values, which are compared by their text.

    Args:
        values: List, array, tensor or series with one identifier per row.
        what: Description of the identifiers, for error messages.

    Raises:
        EnvariantError: If there is not one identifier per row, or one is missing.
    """
    values = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    values = values.to_numpy() if hasattr(values, "to_numpy") else values
    shape = getattr(values, "shape", (0,))
    if isinstance(values, str) or not hasattr(values, "__iter__") or len(shape) != 1:
        got = f"shape {tuple(shape)}" if len(shape) != 1 else shown(values)
        raise EnvariantError(f"{what} must hold one identifier per row; got {got}")
    items: list[Any] = list(values)
    if not items:
        raise EnvariantError(f"{what} hold no rows")
    # A tuple is one identifier, not a list of values.
    missing = [k for k, item in enumerate(items) if np.ndim(item) == 0 and pd.isna(item)]
    if missing:
        rows = f"{len(missing)} of {len(items)} rows (first: row {missing[0]})"
        raise EnvariantError(f"{what} are missing in {rows}; fill in or remove them")
    texts = [text_of(item) for item in items]
    names = in_order(texts)
    number = {name: k for k, name in enumerate(names)}
    return Ids(np.array([number[text] for text in texts], dtype=np.int64), names)


def group_names(groups: Any, what: str) -> dict[str, Array]:
    """Return the group of each row by attribute, `[rows]`; "" for rows without a value.

    The groups of several attributes are the combinations of their values. Numbers with many values are
    divided at their quartiles, as the subgroups of `compare` are.

    Args:
        groups: Values of one attribute, or a mapping or data frame with one column per attribute.
        what: Description of the groups, for error messages.

    Returns:
        Mapping with one entry: the names of the attributes, and the names of the groups.

    Raises:
        EnvariantError: If an attribute does not have one value per row.
    """
    if isinstance(groups, Mapping):
        columns: dict[str, Any] = {str(key): _plain(values) for key, values in groups.items()}
        if len(sizes := {len(values) for values in columns.values()}) != 1:
            raise EnvariantError(f"{what}: attributes must have equal numbers of rows; got {sorted(sizes)}")
        frame: Any = pd.DataFrame(columns)
    elif hasattr(groups, "columns") or hasattr(groups, "column_names"):
        frame = groups
    else:
        frame = pd.DataFrame({str(getattr(groups, "name", None) or "group"): _plain(groups)})
    table = open_table(frame, "utf-8")
    try:
        attributes = load(table, table.header).infer(set(table.header), None)
    except EnvariantError as error:
        raise EnvariantError(f"{what}: {error}") from None
    return joined_names({name: subgroup_names(column) for name, column in attributes.items()})


def joined_names(names: Mapping[str, Array]) -> dict[str, Array]:
    """Return the combinations of the groups of several attributes; "" where an attribute has no value.

    Args:
        names: Name of each row's group by attribute, `[rows]`.
    """
    if len(names) < 2:
        return dict(names)
    rows = zip(*(each.tolist() for each in names.values()), strict=True)
    joined = [" × ".join(row) if all(row) else "" for row in rows]
    return {" × ".join(names): np.array(joined, dtype=object)}


def check_order(inputs: Mapping[str, Any]) -> None:
    """Check that pandas inputs do not have the same index in different orders.

    Rows are matched by position. Series that were sorted differently would silently be matched wrongly.

    Raises:
        EnvariantError: If two indices have the same labels in different orders.
    """
    indexed = {n: v.index for n, v in inputs.items() if isinstance(v, pd.Series | pd.DataFrame)}
    for (first, index), (second, other) in combinations(indexed.items(), 2):
        if len(index) == len(other) and not index.equals(other) and Counter(index) == Counter(other):
            raise EnvariantError(
                f"evaluate: {first} and {second} have the same index in different orders, but rows are "
                f"matched by position; sort both equally, or call reset_index(drop=True) on both"
            )


def _of_frame(frame: Any, what: str) -> tuple[Array, tuple[str, ...]]:
    try:
        table: Any = narwhals.from_native(frame, eager_only=True)
    except (TypeError, narwhals.exceptions.DuplicateError):
        raise EnvariantError(
            f"{what} must be values, or a data frame of pandas, polars or Arrow with unique column names"
        ) from None
    names: Sequence[Any] = table.columns
    if _PREDICTION in names:
        names = [name for name in names if str(name).startswith(_PROBABILITY)] or [_PREDICTION]
    columns = [column_of(table[name].to_numpy(), f"{what}: column '{name}'") for name in names]
    if not columns:
        raise EnvariantError(f"{what}: the data frame has no columns")
    words = [n for n, column in zip(names, columns, strict=True) if column.dtype.kind not in "biuf"]
    if len(columns) > 1 and words:
        raise EnvariantError(f"{what}: column '{words[0]}' holds text; several columns must hold numbers")
    return (columns[0] if len(columns) == 1 else np.column_stack(columns)), tuple(map(str, names))


def _numbers(values: Any) -> Array | None:
    """Return numbers as an array of any shape; None for text and for values of unequal lengths."""
    try:
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    except (TypeError, ValueError, RuntimeError):
        return None
    return array if array.dtype.kind in "biuf" else None


def _plain(values: Any) -> Any:
    values = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    values = values.to_numpy() if hasattr(values, "to_numpy") else values
    return list(values) if hasattr(values, "__iter__") and not isinstance(values, str) else [values]
