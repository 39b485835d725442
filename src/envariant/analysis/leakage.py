"""Detect possible target leakage: columns that nearly determine the target."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from envariant.analysis._columns import typed
from envariant.core.errors import EnvariantError, unknown_name

Array = NDArray[Any]
Measure = Literal["missingness", "AUROC", "rank correlation", "accuracy", "R²"]

THRESHOLD = 0.99
"""Smallest score reported as leakage; for accuracies, smallest share of avoided baseline errors."""

# Smallest number of rows in a column, and smallest mean number of rows per category.
_FEWEST = 30
_MOST_BINS = 50
# A group leaks only if it avoids this share of the error of its best column, and is no larger than this. A
# larger group is reported if it determines a real target exactly, because it then adds up to the target.
_AVOIDED, _LARGEST_GROUP, _LARGEST_SUM, _EXACT = 0.75, 4, 40, 0.9999
# Largest numbers of rows and of columns in a full fit; with more columns, a greedy selection is fitted.
_MOST_ROWS, _MOST_COLUMNS, _SELECTED = 5_000, 100, 12


@final
@dataclass(frozen=True)
class LeakyColumn:
    """Column that alone nearly determines the target.

    Attributes:
        column: Name of the column.
        measure: Measure of the relation with the target: "AUROC", "rank correlation" (absolute value), "R²"
            (share of the target's variance explained by categories), "accuracy" (predicting the most frequent
            class of each category) or "missingness" (accuracy of predicting the target from whether the value
            is missing).
        score: Value of the measure, between 0 and 1.
    """

    column: str
    measure: Measure
    score: float


@final
@dataclass(frozen=True)
class LeakyGroup:
    """Smallest group of columns whose linear combination nearly determines the target.

    Attributes:
        columns: Names of the columns.
        measure: "AUROC" for binary targets, "R²" for real-valued targets, on rows not used for the fit.
        score: Value of the measure, between 0 and 1.
    """

    columns: tuple[str, ...]
    measure: Measure
    score: float


def leaky_columns(
    columns: Mapping[str, ArrayLike],
    targets: ArrayLike,
    *,
    task: Literal["binary", "multiclass", "regression"],
    categorical: Collection[str] = (),
    threshold: float = THRESHOLD,
) -> tuple[LeakyColumn, ...]:
    """Find columns that nearly determine the target.

    Such a column is often a copy of the target, derived from the target, or known only after the target.
    Numeric columns are checked by ranks; for multiclass targets, a decision tree divides them into intervals,
    which are checked like categories. For binary targets, the function also checks whether missing values
    predict the target.

    Args:
        columns: Values by column name, `[rows]`. NaN, None and negative category codes are missing
            values.
        targets: Class indices from 0, or real-valued targets, `[rows]`.
        task: Kind of target.
        categorical: Names of numeric columns with category codes. Text columns are always categorical.
        threshold: Smallest score to report. Scores that are accuracies are instead compared with the
            majority-class baseline: the column must avoid at least this share of the baseline's errors.

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
            raise EnvariantError(
                f"leaky_columns: '{name}' has {len(values)} rows, but 'targets' has {len(y)}"
            )
        present = values >= 0 if is_category else ~np.isnan(values)
        leak = _missingness(present, y, threshold) if task == "binary" else None
        if leak is None and present.sum() >= _FEWEST and np.ptp(y[present]) and np.ptp(values[present]):
            leak = _CHECKS[is_category, task](values[present], y[present], threshold)
        if leak is not None:
            leaks.append(LeakyColumn(name, *leak))
    return tuple(leaks)


def leaky_group(
    columns: Mapping[str, ArrayLike],
    targets: ArrayLike,
    *,
    task: Literal["binary", "regression"],
    seed: int = 0,
) -> LeakyGroup | None:
    """Find the smallest group of numeric columns that together nearly determine the target.

    An example is two counts whose sum is the target. A linear or logistic regression is fitted to one half of
    the rows and scored on the other half; columns are removed while the score stays above 0.99. A group of
    more than 4 columns is reported only if it determines a real-valued target exactly; otherwise, it may
    simply be a good model. If a single column nearly determines the target, nothing is reported; remove
    columns found by `leaky_columns` first.

    Args:
        columns: Values by column name, `[rows]`; missing values are replaced by the mean. Non-numeric
            columns are ignored.
        targets: Targets 0 and 1, or real-valued targets, `[rows]`.
        task: Kind of target.
        seed: Seed of the division of the rows into halves.

    Returns:
        Group of at least two columns; None if there is no such group.

    Raises:
        EnvariantError: If a column does not have one value per target.

    Example:
        >>> import numpy as np
        >>> casual, registered, wind = np.random.default_rng(0).poisson(50, size=(3, 400))
        >>> columns = {"casual": casual, "wind": wind, "registered": registered}
        >>> leaky_group(columns, casual + registered, task="regression")
        LeakyGroup(columns=('casual', 'registered'), measure='R²', score=1.0)
    """
    y = np.asarray(targets).astype(np.float64)
    numeric: dict[str, Array] = {}
    for name, array in columns.items():
        kind, values, _ = typed(array)
        if len(values) != len(y):
            raise EnvariantError(f"leaky_group: '{name}' has {len(values)} rows, but 'targets' has {len(y)}")
        if kind != "category" and np.isfinite(values).any():
            filled = np.where(np.isfinite(values), values, values[np.isfinite(values)].mean())
            if filled.std() > 0:
                numeric[name] = (filled - filled.mean()) / filled.std()
    rows = np.random.default_rng(seed).permutation(len(y))[:_MOST_ROWS]
    fit, check = rows[::2], rows[1::2]
    if len(numeric) < 2 or len(check) < _FEWEST or np.ptp(y[fit]) == 0 or np.ptp(y[check]) == 0:
        return None
    return _smallest_group(np.column_stack(list(numeric.values())), tuple(numeric), y, fit, check, task)


def _smallest_group(
    x: Array, names: tuple[str, ...], y: Array, fit: Array, check: Array, task: str
) -> LeakyGroup | None:
    """Remove columns one by one from a regression while the score stays high; None if it is never high."""

    def score(group: list[int]) -> tuple[float, Array]:
        if task == "regression":
            design = np.column_stack([np.ones(len(fit)), x[fit][:, group]])
            slopes = np.linalg.lstsq(design, y[fit], rcond=None)[0]
            residuals = y[check] - slopes[0] - x[check][:, group] @ slopes[1:]
            return 1 - float(residuals.var() / y[check].var()), slopes[1:]
        model: Any = LogisticRegression(C=100.0, max_iter=200).fit(x[fit][:, group], y[fit])
        return _area(model.decision_function(x[check][:, group]), y[check]), model.coef_[0]

    group = list(range(x.shape[1]))
    if len(group) > min(_MOST_COLUMNS, len(fit) // 5):
        group = _greedy(x[fit], y[fit], min(_SELECTED, len(fit) // 5))
    best, slopes = score(group)
    if best < THRESHOLD:
        return None
    # An exact combination must remain exact when columns are removed.
    lowest = _EXACT if task == "regression" and best >= _EXACT else THRESHOLD
    order = [group[k] for k in np.argsort(np.abs(slopes))]
    for column in order:
        rest = [k for k in group if k != column]
        if len(group) > 2 and score(rest)[0] >= lowest:
            group = rest
    best = score(group)[0]
    single = max(score([k])[0] for k in group)
    largest = _LARGEST_SUM if lowest == _EXACT else _LARGEST_GROUP
    if single >= THRESHOLD or len(group) > largest or 1 - best > (1 - _AVOIDED) * (1 - single):
        return None
    return LeakyGroup(
        tuple(names[k] for k in sorted(group)), "R²" if task == "regression" else "AUROC", round(best, 12)
    )


def _greedy(x: Array, y: Array, count: int) -> list[int]:
    """Select up to `count` columns one by one, each the most correlated with the current residuals."""
    selected: list[int] = []
    residuals = y - y.mean()
    for _ in range(count):
        selected.append(int(np.argmax(np.abs(x.T @ residuals))))
        design = np.column_stack([np.ones(len(y)), x[:, selected]])
        residuals = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    return list(dict.fromkeys(selected))


Leak = tuple[Measure, float]


def _missingness(present: NDArray[np.bool_], targets: Array, threshold: float) -> Leak | None:
    if present.all() or len(targets) < _FEWEST:
        return None
    agreement = float(np.mean(present == targets))
    accuracy = max(agreement, 1 - agreement)
    return ("missingness", accuracy) if _beats_majority(accuracy, targets, threshold) else None


def _auroc(values: Array, targets: Array, threshold: float) -> Leak | None:
    area = _area(values, targets)
    return ("AUROC", max(area, 1 - area)) if max(area, 1 - area) >= threshold else None


def _area(values: Array, targets: Array) -> float:
    ranks, positives = stats.rankdata(values), int(targets.sum())
    wins = ranks[targets == 1].sum() - positives * (positives + 1) / 2
    return float(wins / (positives * (len(targets) - positives)))


def _rank_correlation(values: Array, targets: Array, threshold: float) -> Leak | None:
    correlation = abs(float(np.corrcoef(stats.rankdata(values), stats.rankdata(targets))[0, 1]))
    return ("rank correlation", correlation) if correlation >= threshold else None


def _binned_accuracy(values: Array, targets: Array, threshold: float) -> Leak | None:
    # Use ranks instead of the values, which may be too large for the tree.
    ranks = np.unique(values, return_inverse=True)[1][:, None].astype(np.float32)
    bins = max(2, min(_MOST_BINS, len(values) // _FEWEST))
    tree: Any = DecisionTreeClassifier(max_leaf_nodes=bins, min_samples_leaf=5, random_state=0)
    return _category_accuracy(tree.fit(ranks, targets).apply(ranks), targets, threshold)


def _category_accuracy(codes: Array, targets: Array, threshold: float) -> Leak | None:
    labels, sizes = _categories(codes)
    if sizes.mean() < _FEWEST:
        return None
    table = np.zeros((len(sizes), int(targets.max()) + 1))
    np.add.at(table, (labels, targets.astype(int)), 1)
    accuracy = float(table.max(axis=1).sum()) / len(targets)
    return ("accuracy", accuracy) if _beats_majority(accuracy, targets, threshold) else None


def _category_variance(codes: Array, targets: Array, threshold: float) -> Leak | None:
    labels, sizes = _categories(codes)
    if sizes.mean() < _FEWEST:
        return None
    residuals = targets - (np.bincount(labels, targets) / sizes)[labels]
    leaks = bool(residuals.var() <= (1 - threshold) * targets.var())
    return ("R²", 1 - float(residuals.var() / targets.var())) if leaks else None


def _categories(codes: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Renumber categories from 0; return each row's category, and the number of rows per category."""
    _, labels, sizes = np.unique(codes, return_inverse=True, return_counts=True)
    return labels, sizes


def _beats_majority(accuracy: float, targets: Array, threshold: float) -> bool:
    """Return whether at least a share `threshold` of the majority-class baseline's errors is avoided."""
    majority_error = 1 - float(np.bincount(targets.astype(int)).max()) / len(targets)
    return majority_error > 0 and 1 - accuracy <= (1 - threshold) * majority_error


_CHECKS: dict[tuple[bool, str], Callable[[Array, Array, float], Leak | None]] = {
    (False, "binary"): _auroc,
    (False, "multiclass"): _binned_accuracy,
    (False, "regression"): _rank_correlation,
    (True, "binary"): _category_accuracy,
    (True, "multiclass"): _category_accuracy,
    (True, "regression"): _category_variance,
}
