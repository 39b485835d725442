"""Convert arrays of any type to numbers or category codes."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray


def typed(values: ArrayLike) -> tuple[str, NDArray[Any], tuple[str, ...]]:
    """Return the kind of a column, its values as numbers, and the names of its categories.

    Kinds are "number", "boolean", "date" and "category". Categories become integer codes, with −1 for missing
    values. Other values become float64, with NaN for missing values; dates are in days since 1970.
    """
    array = np.asarray(values)
    if array.dtype.kind == "M":
        days = array.astype("datetime64[us]").astype(np.float64) / 86_400e6
        return "date", np.where(np.isnat(array), np.nan, days), ()
    if array.dtype.kind in "biuf":
        return "boolean" if array.dtype.kind == "b" else "number", array.astype(np.float64), ()
    codes, names = pd.factorize(array)
    return "category", codes, tuple(map(str, names))
