"""Determine whether each environment has a label, covariate or concept shift relative to the others.

Label shift leaves P(X | Y) unchanged, covariate shift leaves P(Y | X) unchanged, and concept shift changes
both.
"""

from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from envariant.analysis._two_sample import (
    RESAMPLES,
    mean_statistics,
    search_deviating,
    standardized,
    subsample_rows,
    varying_columns,
    with_squares,
)
from envariant.core.errors import EnvariantError

Array = NDArray[np.float64]
Codes = NDArray[np.int64]
Kind = Literal["none", "label", "covariate", "concept"]

# Number of quantile bins of real targets, within which P(X | Y) is compared.
_BINS = 4
# Largest number of columns whose products enter the model of P(Y | X).
_MOST_PAIRED = 12
# Quantiles at which the slope of a column may change in the model of P(Y | X).
_KNOTS = (0.1, 0.3, 0.5, 0.7, 0.9)
_RIDGE = 1.0


@final
@dataclass(frozen=True)
class EnvironmentShift:
    """Kinds of shift of one environment relative to the environments that do not deviate.

    P-values are corrected for the number of environments: statistics are compared with the largest statistic
    of each resample (Westfall & Young 1993).

    Attributes:
        environment: Name of the environment.
        kinds: Detected kinds of shift, with the most consequential one first; empty if none is detected.
        label_p: P-value of the test that P(Y) is unchanged.
        inputs_p: P-value of the test that P(X) is unchanged.
        inputs_given_label_p: P-value of the test that P(X | Y) is unchanged. Methods that correct for label
            shift assume that it is.
        intercept_p: P-value of the test that the intercept of P(Y | X) is unchanged; 1 if the test was
            skipped because P(X | Y) and P(Y) are unchanged in all environments.
        slopes_p: P-value of the test that the slopes of P(Y | X) are unchanged; 1 if the test was skipped for
            the same reason.
    """

    environment: str
    kinds: tuple[Kind, ...]
    label_p: float
    inputs_p: float
    inputs_given_label_p: float
    intercept_p: float
    slopes_p: float

    @property
    def kind(self) -> Kind:
        """Most consequential kind (concept, then label, then covariate shift); "none" without any shift."""
        return self.kinds[0] if self.kinds else "none"


def name_shifts(
    inputs: ArrayLike,
    targets: ArrayLike,
    environments: ArrayLike,
    *,
    regression: bool = False,
    level: float = 0.05,
    seed: int = 0,
) -> tuple[EnvironmentShift, ...]:
    """Determine the kind of shift of every environment by permutation and bootstrap tests.

    To test P(X | Y), the means of inputs x and of x² in an environment are compared with the means over all
    environments, jointly and column by column. They are compared within each class; a real-valued target is
    divided into four classes at its quartiles. Environments are permuted within classes. P(Y) is tested in
    the same way with class indicators. To test P(Y | X), a linear or logistic regression on x, x², hinges and
    products is fitted to all environments. Efficient score tests, with a wild bootstrap of the residuals,
    then detect environments with a different intercept or different slopes. The most deviating environments
    are excluded first, so that they do not make other environments appear to deviate.

    If P(X | Y) is unchanged, a change of P(Y) is usually label shift. It is covariate shift if P(X) has
    changed and P(Y | X) has not. If P(X | Y) has changed, changed slopes are concept shift, a changed
    intercept is label shift, and an unchanged P(Y | X) is covariate shift.

    Args:
        inputs: Numeric columns without missing values, `[rows, columns]`.
        targets: Classes or real-valued targets, `[rows]`.
        environments: Environment of each row, `[rows]`.
        regression: Whether targets are real-valued.
        level: Significance level.
        seed: Seed of the resampling.

    Returns:
        One entry per environment, in the order of their first rows.

    Raises:
        EnvariantError: If lengths differ, a value is missing, or there are fewer than two environments.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> hospital = np.repeat(["A", "B", "C", "D"], 300)
        >>> sick = (rng.random(1200) < np.where(hospital == "D", 0.8, 0.3)).astype(int)
        >>> x = rng.normal(size=(1200, 2)) + sick[:, None]
        >>> [(shift.environment, shift.kind) for shift in name_shifts(x, sick, hospital)]
        [('A', 'none'), ('B', 'none'), ('C', 'none'), ('D', 'label')]
    """
    x, y, labels = np.asarray(inputs, dtype=np.float64), np.asarray(targets), np.asarray(environments)
    if x.ndim != 2 or not len(x) == len(y) == len(labels):
        raise EnvariantError(
            f"name_shifts: needs inputs [rows, columns], targets [rows] and environments [rows]; got shapes "
            f"{x.shape}, {y.shape} and {labels.shape}"
        )
    if not np.isfinite(x).all():
        raise EnvariantError("name_shifts: inputs contain missing or infinite values; fill them first")
    names, first, codes = np.unique(labels, return_index=True, return_inverse=True)
    if len(names) < 2:
        raise EnvariantError("name_shifts: needs at least two environments")
    generator = np.random.default_rng(seed)
    rows = subsample_rows(codes, len(names), generator)
    tests = _p_values(varying_columns(x[rows]), y[rows], codes[rows], level, generator, regression=regression)
    results: list[EnvironmentShift] = []
    for e in np.argsort(first).tolist():
        p_values = [float(test[e]) for test in tests]
        results.append(EnvironmentShift(str(names[e]), _kinds(*p_values, level=level), *p_values))
    return tuple(results)


def _kinds(
    label: float, inputs: float, inputs_given_label: float, intercept: float, slopes: float, *, level: float
) -> tuple[Kind, ...]:
    """Derive the kinds of shift from the p-values of the five tests."""
    # Two tests detect a shift, each at half the level; the other tests only determine its kind.
    if inputs_given_label > level / 2:
        if label > level / 2:
            return ()
        # A change of P(X) may change P(Y) noticeably before P(X | Y): then P(Y | X) is unchanged.
        by_inputs = inputs <= level / 2 and intercept > level and inputs_given_label < intercept
        return ("covariate",) if by_inputs else ("label",)
    kinds: list[Kind] = []
    if slopes <= level:
        kinds.append("concept")
    elif intercept <= level:
        kinds.append("label")
    if not kinds or inputs <= level:
        kinds.append("covariate")
    return tuple(kinds)


def _p_values(
    x: Array, y: NDArray[Any], codes: Codes, level: float, generator: np.random.Generator, *, regression: bool
) -> tuple[Array, ...]:
    """Return the p-values of the five tests, each `[environments]`, in the order of `_kinds`."""
    count = int(codes.max()) + 1
    if regression:
        real = standardized(y.astype(np.float64)[:, None])
        outcome = np.column_stack([real, real**2])
        edges = np.quantile(real[:, 0], np.linspace(0, 1, _BINS + 1)[1:-1])
        strata = np.searchsorted(edges, real[:, 0])
        targets = real
    else:
        strata = np.unique(y, return_inverse=True)[1]
        indicators = (strata[:, None] == np.arange(strata.max() + 1)).astype(np.float64)
        outcome = indicators[:, 1:]
        targets = indicators[:, 1:] if indicators.shape[1] == 2 else indicators
    features = with_squares(x)
    single = np.zeros(len(y), dtype=np.int64)
    adjusted = (
        features - outcome @ np.linalg.lstsq(outcome, features, rcond=None)[0] if regression else features
    )

    def exchange(values: Array, groups: Codes) -> Array:
        return search_deviating(
            lambda keep: mean_statistics(values, groups, codes, keep, generator), count, level / 2
        )

    given = exchange(adjusted, strata)
    label, marginal = exchange(outcome, single), exchange(features, single)
    intercept, slopes = np.ones(count), np.ones(count)
    if (np.minimum(given, label) <= level / 2).any():
        computed: dict[bytes, list[tuple[Array, Array]]] = {}

        def scores(keep: NDArray[np.bool_]) -> list[tuple[Array, Array]]:
            key = keep.tobytes()
            if key not in computed:
                computed[key] = _score_statistics(x, targets, codes, keep, generator, regression)
            return computed[key]

        intercept = search_deviating(lambda keep: scores(keep)[0], count, level)
        slopes = search_deviating(lambda keep: scores(keep)[1], count, level)
    return label, marginal, given, intercept, slopes


def _score_statistics(
    x: Array,
    targets: Array,
    codes: Codes,
    keep: NDArray[np.bool_],
    generator: np.random.Generator,
    regression: bool,
) -> list[tuple[Array, Array]]:
    """Return efficient score statistics for a separate intercept and for separate slopes per environment.

    Each of the two results is a pair: statistics of the sample, `[environments]`, and of bootstrap
    resamples, `[resamples, environments]`.
    """
    chosen = keep[codes]
    x, targets, codes = x[chosen], targets[chosen], codes[chosen]
    n, count, width = len(x), len(keep), 1 + x.shape[1]
    design = _design(x)
    penalty = np.diag(np.append(0.0, np.full(design.shape[1] - 1, _RIDGE)))
    own = np.column_stack([np.ones(n), x])
    signs = np.concatenate([np.ones((1, n)), generator.choice([-1.0, 1.0], (RESAMPLES, n))])
    statistics = np.zeros((2, RESAMPLES + 1, count))
    for target in targets.T:
        residual, weights = _residuals(design, target, penalty, regression=regression)
        weighted = design * weights[:, None]
        inverse = np.linalg.inv(design.T @ weighted + penalty)
        for e in np.flatnonzero(keep).tolist():
            mine = codes == e
            cross = own[mine].T @ weighted[mine]
            variance = own[mine].T @ (own[mine] * weights[mine][:, None]) - cross @ inverse @ cross.T
            projected = -design @ (inverse @ cross.T)
            projected[mine] += own[mine]
            scores = signs @ (projected * residual[:, None])
            level = max(float(variance[0, 0]), 1e-9)
            ratio = variance[1:, 0] / level
            slopes = scores[:, 1:] - scores[:, :1] * ratio
            remaining = variance[1:, 1:] - np.outer(ratio, variance[0, 1:])
            statistics[0, :, e] += scores[:, 0] ** 2 / level
            inverted = np.linalg.pinv(remaining, rcond=1e-6, hermitian=True)
            statistics[1, :, e] += ((slopes @ inverted) * slopes).sum(axis=1) if width > 1 else 0.0
    return [(part[0], part[1:]) for part in statistics]


def _residuals(design: Array, target: Array, penalty: Array, *, regression: bool) -> tuple[Array, Array]:
    """Return the residuals of a penalized regression, and their variances.

    The regression is logistic for classes. For real-valued targets, it is linear, and residuals have variance
    1.
    """
    if regression:
        coefficients = np.linalg.solve(design.T @ design + penalty, design.T @ target)
        residual = target - design @ coefficients
        return residual / max(float(residual.std()), 1e-12), np.ones(len(design))
    coefficients = np.zeros(design.shape[1])
    fitted = np.full(len(design), 0.5)
    for _ in range(30):
        weights = fitted * (1 - fitted)
        gradient = design.T @ (target - fitted) - penalty @ coefficients
        step = np.linalg.solve(
            (design.T * weights) @ design + penalty + 1e-9 * np.eye(len(penalty)), gradient
        )
        # Short steps keep Newton's method from overshooting.
        coefficients += step * min(1.0, 3.0 / max(float(np.abs(step).max()), 1e-12))
        fitted = 1 / (1 + np.exp(-np.clip(design @ coefficients, -30, 30)))
        if np.abs(step).max() < 1e-6:
            break
    return target - fitted, fitted * (1 - fitted)


def _design(x: Array) -> Array:
    """Return the design matrix: ones, columns, squares and, with enough rows, hinges and products."""
    parts = [np.ones((len(x), 1)), with_squares(x)]
    p = x.shape[1]
    if p * len(_KNOTS) < len(x) / 20:
        knots = np.quantile(x, _KNOTS, axis=0)
        hinges = np.maximum(x[:, None] - knots, 0.0).reshape(len(x), -1)
        parts.append(standardized(hinges[:, hinges.std(axis=0) > 1e-6]))
    if p <= _MOST_PAIRED and p * (p - 1) / 2 < len(x) / 20:
        first, second = np.triu_indices(p, 1)
        parts.append(x[:, first] * x[:, second])
    return np.concatenate(parts, axis=1)
