"""Inputs of scikit-learn estimators: environment columns, targets, and standardization."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import validate_data

from envariant.core.errors import EnvariantError, unknown_name


@contextmanager
def errors_in_one_line() -> Generator[None]:
    """Within a `with` block, convert scikit-learn's errors for invalid input to one-line errors."""
    try:
        yield
    except EnvariantError:
        raise
    except ValueError as error:
        raise EnvariantError(" ".join(str(error).split())) from error


def validated(*arguments: Any, **options: Any) -> Any:
    """Return the output of scikit-learn's `validate_data`; its errors become one-line errors."""
    with errors_in_one_line():
        return validate_data(*arguments, **options)


def split_environments(X: Any, environments: ArrayLike | str | None) -> tuple[Any, Any]:  # noqa: N803
    """Separate the environment labels from the table, and return both.

    Args:
        X: Table.
        environments: Environment labels, or the name of their column in the table.

    Raises:
        EnvariantError: If the table has no such column.
    """
    if not isinstance(environments, str):
        return X, environments
    if not hasattr(X, "columns"):
        raise EnvariantError(
            f"environments='{environments}' is a column name, but X is of type {type(X).__name__} without "
            f"column names; pass a DataFrame, or one label per row"
        )
    if environments not in X.columns:
        raise unknown_name("column", environments, map(str, X.columns), where="environments")
    return X[[name for name in X.columns if name != environments]], X[environments]


def plain_targets(y: Any) -> Any:
    """Convert nullable pandas Booleans and integers to NumPy types; return other targets unchanged.

    Without the conversion, scikit-learn would not keep the values as Booleans or integers.
    """
    dtype = getattr(getattr(y, "dtype", None), "numpy_dtype", np.dtype(object))
    return y.to_numpy(dtype=dtype) if dtype.kind in "biu" and not y.isna().any() else y


def mean_and_scale(columns: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation of each column; the deviation of constant columns is set to 1."""
    scaler: Any = StandardScaler().fit(columns)
    return scaler.mean_, scaler.scale_
