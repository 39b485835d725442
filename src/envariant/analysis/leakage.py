"""Possible target leakage: columns that nearly determine the target."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from envariant.analysis._columns import typed
from envariant.core.errors import EnvariantError, unknown_name

Array = NDArray[Any]
Measure = Literal["missingness", "AUROC", "rank correlation", "accuracy", "R²"]

THRESHOLD = 0.99
"""Smallest score reported as leakage; for accuracies, smallest share of the baseline's errors avoided."""

# Smallest number of rows in a column, and smallest mean number of rows per category.
_FEWEST = 30


@final
@dataclass(frozen=True)
class LeakyColumn:
    """Column that alone nearly determines the target.

    Attributes:
        column: Name of the column.
        measure: Measure of the relation with the target: "missingness" (accuracy of predicting the target
            from missing values), "AUROC", "rank correlation" (absolute value), "accuracy" (of predicting the
            most frequent class of each category) or "R²" (share of the target's variance explained by
            categories).
        score: Value of the measure, between 0 and 1.
    """

    column: str
    measure: Measure
    score: float


def leaky_columns(
    columns: Mapping[str, ArrayLike],
    targets: ArrayLike,
    *,
    task: Literal["binary", "multiclass", "regression"],
    categorical: Collection[str] = (),
) -> tuple[LeakyColumn, ...]:
    """Find columns that nearly determine the target.

    Such a column is often a copy of the target, derived from the target, or known only afterwards. Numeric
    columns are checked by their ranks for binary and real targets, categories for all targets, and missing
    values for binary targets.

    Args:
        columns: Values by column name, `[rows]`. NaN, None and negative category codes are missing
            values.
        targets: Class numbers from 0, or real numbers, `[rows]`.
        task: Kind of target.
        categorical: Names of numeric columns with category codes. Text columns are always categorical.

    Raises:
        EnvariantError: If a column does not have one value per target, or the task is unknown.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> works = rng.integers(2, size=200)
        >>> columns = {"age": rng.normal(size=200), "hours": works * rng.integers(1, 60, size=200)}
        >>> leaky_columns(columns, works, task="binary")
        (LeakyColumn(column='hours', measure='AUROC', score=1.0),)
    """
    if (False, task) not in _CHECKS:
        raise unknown_name("task", str(task), {name for _, name in _CHECKS}, where="leaky_columns")
    y = np.asarray(targets).astype(np.float64)
    leaks: list[LeakyColumn] = []
    for name, array in columns.items():
        kind, values, _ = typed(array)
        is_category = kind == "category" or name in categorical
        if len(values) != len(y):
            raise EnvariantError(f"leaky_columns: '{name}' has {len(values)} rows, but targets have {len(y)}")
        present = values >= 0 if is_category else ~np.isnan(values)
        leak = _missingness(present, y) if task == "binary" else None
        if leak is None and present.sum() >= _FEWEST and np.ptp(y[present]) and np.ptp(values[present]):
            leak = _CHECKS[is_category, task](values[present], y[present])
        if leak is not None:
            leaks.append(LeakyColumn(name, *leak))
    return tuple(leaks)


Leak = tuple[Measure, float]


def _missingness(present: NDArray[np.bool_], targets: Array) -> Leak | None:
    if present.all() or len(targets) < _FEWEST:
        return None
    agreement = float(np.mean(present == targets))
    accuracy = max(agreement, 1 - agreement)
    return ("missingness", accuracy) if _beats_majority(accuracy, targets) else None


def _auroc(values: Array, targets: Array) -> Leak | None:
    ranks, positives = stats.rankdata(values), int(targets.sum())
    wins = ranks[targets == 1].sum() - positives * (positives + 1) / 2
    area = wins / (positives * (len(targets) - positives))
    return ("AUROC", float(max(area, 1 - area))) if max(area, 1 - area) >= THRESHOLD else None


def _rank_correlation(values: Array, targets: Array) -> Leak | None:
    correlation = abs(float(np.corrcoef(stats.rankdata(values), stats.rankdata(targets))[0, 1]))
    return ("rank correlation", correlation) if correlation >= THRESHOLD else None


def _category_accuracy(codes: Array, targets: Array) -> Leak | None:
    labels, sizes = _categories(codes)
    if sizes.mean() < _FEWEST:
        return None
    table = np.zeros((len(sizes), int(targets.max()) + 1))
    np.add.at(table, (labels, targets.astype(int)), 1)
    accuracy = float(table.max(axis=1).sum()) / len(targets)
    return ("accuracy", accuracy) if _beats_majority(accuracy, targets) else None


def _category_variance(codes: Array, targets: Array) -> Leak | None:
    labels, sizes = _categories(codes)
    if sizes.mean() < _FEWEST:
        return None
    residuals = targets - (np.bincount(labels, targets) / sizes)[labels]
    leaks = bool(residuals.var() <= (1 - THRESHOLD) * targets.var())
    return ("R²", 1 - float(residuals.var() / targets.var())) if leaks else None


def _categories(codes: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Renumber categories from 0; return the number of each row, and the number of rows per category."""
    _, labels, sizes = np.unique(codes, return_inverse=True, return_counts=True)
    return labels, sizes


def _beats_majority(accuracy: float, targets: Array) -> bool:
    """Return whether an accuracy avoids nearly all errors of the majority-class baseline."""
    majority_error = 1 - float(np.bincount(targets.astype(int)).max()) / len(targets)
    return majority_error > 0 and 1 - accuracy <= (1 - THRESHOLD) * majority_error


def _no_check(values: Array, targets: Array) -> None:
    """Do nothing, because numeric columns are not checked for multiclass targets."""


_CHECKS: dict[tuple[bool, str], Callable[[Array, Array], Leak | None]] = {
    (False, "binary"): _auroc,
    (False, "multiclass"): _no_check,
    (False, "regression"): _rank_correlation,
    (True, "binary"): _category_accuracy,
    (True, "multiclass"): _category_accuracy,
    (True, "regression"): _category_variance,
}
