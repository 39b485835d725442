"""Choose the metric of the scores from the target and the environments."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from envariant.core import metrics
from envariant.core.metrics import Metric
from envariant.core.tasks import Task
from envariant.data.tables.table import Table

# Share of the rarer of two classes below which AUROC replaces accuracy.
_RARE = 0.2
# AUROC replaces accuracy if the share of a class differs between environments by at least this much, and
# significantly at this level.
_PREVALENCE_DIFFERENCE, _PREVALENCE_LEVEL = 0.1, 0.01


def choose_metric(name: str | None, table: Table, task: Task) -> Metric:
    """Return the metric with the given name, or the default metric for the target.

    The default is RMSE for regression and accuracy for classes, except in two cases, where it is AUROC: the
    rarer of two classes has less than 20 % of the rows, or `prevalence_differs` is true. If class shares
    differ between environments, accuracy changes even if the model's ranking is unchanged.

    Raises:
        EnvariantError: If the metric is unknown or does not apply to the task.
    """
    if name is None and table.task == "regression":
        name = "RMSE"
    if name is None:
        name = "AUROC" if prevalence_matters(table.targets(), table.environment.values) else "accuracy"
    return metrics.metric(name, task)


def prevalence_matters(targets: NDArray[Any], environments: NDArray[Any]) -> bool:
    """Return whether accuracy would mainly reflect class shares.

    This is the case if the rarer of two classes has less than 20 % of the rows, or `prevalence_differs`.

    Args:
        targets: Class index of each row, `[rows]`.
        environments: Index of the environment of each row, `[rows]`.
    """
    counts = np.unique(targets, return_counts=True)[1]
    rare = len(counts) == 2 and counts.min() < _RARE * len(targets)
    return bool(rare) or prevalence_differs(targets, environments)


def prevalence_differs(targets: NDArray[Any], environments: NDArray[Any]) -> bool:
    """Return whether class shares of environments differ significantly, and for some class by 0.1 or more.

    Args:
        targets: Class index of each row, `[rows]`.
        environments: Index of the environment of each row, `[rows]`.
    """
    classes, codes = (np.unique(each, return_inverse=True)[1] for each in (targets, environments))
    counts = np.zeros((codes.max() + 1, classes.max() + 1))
    np.add.at(counts, (codes, classes), 1)
    shares = counts / counts.sum(axis=1, keepdims=True)
    if np.ptp(shares, axis=0).max() < _PREVALENCE_DIFFERENCE or min(counts.shape) < 2:
        return False
    test: Any = stats.chi2_contingency(counts, correction=False)
    return bool(test.pvalue < _PREVALENCE_LEVEL)
