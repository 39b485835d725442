"""Invariant causal prediction (Peters et al. 2016) for batches of linear problems.

For every non-empty subset of the inputs, the target is regressed on the subset, with the rows of all
environments pooled. The subset is accepted if tests find no environment whose residuals differ in mean or
variance from those of the other environments. The estimate is the regression on the inputs that all accepted
subsets share.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envariant.closed_forms.residual_tests import compare_with_the_rest
from envariant.reproductions.quadratic import Moments


@final
@dataclass(frozen=True, eq=False)
class CausalPrediction:
    """Result of invariant causal prediction for several problems.

    Attributes:
        weights: Estimated weights, of shape `[problems, d]`; zeros if no input is in all accepted subsets.
        accepted: Number of accepted subsets of each problem.
        closest: Smallest distance |p − level| of each problem, where p is the corrected p-value of a subset
            and the minimum is over all subsets. If it is near 0, rounding may decide whether that subset is
            accepted.
    """

    weights: Tensor
    accepted: Tensor
    closest: Tensor


def predict_causally(moments: Moments, rows: int, level: float = 0.05) -> CausalPrediction:
    """Run invariant causal prediction as the released program of the IRM paper does.

    For each environment e, `compare_with_the_rest` compares the residuals inside e with those outside it: a
    t test of the means has the p-value p_t, and an F test of the variances has the p-value p_F. With
    p_e = 2 min(p_t, p_F) and E environments, a subset is accepted if its corrected p-value E · min_e p_e
    exceeds the level.

    Args:
        moments: Moments of shape `[problems, environments]`, computed with an intercept. The intercept is
            needed for the means of the residuals; the regressions themselves have no intercept.
        rows: Number of rows of every environment.
        level: Level of the tests.
    """
    problems, environments, width = moments.cross.shape
    d = width - 1
    pooled = moments.mean(1)
    shared = torch.ones(problems, d, dtype=torch.bool)
    accepted = torch.zeros(problems, dtype=torch.long)
    closest = torch.full((problems,), torch.inf, dtype=torch.float64)
    for size in range(1, d + 1):
        subsets = torch.tensor(list(combinations(range(d), size)))
        weights = torch.zeros(problems, len(subsets), width, dtype=torch.float64)
        solutions = _regress(pooled, subsets)
        weights.scatter_(2, subsets.expand(problems, -1, -1), solutions)
        p = torch.from_numpy(_p_values(*_residuals(moments, weights), rows))
        is_accepted = environments * p > level
        member = torch.zeros(len(subsets), d, dtype=torch.bool).scatter_(1, subsets, value=True)
        shared &= (member | ~is_accepted[..., None]).all(dim=1)
        accepted += is_accepted.sum(dim=1)
        closest = torch.minimum(closest, (environments * p - level).abs().amin(dim=1))
    shared &= (accepted > 0)[:, None]
    estimate = torch.zeros(problems, d, dtype=torch.float64)
    for i in shared.any(dim=1).nonzero()[:, 0].tolist():
        columns = shared[i].nonzero()[:, 0]
        estimate[i, columns] = _regress(pooled[i : i + 1], columns[None])[0, 0]
    return CausalPrediction(estimate, accepted, closest)


def _regress(pooled: Moments, subsets: Tensor) -> Tensor:
    """Return the regression coefficients `[problems, subsets, size]` for input subsets `[subsets, size]`."""
    gram = pooled.gram[:, subsets[:, :, None], subsets[:, None, :]]
    return torch.linalg.solve(gram, pooled.cross[:, subsets])


def _residuals(moments: Moments, weights: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return means and mean squares of the residuals, each of shape `[problems, environments, subsets]`."""
    # The last row of the Gram matrix holds the means of the inputs.
    means = moments.cross[:, :, None, -1] - torch.einsum("pej,psj->pes", moments.gram[:, :, -1], weights)
    squares = moments[:, :, None].risk(weights[:, None])
    return means.numpy(), squares.numpy()


def _p_values(means: NDArray[np.float64], squares: NDArray[np.float64], rows: int) -> NDArray[np.float64]:
    """Return the smallest p-value over environments, min_e p_e, of shape `[problems, subsets]`."""
    each = np.full(means.shape[1], rows)
    p_t, p_f = compare_with_the_rest(np.moveaxis(means, 1, -1), np.moveaxis(squares, 1, -1), each)
    return 2 * np.minimum(p_t, p_f).min(axis=-1)
