"""Stability of each column's relation with the target across environments.

If the slope of a column changes sign, models that use the column are misled in some environments.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from envariant.analysis import statistics
from envariant.core.errors import EnvariantError

Array = NDArray[np.float64]

LEVEL = 0.05
"""Significance level of the tests."""

NOTABLE = 0.15
"""Smallest relevant difference of two slopes, in the unit of `ColumnStability.slopes`."""

# Largest share of a column's variation within an environment that one row may contribute.
_LARGEST_SHARE = 0.1


@final
@dataclass(frozen=True)
class ColumnStability:
    """Relation of one column with the target in each environment.

    Attributes:
        column: Name of the column.
        slopes: Mapping from environment to slope, in standard deviations of the target per standard deviation
            of the column; NaN if the column is constant in the environment. For a categorical column or a
            multiclass target, the slope is along the direction of strongest association.
        errors: Standard error of each slope.
        p_value: P-value of the test of equal slopes (Cochran's Q), Holm-corrected over columns.
    """

    column: str
    slopes: Mapping[str, float]
    errors: Mapping[str, float]
    p_value: float

    @property
    def spread(self) -> float:
        """Largest slope minus smallest slope; 0 if all slopes are NaN."""
        known = [slope for slope in self.slopes.values() if math.isfinite(slope)]
        return max(known) - min(known) if known else 0.0

    @property
    def changes_sign(self) -> bool:
        """Whether the slope is significantly positive in one environment and negative in another."""
        # Bonferroni: with many environments, one has the other sign by chance.
        quantile = float(stats.norm.isf(LEVEL / 2 / max(1, len(self.slopes))))
        significant = [
            slope
            for name, slope in self.slopes.items()
            if math.isfinite(slope) and abs(slope) > quantile * self.errors[name]
        ]
        return bool(significant) and min(significant) < 0 < max(significant)

    @property
    def unstable(self) -> bool:
        """Whether the slopes differ significantly and by at least `NOTABLE`."""
        return self.p_value < LEVEL and self.spread >= NOTABLE

    @property
    def kind(self) -> Literal["stable", "varies", "changes sign"]:
        """Kind of the relation: "stable", "varies" or "changes sign"."""
        if not self.unstable:
            return "stable"
        return "changes sign" if self.changes_sign else "varies"


def measure_stability(
    columns: Mapping[str, ArrayLike],
    targets: ArrayLike,
    environments: ArrayLike,
    *,
    n_classes: int | None = None,
) -> tuple[ColumnStability, ...]:
    """Estimate every column's slope in every environment and test whether the slopes are equal.

    Standard errors are heteroskedasticity-consistent (HC3, MacKinnon & White 1985).

    Args:
        columns: Values by column name, each `[rows]`, or `[rows, k]` for one-hot encoded categories.
        targets: Binary or real targets, or class numbers if `n_classes` is set, `[rows]`.
        environments: Environment of each row, `[rows]`.
        n_classes: Number of classes of a multiclass target. Default: a binary or real target.

    Returns:
        One entry per column, the least stable first.

    Raises:
        EnvariantError: If a column or `environments` does not have one entry per target.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(2)
        >>> hospital = np.repeat(["north", "south"], 300)
        >>> age, dose = rng.normal(size=(2, 600))
        >>> risk = age + np.where(hospital == "north", dose, -dose) + rng.normal(size=600)
        >>> [(c.column, c.kind) for c in measure_stability({"age": age, "dose": dose}, risk, hospital)]
        [('dose', 'changes sign'), ('age', 'stable')]
    """
    y, labels = np.asarray(targets), np.asarray(environments)
    names, first, codes = np.unique(labels, return_index=True, return_inverse=True)
    # Environments in order of appearance.
    order = np.argsort(first).tolist()
    members = [np.flatnonzero(codes == k) for k in order]
    arrays = {column: np.asarray(values) for column, values in columns.items()}
    for name, array in {"targets": y, **arrays}.items():
        if len(array) != len(labels):
            raise EnvariantError(
                f"measure_stability: '{name}' has {len(array)} rows, but environments have {len(labels)}"
            )
    outcome = y[:, None] if n_classes is None else y[:, None] == np.arange(n_classes)
    outcomes = [outcome[rows].astype(np.float64) for rows in members]
    slopes: dict[str, tuple[Array, Array]] = {}
    for column, array in arrays.items():
        values = array[:, None] if array.ndim == 1 else array
        slopes[column] = _slopes([values[rows].astype(np.float64) for rows in members], outcomes)
    corrected = statistics.holm([_cochran_p_value(*each) for each in slopes.values()])
    keys = [str(names[k]) for k in order]
    results = [
        ColumnStability(
            column,
            dict(zip(keys, slope.tolist(), strict=True)),
            dict(zip(keys, error.tolist(), strict=True)),
            p_value,
        )
        for (column, (slope, error)), p_value in zip(slopes.items(), corrected, strict=True)
    ]
    return tuple(sorted(results, key=lambda c: (not c.unstable, -c.spread)))


def _slopes(values: Sequence[Array], targets: Sequence[Array]) -> tuple[Array, Array]:
    """Return slope and HC3 standard error by environment.

    If the column or the target has several components, half of the rows determine the direction of
    strongest association. The slope is estimated on the other half, so that its estimate is unbiased.
    """
    multivariate = values[0].shape[1] > 1 or targets[0].shape[1] > 1
    value_direction, target_direction = np.ones(1), np.ones(1)
    if multivariate:
        # Halves are random, because consecutive rows may be related, such as husband and wife.
        generator = np.random.default_rng(0)
        order = [generator.permutation(len(v)) for v in values]
        values, targets = ([p[o] for p, o in zip(part, order, strict=True)] for part in (values, targets))
        x, y = _standardized([v[::2] for v in values], [t[::2] for t in targets])
        covariances = [v.T @ t / len(v) for v, t in zip(x, y, strict=True)]
        # Summed over environments without regard to sign.
        value_direction = _leading_eigenvector(sum(c @ c.T for c in covariances))
        target_direction = _leading_eigenvector(sum(c.T @ c for c in covariances))
        values, targets = [v[1::2] for v in values], [t[1::2] for t in targets]
    estimates = [
        _slope(v @ value_direction, t @ target_direction)
        for v, t in zip(*_standardized(values, targets), strict=True)
    ]
    slopes, errors = (np.array(part) for part in zip(*estimates, strict=True))
    # An eigenvector has no sign: choose the one for which most of the association is positive.
    return (-slopes if multivariate and np.nansum(slopes) < 0 else slopes), errors


def _slope(x: Array, y: Array) -> tuple[float, float]:
    """Return the least-squares slope of centered values and its standard error; NaN if not estimable."""
    power = float(x @ x)
    # If a few rows cause most of the variation, the standard error cannot be estimated.
    if power <= 1e-9 * len(x) or float((x * x).max()) > _LARGEST_SHARE * power:
        return math.nan, math.nan
    slope = float(x @ y) / power
    leverage = np.minimum(1 / len(x) + x * x / power, 0.99)
    residuals = (y - slope * x) / (1 - leverage)
    return slope, max(1e-12, math.sqrt(float(np.square(x * residuals).sum())) / power)


def _standardized(values: Sequence[Array], targets: Sequence[Array]) -> tuple[list[Array], list[Array]]:
    """Center columns and targets in each environment, and divide by the deviations from `_scale`."""
    x, y = ([part - part.mean(axis=0) for part in parts] for parts in (values, targets))
    x_scale, y_scale = _scale(x), _scale(y)
    return [part / x_scale for part in x], [part / y_scale for part in y]


def _scale(parts: Sequence[Array]) -> Array:
    """Return the standard deviation within environments, weighted equally; 1 for a constant column."""
    spread = np.sqrt(np.mean([np.square(part).mean(axis=0) for part in parts], axis=0))
    return np.where(spread > 1e-9, spread, 1.0)


def _leading_eigenvector(matrix: Any) -> Array:
    return np.linalg.eigh(matrix)[1][:, -1]


def _cochran_p_value(slopes: Array, errors: Array) -> float:
    """Return the p-value of Cochran's Q test of equal slopes."""
    known = np.isfinite(slopes)
    if known.sum() < 2:
        return 1.0
    weights = 1 / errors[known] ** 2
    mean = (weights * slopes[known]).sum() / weights.sum()
    return float(stats.chi2.sf((weights * np.square(slopes[known] - mean)).sum(), known.sum() - 1))
