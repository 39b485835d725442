"""Causal Dantzig: coefficients for which the inner products of columns and residuals are equal everywhere."""

from typing import Any, Self, final

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from envariant.closed_forms.base import Array, Codes, LinearRegressor, check_level, second_moments
from envariant.closed_forms.causal_subsets import regress_linear
from envariant.core.errors import EnvariantError

# The weakest direction must exceed what noise alone would give, at this level.
_NOISE_LEVEL = 0.05
_ROUNDING = 1e-20


@final
class CausalDantzig(LinearRegressor):
    """Causal Dantzig, unregularized (Rothenhäusler, Bühlmann and Meinshausen 2019, arXiv 1706.06159).

    If environments act on X additively, and not on y, the moments E_e[X(y−Xb)] of the causal coefficients b
    are equal in all environments, even if hidden variables confound X and y. With G_e = X_eᵀX_e / n_e,
    Z_e = X_eᵀy_e / n_e, the shares w_e of the rows, and means Ḡ and Z̄ weighted by w,

        b = argmin Σ_e w_e ‖(Z_e − Z̄) − (G_e − Ḡ) b‖²

    For two environments, b = (G_1 − G_2)⁻¹ (Z_1 − Z_2). For more, the weight of each difference depends on
    the units of the columns, so standardize them first; and if shifts are weak, the estimate is biased
    towards least squares by an amount of order 1/n_e, so intervals may miss the truth.

    With D_e = G_e − Ḡ, A = Σ_e w_e D_eᵀD_e, and the covariance V_e of x_i (y_i − x_iᵀb) in environment e, the
    covariance of b is
    A⁻¹ (Σ_e w_e² D_e V_e D_eᵀ / n_e) A⁻¹. Differences of means carry the signal, so rows are not centered by
    environment.

    Args:
        alpha: Level of the confidence intervals, b ± z_{1−α/2} s.
        fit_intercept: Whether to subtract the means of all rows first. Otherwise there is no intercept.

    Attributes:
        coef_: Coefficients b, `[p]`.
        intercept_: Intercept ȳ − x̄ᵀb.
        errors_: Standard errors s, `[p]`.
        intervals_: Confidence intervals, `[p, 2]`.
        environments_, environment_column_, n_features_in_: See `AnchorRegressor`.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> site, scale = np.repeat(["north", "south"], 2000), np.repeat([1.0, 3.0], 2000)
        >>> hidden = rng.normal(size=4000)
        >>> x = hidden + scale * rng.normal(size=4000)
        >>> y = x + hidden  # The causal effect of x is 1.
        >>> CausalDantzig().fit(x[:, None], y, environments=site).intervals_.round(2)
        array([[0.99, 1.02]])
    """

    errors_: Array
    intervals_: Array

    def __init__(self, alpha: float = 0.1, *, fit_intercept: bool = True) -> None:
        self.alpha = alpha
        self.fit_intercept = fit_intercept

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
            EnvariantError: If an argument or a parameter is invalid, or the environments do not differ
                enough to identify the coefficients.

        Warns:
            UserWarning: If there are no environments; b is then the least-squares fit.
        """
        alpha = check_level("CausalDantzig", self.alpha)
        rows = self._read_rows(X, y, environments, "ordinary least squares was used instead")
        x, targets = rows.inputs, rows.targets.astype(np.float64)
        x_mean, y_mean = np.zeros(x.shape[1]), 0.0
        if self.fit_intercept:
            x_mean, y_mean = x.mean(axis=0), float(targets.mean())
        x, targets = x - x_mean, targets - y_mean
        if environments is None:
            fit = regress_linear(x, targets, tuple(range(x.shape[1])))
            coefficients, errors = fit.coefficients, fit.errors
        else:
            check_identified(x, rows.codes)
            coefficients, errors = fit_causal_dantzig(x, targets, rows.codes)
        self._set_line(coefficients, x_mean, y_mean)
        half = float(stats.norm.isf(alpha / 2)) * errors
        self.errors_, self.intervals_ = errors, np.column_stack([coefficients - half, coefficients + half])
        self._remember(rows, environments)
        return self


def fit_causal_dantzig(x: Array, y: Array, codes: Codes) -> tuple[Array, Array]:
    """Return the coefficients and their standard errors, both `[p]`; see `CausalDantzig`.

    Args:
        x: Columns, `[rows, p]`.
        y: Targets, `[rows]`.
        codes: Environment number of each row, `[rows]`.
    """
    sizes, p = np.bincount(codes), x.shape[1]
    weights, (gram, cross) = sizes / sizes.sum(), second_moments(x, y, codes)
    root = np.sqrt(weights)
    differences = root[:, None, None] * (gram - np.tensordot(weights, gram, axes=1))
    solution = np.linalg.pinv(differences.reshape(-1, p))
    coefficients = solution @ (root[:, None] * (cross - weights @ cross)).ravel()
    residuals = y - x @ coefficients
    covariance = np.zeros((p, p))
    for e, n in enumerate(sizes):
        own = codes == e
        influence = (x[own] * residuals[own, None]) @ (root[e] * solution[:, e * p : (e + 1) * p]).T
        covariance += np.atleast_2d(np.cov(influence.T)) / n
    return coefficients, np.sqrt(np.diagonal(covariance))


def check_identified(x: Array, codes: Codes) -> None:
    """Raise an error unless the second moments of the columns differ between environments in every direction.

    The smallest singular value σ = Σ_e √w_e u_eᵀD_e v of the stacked matrices √w_e D_e has the sampling
    variance s² = Σ_e w_e var(u_eᵀx xᵀv) / n_e. Columns are scaled to mean square 1. If σ²/s² is not above the
    0.95-quantile of χ² with E − 1 degrees of freedom, noise alone could have caused the differences.

    Args:
        x: Columns, `[rows, p]`.
        codes: Environment number of each row, `[rows]`.

    Raises:
        EnvariantError: If a direction of the columns does not differ between environments beyond noise.
    """
    scale = np.sqrt(np.square(x).mean(axis=0))
    z = x / np.where(scale > 0, scale, 1.0)
    sizes = np.bincount(codes)
    weights, (gram, _) = sizes / sizes.sum(), second_moments(z, z[:, 0], codes)
    differences = np.sqrt(weights)[:, None, None] * (gram - np.tensordot(weights, gram, axes=1))
    left, singular, right = np.linalg.svd(differences.reshape(-1, x.shape[1]), full_matrices=False)
    u, v = left[:, -1].reshape(len(sizes), -1), right[-1]
    products = ((z * u[codes]).sum(axis=1)) * (z @ v)
    variances = np.array([products[codes == e].var() / n for e, n in enumerate(sizes)])
    bound = stats.chi2.ppf(1 - _NOISE_LEVEL, len(sizes) - 1) * float(weights @ variances)
    if singular[-1] ** 2 <= max(bound, _ROUNDING):
        raise EnvariantError(
            "CausalDantzig: the environments differ too little to identify every coefficient; use fewer "
            "columns, or environments with stronger shifts, or AnchorRegressor, which needs no minimum"
        )
