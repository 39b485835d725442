"""Permutation tests for differences in means between environments.

Rows are permuted within strata, such as classes. P-values are corrected for the number of environments.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Codes = NDArray[np.int64]

RESAMPLES = 199
"""Number of resamples of each test."""

# Largest number of rows, shared equally by the environments, and largest standardized value.
_MOST_ROWS = 6000
_LARGEST = 5.0


def search_deviating(
    statistics: Callable[[NDArray[np.bool_]], tuple[Array, Array]], count: int, level: float
) -> Array:
    """Test which environments deviate from the others; return one p-value per environment.

    The search is repeated: as long as some environments deviate significantly, the most deviating ones are
    excluded and the remaining environments are tested again. The p-value of an environment comes from the
    last round that included it. P-values are corrected for the number of environments.

    Args:
        statistics: Function that takes a mask of the environments to compare, `[environments]`. It returns
            the statistic of each environment, `[environments]`, and the statistics in resampled data,
            `[resamples, environments]`.
        count: Number of environments.
        level: Significance level at which environments are excluded.
    """
    p_values, keep, lowest = np.ones(count), np.ones(count, dtype=np.bool_), 0.0
    while True:
        observed, null = statistics(keep)
        exceeded = (null[:, keep].max(axis=1)[:, None] >= observed * (1 - 1e-12)).sum(axis=0)
        p = np.maximum((1 + exceeded) / (1 + len(null)), lowest)
        worst = int(np.where(keep, observed, -1.0).argmax())
        p_values[keep] = p[keep]
        if p[worst] > level or keep.sum() == 2:
            return p_values
        # To save time, exclude several environments at once if they deviate by nearly as much.
        removed = np.argsort(-np.where(keep, observed, -1.0))[: max(1, int(keep.sum()) // 4)]
        removed = removed[(p[removed] <= level) & (observed[removed] >= 0.5 * observed[worst])]
        lowest, keep[removed] = float(p[removed].max()), False


def mean_statistics(
    values: Array, strata: Codes, codes: Codes, keep: NDArray[np.bool_], generator: np.random.Generator
) -> tuple[Array, Array]:
    """Measure how far each environment's means are from the overall means, in the data and in permuted data.

    For each environment, the two distances returned by `distances` are standardized by their mean and
    standard deviation over permutations and environments. The measure is the larger of the two standardized
    distances, or 0 if both are negative.

    Args:
        values: Features of the rows, `[rows, features]`.
        strata: Stratum of each row, `[rows]`; rows are permuted within strata.
        codes: Environment of each row, `[rows]`.
        keep: Mask of the environments to compare, `[environments]`.
        generator: Random number generator of the permutations.

    Returns:
        Measure in the data, `[environments]`, and after each permutation, `[permutations, environments]`.
    """
    statistics = distances(values, strata, codes, keep, generator)
    null = statistics[:, 1:, keep]
    center, spread = null.mean(axis=(1, 2)), np.maximum(null.std(axis=(1, 2)), 1e-12)
    combined = ((statistics - center[:, None, None]) / spread[:, None, None]).max(axis=0)
    combined = np.where(keep, np.maximum(combined, 0.0), 0.0)
    return combined[0], combined[1:]


def distances(
    values: Array, strata: Codes, codes: Codes, keep: NDArray[np.bool_], generator: np.random.Generator
) -> Array:
    """Return two distances, for the data and for permutations, `[2, 1 + permutations, environments]`.

    The first is the squared Mahalanobis distance Σ_strata n_e ‖m_e − m‖² / (1 − n_e / n). Here n and m are
    the number of rows in a stratum and their mean, and n_e and m_e are the same quantities for the rows of
    environment e in the stratum. The second distance is the maximum of n_e (m_e − m)² / (1 − n_e / n) over
    single standardized features and strata. It is more powerful if only a few features differ. Arguments are
    as for `mean_statistics`.
    """
    count = len(keep)
    statistics = np.zeros((2, RESAMPLES + 1, count))
    chosen = keep[codes]
    parts = [np.flatnonzero(chosen & (strata == s)) for s in np.unique(strata[chosen])]
    centered = [values[rows] - values[rows].mean(axis=0) for rows in parts]
    pooled = np.concatenate(centered)
    whitener, variance = _whitener(pooled), np.maximum(np.square(pooled).mean(axis=0), 1e-12)
    for rows, part in zip(parts, centered, strict=True):
        order = np.argsort(codes[rows], kind="stable")
        sizes = np.bincount(codes[rows], minlength=count)
        present = np.flatnonzero(sizes)
        starts = np.cumsum(sizes[present]) - sizes[present]
        scale = 1 / (sizes[present] * np.clip(1 - sizes[present] / len(rows), 1e-12, None))
        sums = np.empty((RESAMPLES + 1, len(present), part.shape[1]))
        for b in range(RESAMPLES + 1):
            sums[b] = np.add.reduceat(part[order], starts, axis=0)
            order = generator.permutation(len(rows))
        distance = np.square(sums @ whitener).sum(axis=2) * scale
        largest = (np.square(sums) / variance).max(axis=2, initial=0.0) * scale
        statistics[0][:, present] += distance
        statistics[1][:, present] = np.maximum(statistics[1][:, present], largest)
    return statistics


def subsample_rows(codes: Codes, count: int, generator: np.random.Generator) -> Codes:
    """Sample up to max(50, `_MOST_ROWS` / count) rows of each of `count` environments; return row indices."""
    order = generator.permutation(len(codes))
    order = order[np.argsort(codes[order], kind="stable")]
    sizes = np.bincount(codes, minlength=count)
    rank = np.arange(len(codes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return order[rank < max(50, _MOST_ROWS // count)]


def varying_columns(x: Array) -> Array:
    """Omit constant columns; standardize and clip the others."""
    return standardized(x[:, x.std(axis=0) > 1e-12 * (1 + np.abs(x.mean(axis=0)))])


def standardized(x: Array) -> Array:
    """Standardize columns to mean 0 and standard deviation 1, and clip large values."""
    return np.clip((x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-12), -_LARGEST, _LARGEST)


def with_squares(x: Array) -> Array:
    """Append the squares, minus 1, of all columns with more than two distinct values."""
    several = np.array([len(np.unique(column)) > 2 for column in x.T], dtype=np.bool_)
    return np.column_stack([x, x[:, several] ** 2 - 1])


def _whitener(centered: Array) -> Array:
    """Return a matrix W such that the covariance matrix of `centered @ W` is the identity."""
    values, vectors = np.linalg.eigh(centered.T @ centered / len(centered))
    known = values > 1e-9 * max(float(values.max(initial=0.0)), 1e-12)
    return vectors[:, known] / np.sqrt(values[known])
