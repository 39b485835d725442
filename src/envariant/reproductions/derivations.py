"""Numerical checks of derivations in the course report: IRMv1 for least squares, and an AND-mask example.

Each result is computed in two independent ways: from the normal equations and by automatic differentiation,
or from the definition and by this library.
"""

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from envariant.algorithms import IRM, AndMask
from envariant.core.environments import EnvironmentBatch
from envariant.core.step_context import START
from envariant.core.tasks import Regression

# The example of the report: gradients of one 3×3 weight in three environments.
EXAMPLE = (
    ((0.5, 1.3, -2.1), (3.0, 3.4, -5.0), (-6.0, 3.5, -2.8)),
    ((-1.0, 1.0, -2.0), (-3.0, 4.0, -5.0), (-6.0, 7.0, -8.0)),
    ((0.0, 1.0, 2.0), (3.0, 4.0, 5.0), (6.0, 7.0, 8.0)),
)
EXAMPLE_THRESHOLD = 0.5


@final
@dataclass(frozen=True)
class LeastSquares:
    """Squared norm D = ‖ΦᵀY − ΦᵀΦw‖² of the residual of the normal equations, computed in three ways.

    All quantities belong to a single environment: Φ = Φ(X) are the features of the inputs X, Y are the
    targets (a linear function of Φ plus noise), and w are the weights of a linear predictor.

    Attributes:
        rows: Number of rows of Φ(X).
        features: Number of columns of Φ(X).
        best: Norm ‖w*‖ of the least-squares solution w*, which is computed from the normal equations.
        distance: D with all weights equal to 1, computed from the definition.
        gradient: ‖½ ∂/∂w ‖Φw − Y‖²‖² with all weights equal to 1, computed by automatic differentiation. In
            theory, it equals D.
        penalty: For a single feature, (rows/2)² times the IRM penalty that this library computes for the
            predictions Φ·1. In theory, it equals D. None for several features, because the IRM penalty is a
            derivative with respect to a single factor.
        at_best: D at the solution w*. In theory, it is 0.
    """

    rows: int
    features: int
    best: float
    distance: float
    gradient: float
    penalty: float | None
    at_best: float

    @property
    def disagreement(self) -> float:
        """Larger of the relative deviations of `gradient` and `penalty` from `distance`."""
        others = [self.gradient] + ([] if self.penalty is None else [self.penalty])
        return max(abs(other - self.distance) / self.distance for other in others)


def least_squares(rows: int, features: int, seed: int) -> LeastSquares:
    """Compute D = ‖ΦᵀY − ΦᵀΦw‖² at w = 1 for random data in three ways, in float64; see `LeastSquares`.

    Args:
        rows: Number of rows of the random data.
        features: Number of features of the random data.
        seed: Seed of the random data.
    """
    phi, y = _linear(rows, features, seed)
    solution = torch.linalg.solve(phi.T @ phi, phi.T @ y)
    ones = torch.ones(features, dtype=torch.float64, requires_grad=True)
    risk = (phi @ ones - y).square().sum()
    (slope,) = torch.autograd.grad(risk, [ones])
    penalty = None
    if features == 1:
        batch = EnvironmentBatch(phi, y, (rows,), Regression())
        predicted = batch.predicted(phi.new_zeros(rows, 0), phi[:, 0])
        # The library's risk is a mean over rows, hence n; its derivative is not halved, hence 2.
        penalty = float(IRM().penalty(predicted, {})[0]) * (rows / 2) ** 2
    return LeastSquares(
        rows,
        features,
        float(solution.norm()),
        _distance(phi, y, ones.detach()),
        float((slope / 2).square().sum()),
        penalty,
        _distance(phi, y, solution),
    )


def penalty_along(seed: int, reach: float = 2.0, count: int = 81) -> tuple[float, list[float], list[float]]:
    """Return the quantity D of `LeastSquares` as a function of a single weight w, for random data.

    D = ‖ΦᵀY − ΦᵀΦw‖² is the squared norm of the residual of the normal equations, for one feature Φ and
    targets Y.

    Args:
        seed: Seed of the random data.
        reach: Largest distance of w from the optimal weight.
        count: Number of values of w.

    Returns:
        Optimal weight, values of w around it, and D at each of these values.
    """
    phi, y = _linear(200, 1, seed)
    best = float((phi.T @ y) / (phi.T @ phi))
    points = torch.linspace(best - reach, best + reach, count, dtype=torch.float64)
    return best, points.tolist(), [_distance(phi, y, w[None]) for w in points]


@final
@dataclass(frozen=True)
class WorkedExample:
    """Example of AND-mask in the course report; each attribute has one value per entry of a 3×3 gradient.

    Attributes:
        agreement: Mean of the signs of the gradient entry in the three environments, `[3, 3]`.
        mask: Mask according to the definition: 1 if |agreement| is at least the threshold, else 0, `[3, 3]`.
        kept: Mask according to this library: 1 if its AND-mask leaves the entry nonzero, else 0, `[3, 3]`.
    """

    agreement: tuple[tuple[float, ...], ...]
    mask: tuple[tuple[int, ...], ...]
    kept: tuple[tuple[int, ...], ...]

    def rows(self) -> tuple[tuple[str, ...], ...]:
        """Return table rows, one per gradient entry: position, three gradients, mean sign, `mask`, `kept`."""
        return tuple(
            (
                f"({row + 1}, {column + 1})",
                *(f"{gradient[row][column]:g}" for gradient in EXAMPLE),
                f"{self.agreement[row][column]:+.3f}",
                str(self.mask[row][column]),
                str(self.kept[row][column]),
            )
            for row in range(3)
            for column in range(3)
        )


def worked_example() -> WorkedExample:
    """Compute the mask of the course report's example from the definition and with this library."""
    signs = np.sign(np.array(EXAMPLE)).mean(axis=0)
    mask = (np.abs(signs) >= EXAMPLE_THRESHOLD).astype(int)
    rule = AndMask(threshold=EXAMPLE_THRESHOLD, inverse_sparsity=False)
    result = rule.combine({"w": torch.tensor(EXAMPLE, dtype=torch.float64)}, {}, START)[0]["w"]
    return WorkedExample(_rows(signs.tolist()), _rows(mask.tolist()), _rows((result != 0).int().tolist()))


@final
@dataclass(frozen=True)
class Hessians:
    """Determinants of the geometric and the arithmetic mean of two diagonal Hessians A and B.

    Attributes:
        size: Number of diagonal entries.
        ratio: Geometric mean of max(a, b) / min(a, b) over all pairs of entries a of A and b of B at the same
            position.
        both: Determinant of the entrywise geometric mean of A and B.
        mean: Determinant of the entrywise arithmetic mean of A and B.
    """

    size: int
    ratio: float
    both: float
    mean: float


def hessians(size: int, spread: float, seed: int) -> Hessians:
    """Draw two random diagonal Hessians, and compute the determinants of their means.

    Args:
        size: Number of diagonal entries.
        spread: Standard deviation of log(a / b) for entries a of A and b of B at the same position.
        seed: Seed of the random entries.
    """
    generator = np.random.default_rng(seed)
    middle, apart = generator.normal(0, 0.5, size), generator.normal(0, spread, size)
    first, second = np.exp(middle + apart / 2), np.exp(middle - apart / 2)
    return Hessians(
        size,
        float(np.exp(np.abs(apart).mean())),
        float(np.prod(np.sqrt(first * second))),
        float(np.prod((first + second) / 2)),
    )


def largest_ratio(count: int, seed: int) -> float:
    """Return the largest ratio `both` / `mean` over random `Hessians`; the ratio is 1 if A equals B.

    Args:
        count: Number of random pairs, with sizes from 1 to 20.
        seed: Seed of the random pairs.
    """
    sizes = np.random.default_rng(seed).integers(1, 21, count)
    pairs = (hessians(int(size), 1.0, seed + i) for i, size in enumerate(sizes))
    return max(pair.both / pair.mean for pair in pairs if math.isfinite(pair.mean))


def _linear(rows: int, features: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    phi = torch.randn(rows, features, generator=generator, dtype=torch.float64)
    truth = torch.randn(features, generator=generator, dtype=torch.float64)
    return phi, phi @ truth + 0.3 * torch.randn(rows, generator=generator, dtype=torch.float64)


def _distance(phi: Tensor, y: Tensor, w: Tensor) -> float:
    return float((phi.T @ y - phi.T @ (phi @ w)).square().sum())


def _rows(nested: list[list[Any]]) -> tuple[tuple[Any, ...], ...]:
    return tuple(tuple(row) for row in nested)
