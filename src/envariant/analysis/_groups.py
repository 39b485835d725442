"""Index groups of dependent rows, such as all rows of one patient, and sum values within groups."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def group_numbers(groups: ArrayLike | None, n_rows: int) -> NDArray[np.int64]:
    """Return the index of each row's group, counted from 0; if `groups` is None, every row is a group."""
    return np.arange(n_rows) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]


def group_sums(values: NDArray[np.float64], groups: ArrayLike | None) -> NDArray[np.float64]:
    """Sum values `[rows, …]` within each group; the result has shape `[groups, …]`."""
    numbers = group_numbers(groups, len(values))
    sums: NDArray[Any] = np.zeros((int(numbers.max(initial=-1)) + 1, *values.shape[1:]))
    np.add.at(sums, numbers, values)
    return sums
