"""Linear model that omits inputs whose slopes differ between the training environments.

Inputs are selected on the training environments only, so the selection can be validated in test environments.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import stats
from scipy.special import expit

from envariant.analysis.random_effects import pool_estimates
from envariant.analysis.statistics import holm
from envariant.core import specs
from envariant.core.environments import EnvironmentSet
from envariant.core.tasks import Regression
from envariant.predictors.base import FittedPredictor, Predictor, pooled, row_groups
from envariant.predictors.linear import MOST_TESTED, fit_linear

Array = NDArray[np.float64]

# Precision of the Gaussian prior of a slope; inputs are standardized.
_PRECISION = 1.0
# An environment has a slope of an input if its rows determine the slope more than the prior does, and at
# least this many rows contribute to it.
_SMALLEST_SHARE, _FEWEST_ROWS = 0.5, 5.0
# Unstable slopes have a standard deviation between environments of more than this share of their mean.
_NOTABLE = 0.5
# Largest number of rows of each environment, and of rounds of tests, to limit the time.
_MOST_ROWS = 5_000
_MOST_STEPS = 50


@final
@dataclass(frozen=True)
class StableColumns(Predictor):
    """Ridge or logistic regression on the inputs with stable slopes.

    In each training environment e, the slopes β_e of all inputs are estimated jointly by linear or logistic
    regression, with the prior N(β, 1) around the common slopes β of all environments. Each input j is tested
    by Cochran's Q = Σ_e (β_ej − β̄_j)² / v_ej (Cochran 1954), with weighted mean β̄_j, sampling variances
    v_ej, and Holm correction over inputs. Among the significant inputs whose slopes vary notably (standard
    deviation between environments τ > |β̄|/2), the most significant one is omitted. The remaining inputs are
    then tested again, until no input is omitted. Finally, `linear` is fitted to the remaining inputs.

    Attributes:
        level: Significance level of the tests.
        name: Name shown in tables.
    """

    minimum_environments: ClassVar[int] = 2

    level: Annotated[float, Field(gt=0, lt=1)] = 0.05
    name: str = "stable-columns"

    def __post_init__(self) -> None:
        specs.validate(self, self.name)

    def fit(self, environments: EnvironmentSet, seed: int) -> FittedPredictor:
        inputs, targets, weights = pooled(environments)
        x, y = inputs.double().numpy(), targets.numpy()
        w = None if weights is None else weights.double().numpy()
        codes = np.repeat(
            np.arange(len(environments.names)), [len(each) for each in environments.environments]
        )
        logistic = not isinstance(environments.task, Regression)
        rows = _some_rows(codes, seed)
        case_weights = np.ones(len(x)) if w is None else w
        problem = _Problem(x[rows], y[rows], case_weights[rows], codes[rows], logistic=logistic)
        left_out, groups = problem.unstable(self.level), row_groups(environments)
        return fit_linear(environments.task, x, y, w, seed, left_out, groups)


@final
class _Problem:
    """Test of all inputs for stable slopes, by one regression in each environment.

    With several classes, there is one regression for each class against the most frequent class, which
    estimates the slopes of multinomial regression (Begg & Gray 1984).

    Args:
        inputs: Inputs, `[rows, width]`.
        targets: Numbers or classes, `[rows]`.
        weights: Sample weights, `[rows]`.
        codes: Environment of each row, `[rows]`.
        logistic: Whether targets are classes.
    """

    def __init__(
        self, inputs: Array, targets: NDArray[Any], weights: Array, codes: NDArray[Any], *, logistic: bool
    ) -> None:
        sd = inputs.std(axis=0)
        self._x = (inputs - inputs.mean(axis=0)) / np.where(sd > 1e-12, sd, 1.0)
        self._w, self._codes, self._logistic = weights / weights.mean(), codes, logistic
        every = np.flatnonzero(weights > 0)
        if logistic:
            labels, counts = np.unique(targets, return_counts=True)
            reference = labels[counts.argmax()]
            others = [label for label in labels if label != reference]
            members = [every[np.isin(targets[every], (label, reference))] for label in others]
            self._regressions = [
                (rows, (targets[rows] == label).astype(np.float64))
                for rows, label in zip(members, others, strict=True)
            ]
        else:
            y = targets[every].astype(np.float64)
            self._regressions = [(every, (y - y.mean()) / (y.std() or 1.0))]

    def unstable(self, level: float) -> tuple[int, ...]:
        """Return the positions of the unstable inputs."""
        left: list[int] = []
        used = np.arange(self._x.shape[1])
        if len(used) > MOST_TESTED:
            return ()
        for _ in range(_MOST_STEPS):
            p_values = np.min([np.ones(len(used)), *self._tests(used)], axis=0)
            significant = np.array(holm(p_values.tolist())) < level
            if not significant.any():
                break
            worst = int(p_values.argmin())
            left.append(int(used[worst]))
            used = np.delete(used, worst)
            if not len(used):
                break
        return tuple(sorted(left))

    def _tests(self, used: NDArray[Any]) -> list[Array]:
        """Return the p-value of each input in each regression; 1 if its slopes do not vary notably."""
        results: list[Array] = []
        for rows, y in self._regressions:
            codes = self._codes[rows]
            members = [np.flatnonzero(codes == k) for k in np.unique(codes)]
            x, w = self._x[np.ix_(rows, used)], self._w[rows]
            center = self._common_slopes(x, y, w, members)
            fits = [self._slopes(x[own], y[own], w[own], center) for own in members]
            slopes, errors, inverse_df = (np.array(part) for part in zip(*fits, strict=True))
            p_values = np.ones(len(used))
            for j in range(len(used)):
                measured = np.isfinite(errors[:, j])
                if measured.sum() < 2:
                    continue
                theta, error = slopes[measured, j], errors[measured, j]
                summary = pool_estimates(theta, error, heterogeneity="dersimonian-laird")
                if summary.between_sd > _NOTABLE * abs(summary.mean):
                    p = _homogeneity(summary.q, 1 / np.square(error), inverse_df[measured])
                    p_values[j] = min(1.0, p * len(self._regressions))
            results.append(p_values)
        return results

    def _common_slopes(self, x: Array, y: Array, w: Array, members: list[NDArray[Any]]) -> Array:
        """Fit one regression to all environments, with one intercept per environment; return the slopes."""
        intercepts = np.zeros((len(y), len(members)))
        for k, rows in enumerate(members):
            intercepts[rows, k] = 1.0
        design = np.hstack([x, intercepts])
        precision = np.append(np.full(x.shape[1], _PRECISION), np.full(len(members), 1e-2))
        return _fit(design, y, w, np.zeros(design.shape[1]), precision, self._logistic)[0][: x.shape[1]]

    def _slopes(self, x: Array, y: Array, w: Array, center: Array) -> tuple[Array, Array, float]:
        """Return slopes and standard errors in one environment, and 1 / degrees of freedom.

        Standard errors are NaN if there are too few rows to estimate the slopes. The degrees of freedom are
        those of the estimated noise variance.
        """
        none, inverse_df = np.full(len(center), np.nan), 0.0
        if len(y) < _FEWEST_ROWS or not np.ptp(y):
            return none, none, 0.0
        w = w / w.mean()
        x = x - w @ x / w.sum()
        design, prior = np.column_stack([x, np.ones(len(y))]), np.append(center, 0.0)
        precision = np.append(np.full(len(center), _PRECISION), 1e-2)
        slopes, information = _fit(design, y, w, prior, precision, self._logistic)
        inverse = np.linalg.inv(information + np.diag(precision))
        # Sampling variance around the prior mean, if the slopes of all environments are equal.
        variance = np.diagonal(inverse @ information @ inverse) * (np.square(w).sum() / w.sum())
        if not self._logistic:
            free = len(y) - float(np.trace(inverse @ information))
            if free <= 3:
                return none, none, 0.0
            variance = variance * float(w @ np.square(y - design @ slopes)) / free
            inverse_df = 1 / free
        fourth = np.square(np.square(x)).sum(axis=0)
        rows = np.square(np.square(x).sum(axis=0)) / np.maximum(fourth, 1e-300)
        share = 1 - precision * np.diagonal(inverse)
        measured = (share[:-1] >= _SMALLEST_SHARE) & (rows >= _FEWEST_ROWS) & (variance[:-1] > 0)
        return slopes[:-1], np.where(measured, np.sqrt(np.abs(variance[:-1])), np.nan), inverse_df


def _homogeneity(q: float, weights: Array, inverse_df: Array) -> float:
    """Return the p-value of Cochran's Q with estimated variances (Welch 1951).

    For E environments e with weights w_e (sum W) and degrees of freedom df_e, F = Q/(E−1) / (1 + 2 (E−2) A)
    with A = Σ_e (1 − w_e/W)² / df_e / (E²−1) has an F distribution with E−1 and 1/(3A) degrees of freedom.
    """
    n = len(weights)
    a = float((np.square(1 - weights / weights.sum()) * inverse_df).sum()) / (n**2 - 1)
    if not a:
        return float(stats.chi2.sf(q, n - 1))
    return float(stats.f.sf(q / (n - 1) / (1 + 2 * (n - 2) * a), n - 1, 1 / (3 * a)))


def _fit(
    design: Array, y: Array, w: Array, center: Array, precision: Array, logistic: bool
) -> tuple[Array, Array]:
    """Fit a regression with a Gaussian prior; return the coefficients and the data's information matrix."""
    if not logistic:
        information = design.T @ (w[:, None] * design)
        right = design.T @ (w * y) + precision * center
        solution: Any = np.linalg.solve(information + np.diag(precision), right)
        return solution, information
    beta: Array = center
    information = np.zeros((len(center), len(center)))
    for _ in range(25):
        p: Array = expit(design @ beta)
        information = design.T @ ((w * np.maximum(p * (1 - p), 1e-6))[:, None] * design)
        gradient = design.T @ (w * (y - p)) - precision * (beta - center)
        step: Any = np.linalg.solve(information + np.diag(precision), gradient)
        # Limit the step, because a valid step never changes a standardized slope by more than 3.
        beta = beta + step * min(1.0, 3.0 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-6:
            break
    return beta, information


def _some_rows(codes: NDArray[Any], seed: int) -> NDArray[np.int64]:
    """Sample a limited number of rows from each environment at random."""
    draw = np.random.default_rng(seed)
    members = [np.flatnonzero(codes == k) for k in np.unique(codes)]
    return np.concatenate(
        [m if len(m) <= _MOST_ROWS else np.sort(draw.choice(m, _MOST_ROWS, replace=False)) for m in members]
    )
