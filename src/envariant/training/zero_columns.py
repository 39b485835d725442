"""Matrix products of full batches without the inputs that are zero.

A linear layer computes X·Wᵀ from inputs X `[rows, columns]` and weights W `[outputs, columns]`. A column that
is zero in some rows adds nothing to their products. Images of a single color, for example, share the zeros of
the other colors. Such rows are grouped, and the product of each group uses only the columns that are not
zero. Products and gradients equal the complete ones except for rounding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from envariant.models import FeaturizerAndHead

# Divisions of the columns into equal parts, in addition to the channels of images.
_PARTS = (1, 2, 3, 4)
# More groups would make the matrix products too small.
_MOST_GROUPS = 8
# Parts of more channels would make too many groups.
_MOST_CHANNELS = 8
# Share of the products that must be saved, and sizes from which saving outweighs the cost of copying.
_LEAST_SAVED = 0.1
_LEAST_ROWS, _LEAST_OUTPUTS = 2048, 32
_PLAIN = frozenset(
    {
        FeaturizerAndHead, nn.Sequential, nn.Flatten, nn.Identity, nn.Linear, nn.Conv1d, nn.Conv2d,
        nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.GroupNorm, nn.LayerNorm, nn.ReLU, nn.LeakyReLU,
        nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid,
    }
)  # fmt: skip
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


@final
@dataclass(frozen=True, eq=False)
class RowGroups:
    """Rows of a batch in groups, each with its columns that are not zero.

    Attributes:
        positions: Position of each row of the batch in the concatenated groups, `[rows]`.
        inputs: Inputs of each group without zero columns, `[rows, columns]`.
        columns: Indices of the columns of each group, `[columns]`.
    """

    positions: Int[Tensor, " rows"]
    inputs: tuple[Tensor, ...]
    columns: tuple[Tensor, ...]

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all tensors, as the arguments of a program; `from_tensors` is the inverse."""
        return (self.positions, *self.inputs, *self.columns)

    @classmethod
    def from_tensors(cls, tensors: tuple[Tensor, ...]) -> "RowGroups":
        """Return groups from the tensors that the method `tensors` returned."""
        positions, *rest = tensors
        count = len(rest) // 2
        return cls(positions, tuple(rest[:count]), tuple(rest[count:]))


def row_groups(inputs: Float[Tensor, "rows *shape"]) -> RowGroups | None:
    """Group rows by their zero columns; return None if this saves less than a tenth of the products.

    The columns are divided into a few equal parts, such as the color channels of images. A group consists of
    the rows in which the same parts are zero. Of several divisions, the one with the fewest products is used.

    Args:
        inputs: Inputs of all rows of a batch.
    """
    flat = inputs.flatten(1)
    # No division saves more than the share of zeros.
    if len(inputs) < _LEAST_ROWS or flat.count_nonzero() > (1 - _LEAST_SAVED) * flat.numel():
        return None
    filled = flat != 0
    channels = (inputs.shape[1],) if inputs.dim() > 2 and inputs.shape[1] <= _MOST_CHANNELS else ()
    divisions = [_division(filled, parts) for parts in {*_PARTS, *channels} if flat.shape[1] % parts == 0]
    cost, groups = min(
        ((sum(len(r) * len(c) for r, c in groups), groups) for groups in divisions if groups),
        key=lambda each: each[0],
    )
    if cost > (1 - _LEAST_SAVED) * flat.numel():
        return None
    order = torch.cat([rows for rows, _ in groups])
    return RowGroups(
        order.argsort(),
        tuple(flat[rows][:, columns].contiguous() for rows, columns in groups),
        tuple(columns for _, columns in groups),
    )


def _division(filled: Tensor, parts: int) -> list[tuple[Tensor, Tensor]]:
    """Return row and column indices of each group; an empty list if there are too many groups.

    Args:
        filled: Mask of the inputs that are not zero, `[rows, columns]`.
        parts: Number of parts into which the columns are divided.
    """
    patterns = filled.unflatten(1, (parts, -1)).any(dim=2)
    distinct, owner = torch.unique(patterns, dim=0, return_inverse=True)
    if len(distinct) > _MOST_GROUPS:
        return []
    groups: list[tuple[Tensor, Tensor]] = []
    for k in range(len(distinct)):
        rows = (owner == k).nonzero()[:, 0]
        columns = filled[rows].any(dim=0).nonzero()[:, 0]
        # At least one column, because products without columns have no derivatives.
        groups.append((rows, columns if len(columns) else columns.new_zeros(1)))
    return groups


def first_weights(module: nn.Module, input_shape: Sequence[int]) -> str | None:
    """Return the name of the weights that multiply the flattened inputs of a network, and nothing else.

    Return None if the network does not begin with a linear layer, if the layer is too narrow to save time, or
    if the outputs for a row could depend on more than its products with the weights.

    Args:
        module: Network.
        input_shape: Shape of one row of inputs.
    """
    if not is_plain(module):
        return None
    layers = ((name, part) for name, part in module.named_modules() if not list(part.children()))
    (_, flatten), (name, first) = (*layers, ("", None), ("", None))[:2]
    if not isinstance(flatten, nn.Flatten) or not isinstance(first, nn.Linear):
        return None
    whole = flatten.start_dim == 1 and flatten.end_dim == -1 and first.in_features == math.prod(input_shape)
    return f"{name}.weight" if whole and first.out_features >= _LEAST_OUTPUTS else None


def is_plain(module: nn.Module) -> bool:
    """Return whether a network is a chain of known layers whose outputs for a row depend on no other row.

    Layers with hooks and layers or weights that are used more than once are not allowed.

    Args:
        module: Network.
    """
    parts = [part for _, part in module.named_modules(remove_duplicate=False)]
    weights = [weight for _, weight in module.named_parameters(remove_duplicate=False)]
    return (
        all(type(part) in _PLAIN and not _has_hooks(part) for part in parts)
        and len({id(part) for part in parts}) == len(parts)
        and len({id(weight) for weight in weights}) == len(weights)
    )


def _has_hooks(module: nn.Module) -> bool:
    return any(getattr(module, name) for name in _HOOKS)
