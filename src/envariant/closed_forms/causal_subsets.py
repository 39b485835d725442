"""Invariant causal prediction: which subsets of columns have equal residuals in all environments."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Literal, final

import numpy as np
from scipy import stats
from scipy.special import expit

from envariant.analysis._logistic import fit_logistic
from envariant.closed_forms.base import Array, Codes, least_squares
from envariant.closed_forms.residual_tests import compare_with_the_rest

Test = Literal["residuals", "exact"]
Correction = Literal["environments", "comparisons"]
Subset = tuple[int, ...]


@final
@dataclass(frozen=True, eq=False)
class SubsetFit:
    """Regression of the target on a subset of columns, with the rows of all environments pooled.

    Attributes:
        columns: Positions of the columns.
        coefficients: Slopes, `[columns]`.
        errors: Standard errors of the slopes, `[columns]`.
        intercept: Intercept.
        residuals: Targets minus predictions, `[rows]`.
    """

    columns: Subset
    coefficients: Array
    errors: Array
    intercept: float
    residuals: Array


@final
@dataclass(frozen=True, eq=False)
class CausalSubsets:
    """Result of invariant causal prediction.

    Attributes:
        p_values: P-value of the hypothesis that a subset is invariant, by subset; the key () is the empty
            subset.
        fits: Regression on each accepted subset.
        alpha: Level of the tests: a subset is accepted if its p-value exceeds α.
        n_columns: Number of columns p.
        tested: Positions of the tested columns.
    """

    p_values: dict[Subset, float]
    fits: tuple[SubsetFit, ...]
    alpha: float
    n_columns: int
    tested: Subset

    @property
    def accepted(self) -> tuple[Subset, ...]:
        """Accepted subsets; empty if the model is rejected."""
        return tuple(fit.columns for fit in self.fits)

    @property
    def parents(self) -> Subset | None:
        """Intersection Ŝ of the accepted subsets: causal parents, at level α; None if all are rejected."""
        if not self.fits:
            return None
        return tuple(j for j in self.tested if all(j in subset for subset in self.accepted))

    @cached_property
    def column_p_values(self) -> Array:
        """P-value of each column, `[p]`: the largest of a subset without it; 1 if all are rejected."""
        values = np.ones(self.n_columns)
        for j in self.tested if self.fits else ():
            values[j] = max(p for subset, p in self.p_values.items() if j not in subset)
        return values

    @cached_property
    def intervals(self) -> Array:
        """Confidence interval of each coefficient, `[p, 2]`; NaN if all are rejected or it was not tested.

        The interval is the union over accepted subsets of β̂_j ± z_{1−α/4} s_j, where s_j is the standard
        error, and of 0 for subsets without j. It misses with probability at most α + α/2: the tests reject
        the set of the parents with probability α, and its own interval misses with probability α/2.
        """
        bounds = np.full((self.n_columns, 2), np.nan)
        z = float(stats.norm.isf(self.alpha / 4))
        for j in self.tested if self.fits else ():
            own = [(f.coefficients[k], f.errors[k]) for f in self.fits for k in _position(f.columns, j)]
            lows, highs = [b - z * s for b, s in own], [b + z * s for b, s in own]
            if len(own) < len(self.fits):
                lows, highs = [*lows, 0.0], [*highs, 0.0]
            bounds[j] = min(lows), max(highs)
        return bounds

    @cached_property
    def defining_sets(self) -> tuple[Subset, ...]:
        """Minimal sets that share a column with every accepted subset (Heinze-Deml et al. 2018).

        At level α, each of them contains a causal parent, even if no single column is in all accepted
        subsets. There are none if the empty subset is accepted, or all are rejected.
        """
        if not self.fits or () in self.accepted:
            return ()
        accepted = [set(subset) for subset in self.accepted]
        minimal: list[Subset] = []
        for candidate in all_subsets(self.tested):
            contained = any(set(known) <= set(candidate) for known in minimal)
            if not contained and all(subset & set(candidate) for subset in accepted):
                minimal.append(candidate)
        return tuple(minimal)


def find_causal_subsets(
    x: Array,
    y: Array,
    codes: Codes,
    *,
    alpha: float = 0.05,
    binary: bool = False,
    test: Test = "residuals",
    correction: Correction = "environments",
    tested: Subset | None = None,
) -> CausalSubsets:
    """Test every subset of columns for invariance (Peters, Bühlmann and Meinshausen 2016, arXiv 1501.01332).

    For each subset S, including the empty one, y is regressed on X_S with the rows of all environments
    pooled. test="residuals" compares the residuals of each environment e with those of the others by a t
    test of the means and an F test of the variances, with the p-value p(S) = 2c · min_e min(p_t, p_F), where
    c corrects for the number of environments. For binary targets, the regression is logistic, and only the
    means are compared: p(S) = c · min_e p_t. test="exact" is Chow's test of whether the model fitted outside
    e predicts the rows of e, exact for normal noise: p(S) = E · min_e P(F > F_e) with

        F_e = (RSS − RSS_{−e}) / n_e / (RSS_{−e} / (n_{−e} − |S| − 1))

    where RSS_{−e} is the residual sum of squares of the regression without e. P-values are at most 1.

    Args:
        x: Columns, `[rows, p]`.
        y: Targets, `[rows]`; 0 or 1 if `binary`.
        codes: Environment number of each row, `[rows]`. With a single environment, every p-value is 1.
        alpha: Level. P(Ŝ ⊆ parents) ≥ 1 − α if the model holds.
        binary: Whether targets are classes.
        test: Test of a subset; "exact" is only for real-valued targets.
        correction: "environments": c = E for E > 2 environments, as in the paper; "comparisons": c = E − 1,
            as in the authors' program. With two environments, c = 1.
        tested: Positions of the columns to test. Default: all. There are 2^tested subsets.
    """
    columns = tuple(range(x.shape[1])) if tested is None else tested
    sizes = np.bincount(codes)
    count = len(sizes)
    factor = count if correction == "environments" and count > 2 else count - 1
    regress = regress_logistic if binary else regress_linear
    p_values: dict[Subset, float] = {}
    fits: list[SubsetFit] = []
    for subset in ((), *all_subsets(columns)):
        fit = regress(x, y, subset)
        if count < 2:
            p = 1.0
        elif test == "exact":
            p = count * _smallest_exact(x[:, subset], y, codes, fit)
        else:
            means = np.bincount(codes, fit.residuals) / sizes
            squares = np.bincount(codes, np.square(fit.residuals)) / sizes
            p_t, p_f = compare_with_the_rest(means, squares, sizes)
            smallest = p_t.min() if binary else 2 * min(p_t.min(), p_f.min())
            p = factor * float(smallest)
        p_values[subset] = min(1.0, p)
        if p_values[subset] > alpha:
            fits.append(fit)
    return CausalSubsets(p_values, tuple(fits), alpha, x.shape[1], columns)


def all_subsets(columns: Subset) -> Iterator[Subset]:
    """Yield the non-empty subsets of columns, the smallest first."""
    for size in range(1, len(columns) + 1):
        yield from combinations(columns, size)


def regress_linear(x: Array, y: Array, subset: Subset) -> SubsetFit:
    """Regress real-valued targets, `[rows]`, on a subset of the columns of `x`, `[rows, p]`."""
    center, mean = x[:, subset].mean(axis=0), float(y.mean())
    design, targets = x[:, subset] - center, y - mean
    slopes = least_squares(design, targets)
    residuals = targets - design @ slopes
    free = max(1, len(y) - len(subset) - 1)
    inverse = np.linalg.pinv(design.T @ design)
    errors = np.sqrt(np.square(residuals).sum() / free * np.maximum(np.diagonal(inverse), 0.0))
    return SubsetFit(subset, slopes, errors, mean - float(center @ slopes), residuals)


def regress_logistic(x: Array, y: Array, subset: Subset) -> SubsetFit:
    """Regress classes 0 and 1, `[rows]`, on a subset of the columns of `x`; residuals are y − P(y = 1)."""
    center, scale = x[:, subset].mean(axis=0), x[:, subset].std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    design = np.column_stack([np.ones(len(y)), (x[:, subset] - center) / scale])
    fit = fit_logistic(design[:, None], y[:, None], precision=1e-6)
    coefficients = fit.coefficients[0]
    slopes = coefficients[1:] / scale
    residuals = y - np.asarray(expit(design @ coefficients))
    return SubsetFit(
        subset, slopes, fit.errors[0, 1:] / scale, float(coefficients[0] - center @ slopes), residuals
    )


def _smallest_exact(x: Array, y: Array, codes: Codes, pooled: SubsetFit) -> float:
    """Return the smallest p-value of Chow's test over environments."""
    total, smallest = float(np.square(pooled.residuals).sum()), 1.0
    for e, n in enumerate(np.bincount(codes)):
        outside = codes != e
        own = regress_linear(x[outside], y[outside], tuple(range(x.shape[1]))).residuals
        rest, free = float(np.square(own).sum()), int(outside.sum()) - x.shape[1] - 1
        if free > 0 and rest > 0:
            smallest = min(smallest, float(stats.f.sf((total - rest) / n / (rest / free), n, free)))
    return smallest


def _position(columns: Subset, j: int) -> tuple[int, ...]:
    return (columns.index(j),) if j in columns else ()
