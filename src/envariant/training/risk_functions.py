"""Risk of one environment as a function of the weights of a linear model, with two derivatives.

The loss of row i is φ(u_i), where u_i = θ·x_i is linear in the weights θ. The risk of n rows is

    R = (1/n) Σ_i φ(u_i),    ∇R = (1/n) Σ_i φ'(u_i)·x_i,    ∇²R·v = (1/n) Σ_i φ''(u_i)·(v·x_i)·x_i.

Each derivative needs one or two matrix products with the rows, which all replicas of a stack can share.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast, final

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function


class Curve(ABC):
    """Base class of losses φ(u) of a row, where the number u is linear in the weights."""

    @abstractmethod
    def value(self, u: Tensor) -> Tensor:
        """Return φ(u)."""

    @abstractmethod
    def slope(self, u: Tensor) -> Tensor:
        """Return φ'(u)."""

    @abstractmethod
    def bend(self, change: Tensor, slope: Tensor) -> Tensor:
        """Return φ''(u)·change, given φ'(u)."""


@final
@dataclass(frozen=True)
class Softplus(Curve):
    """Logistic loss φ(u) = log(1 + e^u)."""

    def value(self, u: Tensor) -> Tensor:
        """Return φ(u), computed as in `Binary.losses`."""
        return F.softplus(u, threshold=40.0)

    def slope(self, u: Tensor) -> Tensor:
        """Return φ'(u) = σ(u)."""
        return torch.sigmoid(u)

    def bend(self, change: Tensor, slope: Tensor) -> Tensor:
        """Return φ''(u)·change, where φ'' = σ·(1 − σ)."""
        # One pass over the rows instead of three.
        return torch.ops.aten.sigmoid_backward(change, slope)


@final
@dataclass(frozen=True)
class Square(Curve):
    """Squared loss φ(u) = u²."""

    def value(self, u: Tensor) -> Tensor:
        """Return φ(u)."""
        return u.square()

    def slope(self, u: Tensor) -> Tensor:
        """Return φ'(u) = 2u."""
        return 2 * u

    def bend(self, change: Tensor, slope: Tensor) -> Tensor:
        """Return φ''(u)·change, where φ'' = 2."""
        del slope
        return 2 * change


def risk_and_gradient(
    weights: Float[Tensor, " columns"],
    rows: Float[Tensor, "rows columns"],
    shares: Float[Tensor, " rows"],
    curve: Curve,
) -> tuple[Float[Tensor, ""], Float[Tensor, " columns"]]:
    """Return R and ∇R, for use under `torch.func.vmap` and `grad`; ∇R can be differentiated once.

    Args:
        weights: Weights θ.
        rows: Rows x_i; rows of padding are 0.
        shares: Share of each row in the risk: 1/n, or 0 for padding. The first row is not padding.
        curve: Loss φ.
    """
    risk, gradient, _ = cast("tuple[Tensor, ...]", _Risk.apply(weights, rows, shares, curve))
    return risk, gradient


@final
class _Risk(Function):
    """R, ∇R and φ'(u_i). All tensors may have a first axis for the replicas."""

    @staticmethod
    def forward(weights: Tensor, rows: Tensor, shares: Tensor, curve: Curve) -> tuple[Tensor, ...]:
        u = _times(weights, rows.mT)
        slopes = curve.slope(u)
        risk = _times(curve.value(u), shares[..., None])[..., 0]
        return risk, _times(slopes, rows) * shares[..., :1], slopes

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        (_, rows, shares, ctx.curve), (_, gradient, slopes) = inputs, output
        ctx.save_for_backward(gradient, slopes, rows, shares)
        ctx.mark_non_differentiable(slopes)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *derivatives: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        """Return c·∇R + ∇²R·v, given the derivatives c and v with respect to R and ∇R."""
        of_risk, of_gradient, _ = derivatives
        gradient, *rest = ctx.saved_tensors
        terms = list[Tensor]() if of_risk is None else [of_risk[..., None] * gradient]
        if of_gradient is not None:
            terms.append(cast("Tensor", _HessianProduct.apply(of_gradient, *rest, ctx.curve)))
        return (sum(terms[1:], terms[0]) if terms else None), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, tuple[int, ...]]:
        del info
        return _Risk.apply(*_replicas_first(arguments, in_dims)), (0, 0, 0)


@final
class _HessianProduct(Function):
    """∇²R·v for a vector v. All tensors may have a first axis for the replicas."""

    @staticmethod
    def forward(vector: Tensor, slopes: Tensor, rows: Tensor, shares: Tensor, curve: Curve) -> Tensor:
        return _times(curve.bend(_times(vector, rows.mT), slopes), rows) * shares[..., :1]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *derivatives: Tensor) -> None:
        raise NotImplementedError("third derivatives of a risk")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, int]:
        del info
        return _HessianProduct.apply(*_replicas_first(arguments, in_dims)), 0


def _replicas_first(arguments: Sequence[Any], axes: Sequence[int | None]) -> list[Any]:
    return [
        each if axis is None else each.movedim(axis, 0) for each, axis in zip(arguments, axes, strict=True)
    ]


def _times(vectors: Tensor, matrix: Tensor) -> Tensor:
    """Multiply one vector per replica, `[*replicas, a]`, by one shared matrix or by one per replica."""
    return vectors @ matrix if matrix.dim() == 2 else (vectors[..., None, :] @ matrix)[..., 0, :]
