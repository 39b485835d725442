"""Group the rows of a batch by environment."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from envariant.core.errors import EnvariantError, listed


@final
@dataclass(frozen=True, eq=False)
class Grouping:
    """Rows of a batch, grouped by environment. Rows of one environment keep their order.

    Attributes:
        ids: Identifiers of the environments that have rows in the batch, in increasing order.
        sizes: Number of rows of each of these environments.
        order: Permutation that groups the rows, `[rows]`; None if they are grouped already.
    """

    ids: tuple[int, ...]
    sizes: tuple[int, ...]
    order: Int[Tensor, " rows"] | None

    @classmethod
    def of(cls, environments: Int[Tensor, " rows"]) -> "Grouping":
        """Group rows by the identifier of their environment.

        Args:
            environments: Identifier of the environment of each row. On a GPU, reading the identifiers waits
                for all earlier operations.
        """
        values, counts = torch.unique_consecutive(environments, return_counts=True)
        ids, sizes = values.tolist(), counts.tolist()
        if all(left < right for left, right in pairwise(ids)):
            return cls(tuple(ids), tuple(sizes), None)
        in_order, order = environments.sort(stable=True)
        values, counts = torch.unique_consecutive(in_order, return_counts=True)
        return cls(tuple(values.tolist()), tuple(counts.tolist()), order)

    def grouped(self, values: Shaped[Tensor, "rows *shape"]) -> Shaped[Tensor, "rows *shape"]:
        """Return per-row values in the order of the environments."""
        return values if self.order is None else values[self.order.to(values.device)]


def places(ids: Sequence[int], known: Sequence[int]) -> list[int]:
    """Return the position of each identifier in the list of known identifiers.

    Raises:
        EnvariantError: If an identifier is unknown.
    """
    position = {number: place for place, number in enumerate(known)}
    if unknown := [number for number in ids if number not in position]:
        raise EnvariantError(
            f"objective: environments must be numbers from 0 to {len(known) - 1}; got {listed(unknown)}"
        )
    return [position[number] for number in ids]
