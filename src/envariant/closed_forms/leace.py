"""LEACE: an affine map of features from which no linear model can predict the environment."""

from typing import Any, Self, final

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import OneToOneFeatureMixin, TransformerMixin

from envariant.closed_forms.base import Array, EnvironmentEstimator, check_number
from envariant.core.errors import EnvariantError

# Eigenvalues of the covariance below this share of the largest one are rounding errors.
_RANK_TOLERANCE = 1e-12


@final
class LEACE(OneToOneFeatureMixin, TransformerMixin, EnvironmentEstimator):
    """Least-squares concept erasure (Belrose et al. 2023, arXiv 2306.03819).

    Z holds the indicators of the environments, or other concepts. With the mean μ, the covariances Σ_XX and
    Σ_XZ, W = Σ_XX^{−1/2}, and the left singular vectors U of W Σ_XZ,

        r(x) = x − W⁺ U Uᵀ W (x − μ)

    has zero covariance with Z, so no linear model predicts Z from r(x) better than a constant. Among the
    affine maps with this property, it changes x least in mean square. E environments erase E − 1 dimensions:
    nothing is left of E − 1 or fewer features. Nonlinear models may still predict Z. The map needs no
    environment of new rows.

    Args:
        orthogonal: Whether to project orthogonally (W = I) instead.
        shrinkage: Whether to shrink Σ_XX towards a multiple of the identity, aS + (1−a)(tr S/p) I with
            a = 1 − (tr²S/n) / (‖S‖² − tr²S/p), limited to [0, 1]; for few rows of many features.
        tolerance: Singular values of W Σ_XZ below this share of the largest one count as 0.

    Attributes:
        matrix_: Matrix P of the map r(x) = μ + P (x − μ), `[p, p]`.
        mean_: Mean μ, `[p]`.
        rank_: Number of erased dimensions.
        environments_, environment_column_, n_features_in_: See `AnchorRegressor`.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> site = np.repeat(["north", "south"], 100)
        >>> X = rng.normal(size=(200, 3)) + np.where(site == "south", 2.0, 0.0)[:, None]
        >>> erased = LEACE().fit(X, environments=site).transform(X)
        >>> bool(np.allclose(erased[:100].mean(axis=0), erased[100:].mean(axis=0)))
        True
    """

    __metadata_request__fit = {"concepts": True}  # noqa: RUF012  # pyright: ignore[reportUnusedVariable]

    matrix_: Array
    mean_: Array
    rank_: int

    def __init__(self, *, orthogonal: bool = False, shrinkage: bool = False, tolerance: float = 1e-6) -> None:
        self.orthogonal = orthogonal
        self.shrinkage = shrinkage
        self.tolerance = tolerance

    def fit(
        self,
        X: Any,  # noqa: N803
        y: Any = None,
        *,
        environments: ArrayLike | str | None = None,
        concepts: ArrayLike | None = None,
    ) -> Self:
        """Fit the map.

        Args:
            X: Features, `[rows, p]`: an array or a data frame.
            y: Ignored.
            environments: Environment labels, `[rows]`, of any type, or the name of the environment column of
                the data frame `X`. This column is not a feature.
            concepts: Instead of environments: numeric concepts Z, `[rows]` or `[rows, k]`.

        Returns:
            The fitted transformer.

        Raises:
            EnvariantError: If an argument or a parameter is invalid.

        Warns:
            UserWarning: If there are neither environments nor concepts; the map is then the identity.
        """
        tolerance = check_number("LEACE", "tolerance", self.tolerance, 0)
        if environments is not None and concepts is not None:
            raise EnvariantError("LEACE: got both environments and concepts; pass one of them")
        instead = "features were left unchanged" if concepts is None else ""
        rows = self._read_rows(X, None, environments, instead, supervised=False)
        z = (rows.codes[:, None] == np.arange(len(rows.names))).astype(np.float64)
        if concepts is not None:
            z = _concepts(concepts, len(rows.inputs))
        self.mean_ = rows.inputs.mean(axis=0)
        whitening = None if self.orthogonal else _covariance(rows.inputs, shrinkage=self.shrinkage)
        cross = (rows.inputs - self.mean_).T @ (z - z.mean(axis=0)) / (len(z) - 1)
        self.matrix_, singular = erase(whitening, cross, tolerance)
        self.rank_ = len(singular)
        self._remember(rows, environments)
        return self

    def transform(self, X: Any) -> Array:  # noqa: N803
        """Return the features without linear information on the environment, `[rows, p]`.

        Args:
            X: Features, `[rows, p]`; a data frame may also have the environment column.
        """
        x = self._columns(X)
        return self.mean_ + (x - self.mean_) @ self.matrix_.T

    def __sklearn_tags__(self) -> Any:
        tags: Any = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64"]
        return tags


def erase(covariance: Array | None, cross: Array, tolerance: float = 1e-6) -> tuple[Array, Array]:
    """Return the matrix I − W⁺ U Uᵀ W, `[p, p]`, and the erased singular values of W Σ_XZ; see `LEACE`.

    Args:
        covariance: Covariance Σ_XX of the features, `[p, p]`; None for W = I.
        cross: Covariance Σ_XZ of features and concepts, `[p, concepts]`.
        tolerance: Singular values below this share of the largest one count as 0.
    """
    p = len(cross)
    root = inverse_root = np.eye(p)
    if covariance is not None:
        values, vectors = np.linalg.eigh(covariance)
        kept = values > _RANK_TOLERANCE * max(values.max(), 0.0)
        values, vectors = values[kept], vectors[:, kept]
        root = (vectors * np.sqrt(values)) @ vectors.T
        inverse_root = (vectors / np.sqrt(values)) @ vectors.T
    left, singular, _ = np.linalg.svd(inverse_root @ cross, full_matrices=False)
    kept = (singular > tolerance * singular.max(initial=0.0)) & (singular > np.finfo(np.float64).tiny)
    u = left[:, kept]
    return np.eye(p) - root @ u @ u.T @ inverse_root, singular[kept]


def shrinkage_weight(covariance: Array, n: int) -> float:
    """Return the weight a of the sample covariance S in the shrunk covariance; see `LEACE`.

    Args:
        covariance: Covariance S with divisor n, `[p, p]`.
        n: Number of rows.
    """
    trace, p = float(np.trace(covariance)), len(covariance)
    spread = float(np.square(covariance).sum()) - trace**2 / p
    return min(1.0, max(0.0, 1 - trace**2 / n / spread)) if spread > 0 else 1.0


def _covariance(x: Array, *, shrinkage: bool) -> Array:
    centered = x - x.mean(axis=0)
    covariance = centered.T @ centered / (len(x) if shrinkage else len(x) - 1)
    if not shrinkage:
        return covariance
    a, p = shrinkage_weight(covariance, len(x)), x.shape[1]
    return a * covariance + (1 - a) * np.trace(covariance) / p * np.eye(p)


def _concepts(concepts: ArrayLike, rows: int) -> Array:
    try:
        z = np.asarray(concepts, dtype=np.float64)
    except (TypeError, ValueError):
        raise EnvariantError("LEACE: concepts must be numbers; pass labels as environments=…") from None
    z = z[:, None] if z.ndim == 1 else z
    if z.ndim != 2 or len(z) != rows:
        raise EnvariantError(
            f"LEACE: concepts must have the shape [{rows}, columns], got {list(np.shape(concepts))}"
        )
    if not np.isfinite(z).all():
        raise EnvariantError("LEACE: concepts must be finite numbers; fill in missing values")
    return z
