"""Measure how far rows are from the training environments, to flag rows where a model extrapolates."""

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from envariant.analysis.conformal import split_threshold
from envariant.core.errors import EnvariantError

Array = NDArray[np.float64]

UNLIKE_LEVEL = 0.01
"""Default share of rows flagged by mistake if new rows are distributed like the training rows."""

MOST_DISTANCES = 1_000
"""Largest number of stored distances of training rows."""

# Rows from which the density is estimated, and inputs up to which covariances are.
_MOST_ROWS, _MOST_INPUTS = 20_000, 256
_FOLDS = 5
# Share of the mean variance that is added to every variance, to avoid a division by zero for constant inputs.
_RIDGE = 1e-6
# Shrinkage of the variances towards their mean where covariances are not estimated.
_SHRINKAGE = 0.1


@final
@dataclass(frozen=True, eq=False)
class InputDensity:
    """Mahalanobis distance of a row to the nearest training environment, with fitted means and covariance.

    Attributes:
        whitening: Matrix W with W Wᵀ = Σ⁻¹, `[inputs, inputs]`, for the covariance Σ of the inputs within
            environments. With more than 256 inputs, only the diagonal of W, `[inputs]`.
        centers: Whitened mean of each environment, `[environments, inputs]`.
        distances: Cross-fitted distances of training rows, in increasing order; at most 1,000 evenly spaced
            quantiles.
    """

    whitening: Array
    centers: Array
    distances: Array

    def measure(self, inputs: ArrayLike) -> Array:
        """Return the Mahalanobis distance of each row to the nearest training environment, `[rows]`.

        Args:
            inputs: Encoded inputs, `[rows, inputs]`.
        """
        x = np.asarray(inputs, dtype=np.float64)
        z = x * self.whitening if self.whitening.ndim == 1 else x @ self.whitening
        # The matrix product is much faster than differences to each center.
        squares = np.square(z).sum(1)[:, None] + np.square(self.centers).sum(1) - 2 * z @ self.centers.T
        return np.sqrt(np.maximum(squares.min(axis=1), 0.0))

    def threshold(self, level: float = UNLIKE_LEVEL) -> float:
        """Return the distance above which rows are flagged; infinite if there are too few training rows.

        Args:
            level: Share of rows flagged by mistake if new rows are distributed like the training rows.
        """
        return split_threshold(self.distances, level).value


def fit_density(inputs: ArrayLike, environments: ArrayLike) -> InputDensity:
    """Estimate the density of the inputs by one mean per environment and a common covariance.

    The covariance is a shrinkage estimate (Ledoit & Wolf 2004). Distances of training rows are cross-fitted
    with five folds, so they are distributed like distances of new rows from the same environments. At most
    20,000 rows are used.

    Args:
        inputs: Encoded inputs of the training rows, `[rows, inputs]`.
        environments: Environment of each row, `[rows]`.

    Raises:
        EnvariantError: If there are fewer than two rows, lengths differ, or a value is not finite.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> x, hospital = rng.normal(size=(1000, 3)), np.repeat(["A", "B"], 500)
        >>> density = fit_density(x, hospital)
        >>> (density.measure([[0, 0, 0], [5, 5, 5]]) > density.threshold(0.01)).tolist()
        [False, True]
    """
    x, labels = np.asarray(inputs, dtype=np.float64), np.asarray(environments)
    if x.ndim != 2 or len(x) < 2 or len(labels) != len(x) or not np.isfinite(x).all():
        raise EnvariantError(
            "fit_density: needs at least two rows, finite inputs and one environment per row"
        )
    if len(x) > _MOST_ROWS:
        used = np.linspace(0, len(x) - 1, _MOST_ROWS).astype(np.int64)
        x, labels = x[used], labels[used]
    codes = np.unique(labels, return_inverse=True)[1]
    # Each environment's rows are spread over all folds.
    fold = np.empty(len(x), dtype=np.int64)
    fold[np.argsort(codes, kind="stable")] = np.arange(len(x)) % min(_FOLDS, len(x))
    # Rows that are sorted by a column would make the folds differ.
    fold = _shuffled_within(fold, codes)
    distances = np.empty(len(x))
    for k in range(min(_FOLDS, len(x))):
        rest = fold != k
        distances[~rest] = _estimate(x[rest], codes[rest]).measure(x[~rest])
    density = _estimate(x, codes)
    return InputDensity(density.whitening, density.centers, quantiles(distances, MOST_DISTANCES))


def quantiles(values: Array, most: int) -> Array:
    """Return the sorted values; if there are more than `most`, return `most` evenly spaced quantiles."""
    if len(values) <= most:
        return np.sort(values)
    return np.quantile(values, (np.arange(most) + 0.5) / most, method="inverted_cdf")


def _shuffled_within(fold: NDArray[np.int64], codes: NDArray[np.int64]) -> NDArray[np.int64]:
    generator, shuffled = np.random.default_rng(0), fold.copy()
    for k in range(int(codes.max()) + 1):
        shuffled[codes == k] = generator.permutation(fold[codes == k])
    return shuffled


def _estimate(x: Array, codes: NDArray[np.int64]) -> InputDensity:
    """Fit the density without cross-fitted distances of training rows."""
    from sklearn.covariance import ledoit_wolf

    present, codes = np.unique(codes, return_inverse=True)
    sums = np.zeros((len(present), x.shape[1]))
    np.add.at(sums, codes, x)
    means = sums / np.bincount(codes)[:, None]
    within = x - means[codes]
    if x.shape[1] > _MOST_INPUTS:
        variance = within.var(axis=0)
        mean = float(variance.mean()) or 1.0
        whitening = 1 / np.sqrt((1 - _SHRINKAGE) * variance + _SHRINKAGE * mean)
        return InputDensity(whitening, means * whitening, np.zeros(0))
    covariance = ledoit_wolf(within, assume_centered=True)[0]
    mean = float(np.trace(covariance)) / len(covariance) or 1.0
    values, vectors = np.linalg.eigh(covariance)
    whitening = vectors / np.sqrt(np.maximum(values, 0.0) + _RIDGE * mean)
    return InputDensity(whitening, means @ whitening, np.zeros(0))
