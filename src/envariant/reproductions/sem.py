"""Errors of ERM, invariant causal prediction and IRM in the problems of `linear-sem`.

All methods are computed from the moments of each environment, not from its rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from envariant.data.linear_sem import ROWS, WIDTH, Equations, LinearSEM, Setup
from envariant.reproductions import irm_linear
from envariant.reproductions.causal_prediction import predict_causally
from envariant.reproductions.quadratic import Moments

METHODS = ("ERM", "ICP", "IRM")
ERRORS = ("causal", "non-causal")


@final
@dataclass(frozen=True, eq=False)
class Problems:
    """Several problems of the same shape.

    Attributes:
        moments: Moments of shape `[problems, environments]`.
        with_intercept: Moments of the same data, with a column of ones appended to the inputs.
        scramble: Matrix that undoes the scrambling of weights, of shape `[problems, d, d]`.
        weights: True weights, of shape `[problems, d]`.
    """

    moments: Moments
    with_intercept: Moments
    scramble: Tensor
    weights: Tensor

    @classmethod
    def of(cls, drawn: Sequence[Equations]) -> "Problems":
        """Compute the moments of drawn problems, and return all problems as one batch."""
        x, y = torch.stack([each.x for each in drawn]), torch.stack([each.y for each in drawn])
        scramble = torch.stack([each.scramble for each in drawn]).double()
        weights = torch.stack([each.weights for each in drawn]).double()
        return cls(Moments.of(x, y), Moments.of(x, y, intercept=True), scramble, weights)

    def errors(self, estimate: Tensor) -> dict[str, list[float]]:
        """Return the mean squared errors of the estimated weights, one per problem.

        The estimate is unscrambled before it is compared with the true weights. The result has two lists: for
        the weights of causes ("causal") and for those of effects ("non-causal").

        Args:
            estimate: Estimated weights of the (scrambled) inputs, of shape `[problems, d]`.
        """
        unscrambled = (self.scramble @ estimate[..., None])[..., 0]
        squared = (unscrambled - self.weights).square()
        parts = (squared[:, :WIDTH], squared[:, WIDTH:])
        return {name: part.mean(dim=1).tolist() for name, part in zip(ERRORS, parts, strict=True)}


def solve(setup: Setup, seeds: int, steps: int) -> dict[str, Any]:
    """Return the errors of all methods for problems with the seeds 0 to `seeds` − 1.

    ERM and invariant causal prediction use all environments. IRM trains on the first two and selects the
    weight of its risk by the error in the third.

    Args:
        setup: Setup of `linear-sem`.
        seeds: Number of problems.
        steps: Number of steps of IRM.

    Returns:
        Causal and non-causal errors by method. Also, for each problem, the selected weight of IRM's risk
        ("regs"), the number of accepted subsets ("accepted"), and the smallest distance between a p-value and
        the level ("closest").
    """
    source = LinearSEM(setup)
    problems = Problems.of([source.draw(torch.Generator().manual_seed(seed)) for seed in range(seeds)])
    causal = predict_causally(problems.with_intercept, ROWS)
    irm = irm_linear.select(problems.moments[:, :2], problems.moments[:, 2], steps)
    return {
        "ERM": problems.errors(problems.moments.mean(1).least_squares()),
        "ICP": problems.errors(causal.weights),
        "IRM": problems.errors(irm.weights),
        "regs": irm.regs.tolist(),
        "accepted": causal.accepted.tolist(),
        "closest": causal.closest.tolist(),
    }
