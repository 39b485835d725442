"""Anchors: environments or continuous columns whose span explains part of a residual."""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
from scipy import linalg

from envariant.closed_forms.base import Array, Codes, environment_means, least_squares
from envariant.core.errors import EnvariantError

# Singular values of the anchors below this share of the largest one are rounding errors.
_RANK_TOLERANCE = 1e-10


@final
@dataclass(frozen=True, eq=False)
class Anchors:
    """Projection Π on the span of centered anchors.

    Attributes:
        codes: Environment number of each row, `[rows]`; None for anchor columns.
        basis: Orthonormal basis of the centered anchor columns, `[rows, rank]`; None for environments.
        rank: Dimension of the span: the number of environments minus 1, or the rank of the columns.
    """

    codes: Codes | None
    basis: Array | None
    rank: int

    def project(self, values: Array) -> Array:
        """Return Πv for centered columns v, `[rows, columns]`.

        For environments, (Πv)_i is the mean of v in the environment of row i, so no matrix is needed.
        """
        if self.codes is not None:
            return environment_means(values, self.codes)[self.codes]
        assert self.basis is not None
        return self.basis @ (self.basis.T @ values)


def environment_anchors(codes: Codes) -> Anchors:
    """Return anchors that are the indicators of environments.

    Args:
        codes: Environment number of each row, `[rows]`.
    """
    return Anchors(codes, None, int(codes.max()))


def column_anchors(where: str, columns: Any, rows: int) -> Anchors:
    """Return anchors that are numeric columns.

    Args:
        where: Name of the estimator, for error messages.
        columns: Anchor columns, `[rows, q]` or `[rows]`.
        rows: Number of rows.

    Raises:
        EnvariantError: If the columns are not finite numbers, do not match the rows, or are constant.
    """
    try:
        values = np.asarray(columns, dtype=np.float64)
    except (TypeError, ValueError):
        raise EnvariantError(f"{where}: anchors must be numbers; pass labels as environments=…") from None
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or len(values) != rows:
        raise EnvariantError(
            f"{where}: anchors must have the shape [{rows}, columns], got {list(np.shape(columns))}"
        )
    if not np.isfinite(values).all():
        raise EnvariantError(f"{where}: anchors must be finite numbers; fill in missing values")
    centered = values - values.mean(axis=0)
    spread = np.sqrt(np.square(centered).mean(axis=0))
    varying = spread > _RANK_TOLERANCE * (1 + np.abs(values).max(axis=0, initial=0.0))
    if not varying.any():
        raise EnvariantError(f"{where}: anchors are constant; pass columns that vary between rows")
    left, singular, _ = linalg.svd(centered[:, varying] / spread[varying], full_matrices=False)
    basis = left[:, singular > _RANK_TOLERANCE * singular[0]]
    return Anchors(None, basis, basis.shape[1])


def solve_weighted(
    x: Array, y: Array, anchors: Anchors, *, within: float, between: float, ridge: float = 0.0
) -> Array:
    """Return argmin_b within · ‖(I−Π)(y−Xb)‖² + between · ‖Π(y−Xb)‖² + ridge · ‖b‖².

    The minimum is an ordinary least-squares fit of the rows √within (v − Πv) + √between Πv (least norm, if
    columns are collinear). A negative weight, as in LIML, needs the normal equations.

    Args:
        x: Centered columns, `[rows, p]`.
        y: Centered targets, `[rows]`.
        anchors: Projection Π.
        within: Weight of the residual that the anchors do not explain.
        between: Weight of the residual that the anchors explain, at least 0.
        ridge: Strength of the ridge penalty, at least 0.

    Returns:
        Coefficients b, `[p]`.
    """
    p = x.shape[1]
    columns = np.column_stack([x, y])
    explained = anchors.project(columns)
    rest = columns - explained
    if within >= 0:
        rows = np.sqrt(within) * rest + np.sqrt(between) * explained
        if ridge:
            rows = np.vstack([rows, np.sqrt(ridge) * np.eye(p, p + 1)])
        return least_squares(rows[:, :-1], rows[:, -1])
    normal = within * rest.T @ rest + between * explained.T @ explained + ridge * np.eye(p + 1)
    return least_squares(normal[:-1, :-1], normal[:-1, -1])
