"""DRIG: least squares that is robust to shifts of the means and variances of a reference environment."""

from typing import Any, Literal, Self, cast, final, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg

from envariant.closed_forms.base import (
    Array,
    Codes,
    LinearRegressor,
    check_number,
    environment_means,
    second_moments,
)
from envariant.core.conversion import text_of
from envariant.core.errors import EnvariantError, unknown_name

Weights = Literal["rows", "equal"]
# Eigenvalues below this share of the largest one are rounding errors.
_TOLERANCE = 1e-10


@final
class DRIGRegressor(LinearRegressor):
    """Distributional robustness via invariant gradients (Shen, Bühlmann and Taeb 2023, arXiv 2307.10299).

    With the mean squared error R_e of environment e, the reference environment 0, and weights w_e of all
    environments that sum to 1, the coefficients minimize

        R_0 + γ Σ_e w_e (R_e − R_0)

    With G_e = X_eᵀX_e / n_e and Z_e = X_eᵀy_e / n_e, after subtracting the means of the reference, this is

        b(γ) = ((1−γ) G_0 + γ Σ_e w_e G_e)⁻¹ ((1−γ) Z_0 + γ Σ_e w_e Z_e)

    γ = 0 is least squares in the reference environment, and γ = 1 is least squares of all rows. Larger γ
    protects against shifts of means and variances up to γ times those observed; anchor regression protects
    against shifts of means only. For every γ to have a minimum, all environments must vary at least as much
    as the reference in every direction.

    Args:
        gamma: Strength γ of the shifts, at least 0.
        reference: Label of the reference environment, in which nothing was changed. Default: the environment
            with the smallest summed variance of standardized columns and target.
        weights: "rows" (w_e is the share of the rows) or "equal".

    Attributes:
        coef_: Coefficients b, `[p]`.
        intercept_: Intercept of the line through the means of the reference environment.
        reference_: Name of the reference environment.
        environments_, environment_column_, n_features_in_: See `AnchorRegressor`.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> site, scale = np.repeat(["usual", "treated"], 1000), np.repeat([1.0, 3.0], 1000)
        >>> hidden = rng.normal(size=2000)
        >>> x = hidden + scale * rng.normal(size=2000)
        >>> y = x + hidden  # The causal effect of x is 1.
        >>> estimators = [DRIGRegressor(gamma, reference="usual") for gamma in (0, 10)]
        >>> [each.fit(x[:, None], y, environments=site).coef_.round(2).item() for each in estimators]
        [1.5, 1.04]
    """

    reference_: str

    def __init__(self, gamma: float = 2.0, *, reference: Any = None, weights: Weights = "rows") -> None:
        self.gamma = gamma
        self.reference = reference
        self.weights = weights

    def fit(self, X: Any, y: ArrayLike, *, environments: ArrayLike | str | None = None) -> Self:  # noqa: N803
        """Fit the coefficients.

        Args:
            X: Numeric columns, `[rows, p]`: an array or a data frame.
            y: Targets, `[rows]`.
            environments: Environment labels, `[rows]`, of any type, or the name of the environment column of
                the data frame `X`. This column is not an input.

        Returns:
            The fitted estimator.

        Raises:
            EnvariantError: If an argument or a parameter is invalid, or γ is so large that there is no
                minimum.

        Warns:
            UserWarning: If there are no environments; b is then the least-squares fit.
        """
        gamma = check_number("DRIGRegressor", "gamma", self.gamma, 0)
        if self.weights not in get_args(Weights):
            raise unknown_name("weights", str(self.weights), get_args(Weights), where="DRIGRegressor")
        rows = self._read_rows(X, y, environments, "ordinary least squares was used instead")
        reference = _calmest(rows.inputs, rows.targets, rows.codes)
        if self.reference is not None and environments is not None:
            label = text_of(self.reference)
            if label not in rows.names:
                raise unknown_name("reference", label, rows.names, where="DRIGRegressor")
            reference = rows.names.index(label)
        own = rows.codes == reference
        x_mean, y_mean = rows.inputs[own].mean(axis=0), float(rows.targets[own].mean())
        gram, cross = second_moments(rows.inputs - x_mean, rows.targets - y_mean, rows.codes)
        sizes = np.bincount(rows.codes)
        share = sizes / sizes.sum() if self.weights == "rows" else np.full(len(sizes), 1 / len(sizes))
        self._set_line(solve_drig(gram, cross, share, gamma, reference), x_mean, y_mean)
        self.reference_ = rows.names[reference]
        self._remember(rows, environments)
        return self


def solve_drig(gram: Array, cross: Array, weights: Array, gamma: float, reference: int = 0) -> Array:
    """Return the coefficients b(γ), `[p]`, for given moments; see `DRIGRegressor`.

    Args:
        gram: Moments G_e, `[environments, p, p]`.
        cross: Moments Z_e, `[environments, p]`.
        weights: Weights w_e, `[environments]`, with sum 1.
        gamma: Strength γ of the shifts.
        reference: Position of the reference environment.

    Raises:
        EnvariantError: If the objective has no minimum.
    """
    excess = (weights[:, None, None] * (gram - gram[reference])).sum(axis=0)
    hessian = gram[reference] + gamma * excess
    right = cross[reference] + gamma * (weights @ (cross - cross[reference]))
    # Columns of different units must not decide which directions are rounding errors.
    scale = np.sqrt(np.einsum("eii->i", gram) / len(gram))
    scale = np.where(scale > 0, scale, 1.0)
    values, vectors = np.linalg.eigh(hessian / np.outer(scale, scale))
    tolerance = _TOLERANCE * max(1.0, gamma)
    if values.min() < -tolerance:
        raise EnvariantError(
            f"DRIGRegressor: gamma={gamma:g} is too large, so there is no minimum: the environments vary "
            f"less than the reference in some direction; use a gamma below "
            f"{_largest_gamma(gram[reference], excess):.3g}, or another reference"
        )
    kept = values > tolerance
    basis = vectors[:, kept]
    return (basis @ ((basis.T @ (right / scale)) / values[kept])) / scale


def _largest_gamma(base: Array, excess: Array) -> float:
    """Return the largest γ for which base + γ · excess is positive definite."""
    ridge = _TOLERANCE * float(np.trace(base)) * np.eye(len(base))
    lowest = cast("Array", linalg.eigh(excess, base + ridge, eigvals_only=True))[0]
    return -1 / float(lowest)


def _calmest(x: Array, y: Array, codes: Codes) -> int:
    """Return the environment with the smallest summed variance of standardized columns and target."""
    columns = np.column_stack([x, y])
    variance = columns.var(axis=0)
    centered = columns - environment_means(columns, codes)[codes]
    shares = environment_means(np.square(centered), codes) / np.where(variance > 0, variance, 1.0)
    return int(shares.sum(axis=1).argmin())
