"""Linear and logistic regression with shared coefficients and environment-specific coefficients.

The coefficients of one environment at a time are eliminated from the normal equations, so the cost is linear
in the number of environments.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_MAX_ITERATIONS = 30
_LARGEST_STEP = 3.0
# Precision of the prior of common coefficients and of intercepts, for standardized columns.
_RIDGE = 0.5
_INTERCEPT_RIDGE = 0.05
# Residual variances are estimated as if this many additional rows had the common variance.
_PRIOR_ROWS = 5.0


@final
@dataclass(frozen=True, eq=False)
class EnvironmentFit:
    """Fitted linear or logistic regression; rows are sorted by environment.

    Attributes:
        common: Columns with shared coefficients, `[rows, common]`.
        own: Columns with environment-specific coefficients, `[rows, own]`; the first column is all ones.
        parts: Slice of the rows of each environment.
        common_slopes: Shared coefficients, `[common]`.
        own_slopes: Environment-specific coefficients, `[environments, own]`.
        linear: Linear predictor (for 0/1 targets, the log-odds), `[rows]`.
        residuals: Targets minus predictions, `[rows]`. For real-valued targets, they are divided by the
            residual variance of the row's environment.
        weights: Variance of each residual under the model, `[rows]`.
    """

    common: Array
    own: Array
    parts: Sequence[slice]
    common_slopes: Array
    own_slopes: Array
    linear: Array
    residuals: Array
    weights: Array
    _own_inverses: Array
    _cross: Array
    _common_inverse: Array

    def project(self, residuals: Array) -> Array:
        """Return the residuals that remain after a refit to each simulation, `[rows, simulations]`.

        Args:
            residuals: Simulated residuals before the refit, `[rows, simulations]`.
        """
        total = self.common.T @ residuals
        steps: list[Array] = []
        for e, rows in enumerate(self.parts):
            steps.append(self._own_inverses[e] @ (self.own[rows].T @ residuals[rows]))
            total -= self._cross[e] @ steps[e]
        slopes = self._common_inverse @ total
        projected = self.common @ slopes
        for e, rows in enumerate(self.parts):
            own = steps[e] - self._own_inverses[e] @ (self._cross[e].T @ slopes)
            projected[rows] += self.own[rows] @ own
        return residuals - self.weights[:, None] * projected

    def leverage(self) -> Array:
        """Return the leverage of each row, `[rows]`: the effect of its target on its prediction."""
        shares = np.zeros(len(self.linear))
        for e, rows in enumerate(self.parts):
            own, inverse = self.own[rows], self._own_inverses[e]
            rest = self.common[rows] - own @ (inverse @ self._cross[e].T)
            shares[rows] = ((own @ inverse) * own).sum(1) + ((rest @ self._common_inverse) * rest).sum(1)
        return np.clip(shares * self.weights, 0.0, 0.9)

    def variation(self, columns: Array) -> Array:
        """Return the Fisher information about each column's slope by environment, `[environments, columns]`.

        Each column is treated as the only one added to the model. The information is reduced by what the
        environment-specific coefficients explain of the column, but not by what the shared ones explain.

        Args:
            columns: Values of the columns, `[rows, columns]`.
        """
        result = np.zeros((len(self.parts), columns.shape[1]))
        for e, rows in enumerate(self.parts):
            part, weights = columns[rows], self.weights[rows][:, None]
            cross = self.own[rows].T @ (part * weights)
            explained = (cross * (self._own_inverses[e] @ cross)).sum(0)
            result[e] = (part * part * weights).sum(0) - explained
        return np.maximum(result, 0.0)


def fit_environments(
    common: Array,
    own: Array,
    targets: Array,
    parts: Sequence[slice],
    *,
    own_precision: Array,
    binary: bool,
) -> EnvironmentFit:
    """Fit a penalized logistic (binary) or linear regression by Newton steps.

    Args:
        common: Columns with shared coefficients, `[rows, common]`.
        own: Columns with environment-specific coefficients, without the intercept, `[rows, own]`.
        targets: Targets, `[rows]`.
        parts: Slice of the rows of each environment.
        own_precision: Inverse variances of the zero-mean Gaussian priors of the environment-specific
            coefficients, `[own]`.
        binary: Whether targets are 0 and 1.
    """
    own = np.column_stack([np.ones(len(targets)), own])
    mean = float(np.clip(targets.mean(), 1e-3, 1 - 1e-3)) if binary else float(targets.mean())
    level = np.log(mean / (1 - mean)) if binary else mean
    precision = np.append(_INTERCEPT_RIDGE if binary else 1e-6, own_precision)
    slopes = np.zeros(common.shape[1])
    own_slopes = np.zeros((len(parts), own.shape[1]))
    own_slopes[:, 0] = level
    weights, variances = np.ones(len(targets)), np.ones(len(targets))
    linear, residuals = np.zeros(len(targets)), targets
    inverses, common_inverse = np.zeros(0), np.zeros(0)
    cross: list[Array] = []
    for iteration in range(_MAX_ITERATIONS):
        linear = common @ slopes
        for e, rows in enumerate(parts):
            linear[rows] += own[rows] @ own_slopes[e]
        if binary:
            fitted = 1 / (1 + np.exp(-np.clip(linear, -30, 30)))
            residuals, weights = targets - fitted, np.maximum(fitted * (1 - fitted), 1e-9)
        else:
            if iteration:
                variances = _variances(targets - linear, parts)
            residuals, weights = (targets - linear) / variances, 1 / variances
        weighted = own * weights[:, None]
        inverses, cross = np.zeros((len(parts), len(precision), len(precision))), []
        root = common * np.sqrt(weights)[:, None]
        # A product of an array with itself takes half the time of other products.
        schur = root.T @ root + np.diag(np.full(common.shape[1], _RIDGE))
        gradient = common.T @ residuals - _RIDGE * slopes
        own_steps: list[Array] = []
        for e, rows in enumerate(parts):
            inverses[e] = np.linalg.inv(own[rows].T @ weighted[rows] + np.diag(precision))
            cross.append(common[rows].T @ weighted[rows])
            deviation = own_slopes[e] - np.append(level, np.zeros(len(precision) - 1))
            own_steps.append(inverses[e] @ (own[rows].T @ residuals[rows] - precision * deviation))
            schur -= cross[e] @ inverses[e] @ cross[e].T
            gradient -= cross[e] @ own_steps[e]
        common_inverse = np.linalg.inv(schur)
        step = common_inverse @ gradient
        steps = np.array([own_steps[e] - inverses[e] @ (cross[e].T @ step) for e in range(len(parts))])
        largest = max(float(np.abs(step).max(initial=0.0)), float(np.abs(steps).max()))
        if largest < 1e-6 or (not binary and iteration == 3):
            break
        # Short steps keep Newton's method from overshooting.
        shortened = min(1.0, _LARGEST_STEP / largest) if binary else 1.0
        slopes, own_slopes = slopes + shortened * step, own_slopes + shortened * steps
    return EnvironmentFit(
        common, own, parts, slopes, own_slopes, linear, residuals, weights,
        inverses, np.array(cross), common_inverse,
    )  # fmt: skip


def firth_slopes(
    columns: Array, targets: Array, offset: Array, parts: Sequence[slice]
) -> tuple[Array, Array]:
    """Fit a logistic regression on each single column in each environment; return slopes and their errors.

    Each regression has one slope, an intercept and a fixed offset. It is fitted by Firth's penalized
    likelihood, so slopes are finite and nearly unbiased in small samples.

    Args:
        columns: Values of the columns, `[rows, columns]`.
        targets: Targets 0 and 1, `[rows]`.
        offset: Fixed part of the log-odds in the regression on each column, `[rows, columns]`.
        parts: Slice of the rows of each environment.

    Returns:
        Slopes and their standard errors, each `[environments, columns]`.
    """
    slopes, errors = (np.zeros((len(parts), columns.shape[1])) for _ in range(2))
    for e, rows in enumerate(parts):
        if rows.start == rows.stop:
            slopes[e], errors[e] = np.nan, np.inf
            continue
        x, y, fixed = columns[rows], targets[rows][:, None], offset[rows]
        a, b, power = (np.zeros(x.shape[1]) for _ in range(3))
        for _ in range(25):
            fitted = 1 / (1 + np.exp(-np.clip(fixed + a + b * x, -30, 30)))
            weights = np.maximum(fitted * (1 - fitted), 1e-9)
            total = weights.sum(0)
            mean = (weights * x).sum(0) / total
            centered = x - mean
            power = np.maximum((weights * centered**2).sum(0), 1e-9)
            leverage = weights * (1 / total + centered**2 / power)
            score = y - fitted + leverage * (0.5 - fitted)
            slope_step = np.clip((score * centered).sum(0) / power, -2, 2)
            level_step = np.clip(score.sum(0) / total, -2, 2) - mean * slope_step
            a, b = a + level_step, b + slope_step
            if np.abs(slope_step).max() < 1e-5:
                break
        slopes[e], errors[e] = b, 1 / np.sqrt(power)
    return slopes, errors


def linear_slopes(
    columns: Array, targets: Array, offset: Array, parts: Sequence[slice]
) -> tuple[Array, Array]:
    """Fit regressions as in `firth_slopes`, but by least squares; return slopes and HC3 standard errors."""
    slopes, errors = (np.zeros((len(parts), columns.shape[1])) for _ in range(2))
    for e, rows in enumerate(parts):
        x, rest = columns[rows] - columns[rows].mean(0), targets[rows][:, None] - offset[rows]
        rest = rest - rest.mean(0)
        power = np.maximum((x * x).sum(0), 1e-9)
        slopes[e] = (x * rest).sum(0) / power
        leverage = np.minimum(1 / len(x) + x * x / power, 0.9)
        residuals = (rest - slopes[e] * x) / (1 - leverage)
        errors[e] = np.maximum(np.sqrt(((x * residuals) ** 2).sum(0)) / power, 1e-9)
    return slopes, errors


def _variances(residuals: Array, parts: Sequence[slice]) -> Array:
    """Return, for each row, the variance of the residuals in the row's environment, `[rows]`."""
    pooled = max(float(np.square(residuals).mean()), 1e-12)
    result = np.empty(len(residuals))
    for rows in parts:
        own = float(np.square(residuals[rows]).sum())
        result[rows] = (own + _PRIOR_ROWS * pooled) / (rows.stop - rows.start + _PRIOR_ROWS)
    return result
