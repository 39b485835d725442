"""Squared loss of linear models, computed from sufficient statistics instead of rows.

The statistics of an environment with n rows are G = XᵀX/n, c = Xᵀy/n and s, the mean of y². The risk of
weights w and its gradient are exactly

    R(w) = wᵀGw − 2cᵀw + s        ∇R(w) = 2(Gw − c)

Whatever the number of rows, a full-batch step with d inputs costs one product with a d × d matrix.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor


@final
@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments of the inputs and targets of one or more environments.

    Attributes:
        gram: XᵀX/n, of shape `[..., d, d]`, float64.
        cross: Xᵀy/n, of shape `[..., d]`.
        square: Mean of y², of shape `[...]`.
    """

    gram: Float[Tensor, "*batch d d"]
    cross: Float[Tensor, "*batch d"]
    square: Float[Tensor, "*batch"]

    @classmethod
    def of(cls, x: Tensor, y: Tensor, *, intercept: bool = False) -> "Moments":
        """Return the moments of rows, computed in float64.

        Args:
            x: Inputs, of shape `[..., rows, d]`.
            y: Targets, of shape `[..., rows]`.
            intercept: Whether to append a column of ones to the inputs.
        """
        x, y = x.double(), y.double()
        if intercept:
            x = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)
        gram, cross = x.mT @ x, (x.mT @ y[..., None])[..., 0]
        return cls(gram / x.shape[-2], cross / x.shape[-2], y.square().mean(dim=-1))

    def __getitem__(
        self, index: "int | slice | Tensor | tuple[int | slice | Tensor | None, ...]"
    ) -> "Moments":
        """Index the batch dimensions, like those of a tensor of shape `[...]`."""
        return Moments(self.gram[index], self.cross[index], self.square[index])

    def to(self, dtype: torch.dtype) -> "Moments":
        """Return the moments converted to another data type."""
        return Moments(self.gram.to(dtype), self.cross.to(dtype), self.square.to(dtype))

    def mean(self, dim: int) -> "Moments":
        """Return the moments of pooled environments of equal size.

        Args:
            dim: Batch dimension of the environments; a negative index is not supported.
        """
        return Moments(self.gram.mean(dim), self.cross.mean(dim), self.square.mean(dim))

    def risk(self, w: Tensor) -> Tensor:
        """Return the mean squared errors, of shape `[...]`, for weights of shape `[..., d]`."""
        return ((_times(self.gram, w) - 2 * self.cross) * w).sum(-1) + self.square

    def gradient(self, w: Tensor) -> Tensor:
        """Return the gradient of the mean squared error at the weights `w`, both of shape `[..., d]`."""
        return 2 * (_times(self.gram, w) - self.cross)

    def least_squares(self) -> Tensor:
        """Return the weights with the smallest mean squared error, of shape `[..., d]`."""
        return torch.linalg.solve(self.gram, self.cross)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[..., None])[..., 0]
