"""Anchor regression: least squares that weighs the residual explained by the anchors γ times."""

from typing import Any, Self, final

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from envariant.closed_forms.anchor_estimator import AnchorEstimator
from envariant.closed_forms.anchors import environment_anchors, solve_weighted
from envariant.closed_forms.base import LinearRegressor, check_number
from envariant.core.errors import EnvariantError


@final
class AnchorRegressor(AnchorEstimator, LinearRegressor):
    """Anchor regression of Rothenhäusler, Meinshausen, Bühlmann and Peters (2021, arXiv 1801.06229).

    With the projection Π on the span of the centered anchors, and centered X and y,

        b(γ) = argmin ‖(I−Π)(y−Xb)‖² + γ ‖Π(y−Xb)‖² + α ‖b‖²

    γ = 0 is regression within environments (fixed effects), γ = 1 is least squares, and γ → ∞ approaches
    two-stage least squares with the anchors as instruments. b(γ) minimizes the largest mean squared error
    over shifts v of the anchors' effect with E[vvᵀ] ⪯ γ E[AAᵀ] (theorem 1). New rows need no anchors.

    Args:
        gamma: Weight γ of the residual explained by the anchors, at least 0. `gamma_of_quantile` converts a
            quantile; the default, 4, corresponds to the quantile 0.954, that is, to shifts of two standard
            deviations.
        alpha: Strength of the ridge penalty, at least 0.

    Attributes:
        coef_: Coefficients b, `[p]`.
        intercept_: Intercept ȳ − x̄ᵀb.
        within_risk_: Mean of ((I−Π)(y−Xb))², the part of the mean squared error that no anchor explains.
        between_risk_: Mean of (Π(y−Xb))², the part explained by the anchors. The largest mean squared error
            over shifts of strength s is within_risk_ + s · between_risk_.
        environments_: Names of the environments; "all" if there are none.
        environment_column_: Name of the environment column in `X`, if any; `predict` accepts `X` with or
            without it.
        anchor_columns_: Names of the anchor columns in `X`; `predict` accepts `X` with or without them.
        n_features_in_: Number of input columns.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> site = np.repeat(["north", "south", "east"], 100)
        >>> shift = np.repeat([-2.0, 0.0, 2.0], 100)
        >>> hidden = rng.normal(size=300)
        >>> x = shift + hidden + rng.normal(size=300)
        >>> y = x + hidden  # The causal effect of x is 1.
        >>> [AnchorRegressor(g).fit(x[:, None], y, environments=site).coef_.round(2).item() for g in (1, 100)]
        [1.21, 0.95]
    """

    within_risk_: float
    between_risk_: float

    def __init__(self, gamma: float = 4.0, *, alpha: float = 0.0) -> None:
        self.gamma = gamma
        self.alpha = alpha

    def fit(
        self,
        X: Any,  # noqa: N803
        y: ArrayLike,
        *,
        environments: ArrayLike | str | None = None,
        anchors: Any = None,
    ) -> Self:
        """Fit the coefficients.

        Args:
            X: Numeric columns, `[rows, p]`: an array or a data frame.
            y: Targets, `[rows]`.
            environments: Environment labels, `[rows]`, of any type, or the name of the environment column of
                the data frame `X`. This column is not an input.
            anchors: Instead of environments: numeric anchors, `[rows, q]` or `[rows]`, or names of columns of
                the data frame `X`. These columns are not inputs.

        Returns:
            The fitted estimator.

        Raises:
            EnvariantError: If an argument or a parameter is invalid.

        Warns:
            UserWarning: If there are neither environments nor anchors; b is then the least-squares fit.
        """
        gamma, alpha = (check_number("AnchorRegressor", n, getattr(self, n), 0) for n in ("gamma", "alpha"))
        rows, found = self._read_anchors(
            X, y, environments, anchors, "ordinary least squares was used instead"
        )
        x_mean, y_mean = rows.inputs.mean(axis=0), float(rows.targets.mean())
        x, y = rows.inputs - x_mean, rows.targets - y_mean
        found = found or environment_anchors(rows.codes)
        self._set_line(solve_weighted(x, y, found, within=1, between=gamma, ridge=alpha), x_mean, y_mean)
        residuals = (y - x @ self.coef_)[:, None]
        explained = found.project(residuals)
        self.within_risk_ = float(np.square(residuals - explained).mean())
        self.between_risk_ = float(np.square(explained).mean())
        return self


def gamma_of_quantile(level: float) -> float:
    """Return the γ for which anchor regression minimizes a quantile of the mean squared error.

    If columns, target and anchors are jointly Gaussian, the quantile of E[(y−Xb)² | A] over anchors A is
    E[((I−Π)(y−Xb))²] + χ²₁(level) · E[(Π(y−Xb))²], so γ is the quantile χ²₁(level) of the χ² distribution
    with one degree of freedom (Rothenhäusler et al. 2021). With few environments, this is a
    scale rather than a probability.

    Args:
        level: Quantile, between 0 and 1.

    Raises:
        EnvariantError: If `level` is not between 0 and 1.

    Example:
        >>> round(gamma_of_quantile(0.95), 4)
        3.8415
    """
    if not 0 < level < 1:
        raise EnvariantError(f"gamma_of_quantile: level must be between 0 and 1, got {level!r}")
    return float(stats.chi2.ppf(level, 1))
