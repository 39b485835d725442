"""Test whether the target, given a model's score, still depends on the environment.

If a score depends only on invariant features, then rows with equal scores have the same target distribution
in every environment. Use rows that were not used for training.
"""

from dataclasses import dataclass
from typing import final
from warnings import catch_warnings, simplefilter

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from envariant.core.errors import EnvariantError

Array = NDArray[np.float64]

# Inverse strength of the L2 penalty, which only serves to bound the coefficients of separable classes.
_INVERSE_PENALTY = 1e6


@final
@dataclass(frozen=True)
class InvarianceTest:
    """Test of the hypothesis that P(target | score) is equal in all environments.

    Attributes:
        p_value: P-value between 0 and 1; 1 if the hypothesis cannot be tested.
        statistic: Likelihood ratio (classes) or F statistic (regression); NaN if not tested.
        degrees_of_freedom: `(numerator,)` of the χ² distribution, or `(numerator, denominator)` of F.
    """

    p_value: float
    statistic: float = float("nan")
    degrees_of_freedom: tuple[int, ...] = ()


_UNTESTED = InvarianceTest(1.0)


def assess_invariance(
    scores: ArrayLike, targets: ArrayLike, environments: ArrayLike, *, regression: bool = False
) -> InvarianceTest:
    """Test whether the relation of score and target differs between environments.

    Separate regressions of the target on the score in each environment are compared with a joint regression:
    by the likelihood ratio 2(Σ_e ℓ_e − ℓ), χ²-distributed, of (multinomial) logistic regressions; or, for
    real targets, by the F test of least squares (Chow 1960).

    Args:
        scores: Logits or predictions, `[rows]` or `[rows, classes]`.
        targets: Class numbers or real targets, `[rows]`.
        environments: Environment of each row, `[rows]`.
        regression: Whether targets are real numbers rather than classes.

    Returns:
        The test; its p-value is 1 with a single environment or a constant target.

    Raises:
        EnvariantError: If `scores`, `targets` and `environments` differ in length.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> score, environment = rng.normal(size=400), np.repeat(["north", "south"], 200)
        >>> sign = np.where(environment == "north", 1, -1)
        >>> target = (sign * score + 0.5 * rng.normal(size=400) > 0).astype(int)
        >>> assess_invariance(score, target, environment).p_value < 0.001
        True
    """
    z, y, labels = np.asarray(scores), np.asarray(targets), np.asarray(environments)
    if not len(z) == len(y) == len(labels):
        raise EnvariantError(
            f"assess_invariance: scores, targets and environments must have equal lengths; got "
            f"{len(z)}, {len(y)} and {len(labels)}"
        )
    names, codes = np.unique(labels, return_inverse=True)
    n_classes = 0 if regression else len(np.unique(y))
    if len(names) < 2 or n_classes == 1:
        return _UNTESTED
    # Only differences between the logits of a row matter.
    columns = _standardized(z[:, None] if z.ndim == 1 else (z - z[:, -1:])[:, :-1])
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes))[:-1]
    groups = list(zip(np.split(columns[order], ends), np.split(y[order], ends), strict=True))
    fit = _squared_error if regression else _log_likelihood
    separate, joint = sum(fit(*group) for group in groups), fit(columns[order], y[order])
    width = 1 + columns.shape[1]
    extra = width * (len(groups) - 1)
    if not regression:
        ratio, extra = max(0.0, 2 * (separate - joint)), extra * (n_classes - 1)
        return InvarianceTest(float(stats.chi2.sf(ratio, extra)), ratio, (extra,))
    residual = len(y) - width * len(groups)
    if residual <= 0 or separate <= 0:
        return _UNTESTED
    ratio = (joint - separate) / extra / (separate / residual)
    return InvarianceTest(float(stats.f.sf(ratio, extra, residual)), ratio, (extra, residual))


def _standardized(columns: Array) -> Array:
    """Return the columns standardized to mean 0 and standard deviation 1, without constant columns."""
    center, spread = columns.mean(axis=0), columns.std(axis=0)
    varies = spread > 1e-12 * (1 + np.abs(center))
    return ((columns - center) / np.where(varies, spread, 1.0))[:, varies]


def _log_likelihood(columns: Array, targets: Array) -> float:
    """Return the log-likelihood of the fitted logistic regression."""
    classes, labels = np.unique(targets, return_inverse=True)
    if len(classes) < 2:
        return 0.0
    if not columns.shape[1]:
        shares = np.bincount(labels) / len(labels)
        return float(np.log(shares[labels]).sum())
    model = LogisticRegression(C=_INVERSE_PENALTY, max_iter=1000, tol=1e-8)
    with catch_warnings():
        # Separable classes have no finite optimum; the likelihood approaches its limit early.
        simplefilter("ignore", ConvergenceWarning)
        model.fit(columns, labels)
    z = model.decision_function(columns)
    if z.ndim == 1:
        z = np.column_stack([np.zeros(len(z)), z])
    return float(log_softmax(z, axis=1)[np.arange(len(labels)), labels].sum())


def _squared_error(columns: Array, targets: Array) -> float:
    """Return the residual sum of squares of the least-squares fit."""
    design = np.column_stack([np.ones(len(targets)), columns])
    coefficients = np.linalg.lstsq(design, targets, rcond=None)[0]
    return float(np.square(targets - design @ coefficients).sum())
