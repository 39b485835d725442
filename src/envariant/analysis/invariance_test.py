"""Does the target, given what a model says, still depend on the environment?

If a model's score holds the invariant part of the data and nothing else, then among rows with one score the
target is distributed alike in every environment. A score that leans on a spurious feature says one thing
here and another there. This is tested on rows that were not trained on.
"""

from collections.abc import Sequence
from warnings import catch_warnings, simplefilter

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from envariant.core.tasks import Regression, Task

Array = NDArray[np.float64]

# Weight of the squared coefficients, so weak that it only keeps separable classes from running off.
_WEAK = 1e6


def p_value(task: Task, scores: Sequence[Array], targets: Sequence[Array]) -> float:
    """How likely at least so much dependence on the environment is where there is none.

    The likelihood ratio of a regression of the target on the score for every environment by itself against
    one for all: logistic for classes (multinomial for more than two), and for real targets the F test of
    least squares.

    Args:
        task: what is predicted.
        scores: of every environment, `[rows]` or `[rows, classes]`: logits or predictions.
        targets: of every environment, `[rows]`.

    Returns:
        p, between 0 and 1; 1 where there is one environment.
    """
    if len(scores) < 2:
        return 1.0
    columns = [_columns(score) for score in scores]
    whole = np.concatenate(columns)
    center, spread = whole.mean(axis=0), whole.std(axis=0)
    # A score that says nothing at all is one number for all rows, and no column.
    kept = spread > 1e-12 * (1 + np.abs(center))
    columns = [((c - center) / np.where(kept, spread, 1.0))[:, kept] for c in columns]
    groups, width = len(columns), 1 + int(kept.sum())
    pooled = (np.concatenate(columns), np.concatenate(list(targets)))
    if isinstance(task, Regression):
        restricted = _squares(*pooled)
        free = sum(_squares(c, y) for c, y in zip(columns, targets, strict=True))
        rows, extra = len(pooled[1]), width * (groups - 1)
        left = rows - width * groups
        if left <= 0 or free <= 0:
            return 1.0
        return float(stats.f.sf((restricted - free) / extra / (free / left), extra, left))
    classes = len(np.unique(pooled[1]))
    if classes < 2:
        return 1.0
    free = sum(_log_likelihood(c, y) for c, y in zip(columns, targets, strict=True))
    ratio = 2 * (free - _log_likelihood(*pooled))
    return float(stats.chi2.sf(max(0.0, ratio), width * (classes - 1) * (groups - 1)))


def _columns(score: Array) -> Array:
    if score.ndim == 1:
        return score[:, None]
    # Only differences between logits mean anything.
    return (score - score[:, -1:])[:, :-1]


def _log_likelihood(columns: Array, targets: Array) -> float:
    """Of the best logistic regression."""
    classes, labels = np.unique(targets, return_inverse=True)
    if len(classes) < 2:
        return 0.0
    if not columns.shape[1]:
        shares = np.bincount(labels) / len(labels)
        return float(np.log(shares[labels]).sum())
    model = LogisticRegression(C=_WEAK, max_iter=1000, tol=1e-8)
    with catch_warnings():
        # Where classes can be told apart without a mistake, there is no end to it; near it is near enough.
        simplefilter("ignore", ConvergenceWarning)
        model.fit(columns, labels)
    z = model.decision_function(columns)
    if z.ndim == 1:
        z = np.column_stack([np.zeros(len(z)), z])
    return float(log_softmax(z, axis=1)[np.arange(len(labels)), labels].sum())


def _squares(columns: Array, targets: Array) -> float:
    """Sum of squares that a straight line leaves."""
    design = np.column_stack([np.ones(len(targets)), columns])
    best = np.linalg.lstsq(design, targets, rcond=None)[0]
    return float(np.square(targets - design @ best).sum())
