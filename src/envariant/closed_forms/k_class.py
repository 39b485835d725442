"""K-class estimators: instrumental variables with environments or columns as instruments."""

from typing import Any, Literal, Self, cast, final, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg

from envariant.closed_forms.anchor_estimator import AnchorEstimator
from envariant.closed_forms.anchors import Anchors, environment_anchors, solve_weighted
from envariant.closed_forms.base import Array, LinearRegressor, check_number
from envariant.core.errors import EnvariantError, unknown_name

NamedKappa = Literal["tsls", "liml", "fuller"]
# A direction whose instrumented part is below this share of the whole column has no instrument.
_RELEVANCE = 1e-8


@final
class KClassRegressor(AnchorEstimator, LinearRegressor):
    """K-class instrumental-variable regression (Theil 1958; Fuller 1977).

    With the projection Π on the span of the centered instruments (environments or anchors), M = I − Π, and
    centered X and y,

        b(κ) = (Xᵀ(I − κM)X)⁻¹ Xᵀ(I − κM)y

    κ = 0 is least squares, κ = 1 is two-stage least squares, and κ = (γ−1)/γ is anchor regression with γ.
    κ_LIML = 1 + λ_min((RᵀR)⁻¹ (X y)ᵀΠ(X y)) with R = M(X y) gives limited-information maximum likelihood;
    κ_LIML − 1/(n − q), with n rows and q instruments, is Fuller's estimator, which has finite moments.
    If instruments affect y only through X, b estimates the causal effects of X despite hidden confounders.

    Args:
        kappa: Number κ, or "tsls" (κ = 1), "liml" or "fuller".

    Attributes:
        coef_: Coefficients b, `[p]`.
        intercept_: Intercept ȳ − x̄ᵀb.
        kappa_: Value of κ.
        n_instruments_: Dimension q of the span of the instruments; for E environments, E − 1.
        environments_, environment_column_, anchor_columns_, n_features_in_: See `AnchorRegressor`.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> site, shift = np.repeat(["north", "south", "east"], 100), np.repeat([-2.0, 0.0, 2.0], 100)
        >>> hidden = rng.normal(size=300)
        >>> x = shift + hidden + rng.normal(size=300)
        >>> y = x + hidden  # The causal effect of x is 1.
        >>> KClassRegressor("liml").fit(x[:, None], y, environments=site).coef_.round(2).item()
        0.94
    """

    kappa_: float
    n_instruments_: int

    def __init__(self, kappa: float | NamedKappa = "tsls") -> None:
        self.kappa = kappa

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
            anchors: Instead of environments: numeric instruments, `[rows, q]` or `[rows]`, or names of
                columns of the data frame `X`. These columns are not inputs.

        Returns:
            The fitted estimator.

        Raises:
            EnvariantError: If an argument or a parameter is invalid, or there are too few instruments.

        Warns:
            UserWarning: If there are neither environments nor anchors; b is then the least-squares fit.
        """
        kappa = self.kappa
        if isinstance(kappa, str) and kappa not in get_args(NamedKappa):
            raise unknown_name("kappa", kappa, get_args(NamedKappa), where="KClassRegressor")
        if not isinstance(kappa, str):
            check_number("KClassRegressor", "kappa", kappa, 0)
        rows, found = self._read_anchors(
            X, y, environments, anchors, "ordinary least squares was used instead"
        )
        x_mean, y_mean = rows.inputs.mean(axis=0), float(rows.targets.mean())
        x, y = rows.inputs - x_mean, rows.targets - y_mean
        if found is None:
            kappa, found = 0.0, environment_anchors(rows.codes)
        value = k_class_kappa(x, y, found, kappa) if isinstance(kappa, str) else float(kappa)
        if value >= 1:
            _check_instruments(x, found)
        self._set_line(solve_weighted(x, y, found, within=1 - value, between=1), x_mean, y_mean)
        self.kappa_, self.n_instruments_ = value, found.rank
        return self


def k_class_kappa(x: Array, y: Array, instruments: Anchors, kappa: str) -> float:
    """Return the value of a named κ; see `KClassRegressor`.

    Args:
        x: Centered columns, `[rows, p]`.
        y: Centered targets, `[rows]`.
        instruments: Projection Π.
        kappa: "tsls", "liml" or "fuller".

    Raises:
        EnvariantError: If the columns and the target are collinear within environments.
    """
    # With as many instruments as columns, the smallest eigenvalue is 0.
    if kappa == "tsls":
        return 1.0
    columns = np.column_stack([x, y])
    explained = instruments.project(columns)
    rest = columns - explained
    try:
        eigenvalues = cast("Array", linalg.eigh(explained.T @ explained, rest.T @ rest, eigvals_only=True))
    except linalg.LinAlgError:
        raise EnvariantError(
            f"KClassRegressor: kappa='{kappa}' needs columns that are not collinear given the environments; "
            f"remove duplicate or constant columns, or use kappa='tsls'"
        ) from None
    liml = 1 + max(0.0, float(eigenvalues[0]))
    return liml if kappa == "liml" else liml - 1 / (len(x) - instruments.rank)


def _check_instruments(x: Array, instruments: Anchors) -> None:
    """Raise an error if the instruments do not identify all coefficients."""
    scale = np.where((norms := np.linalg.norm(x, axis=0)) > 0, norms, 1.0)
    strength = np.linalg.svd(instruments.project(x / scale), compute_uv=False)
    if x.shape[1] > instruments.rank or strength.min() < _RELEVANCE:
        raise EnvariantError(
            f"KClassRegressor: {x.shape[1]} columns need at least as many independent instruments, got "
            f"{min(instruments.rank, int((strength >= _RELEVANCE).sum()))} (E environments give E − 1); use "
            f"more environments or fewer columns, or AnchorRegressor, which needs no minimum"
        )
