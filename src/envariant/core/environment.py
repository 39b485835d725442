"""`Environment`: a named set of rows from one distribution."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from envariant.core import conversion, environment_display
from envariant.core.attributes import WEIGHT
from envariant.core.display import Displayed, Summary
from envariant.core.errors import EnvariantError
from envariant.core.input_store import InputStore, input_store

RESERVED = frozenset({"worst", "*"})
"""Reserved names that environments cannot have, because tables and histories use them."""


@final
@dataclass(frozen=True, eq=False, init=False, repr=False)
class Environment(Displayed):
    """Named set of rows from one distribution.

    Args:
        name: Name of the environment, on one line.
        inputs: Inputs `[rows, *input_shape]`, converted to float32, or an `InputStore`.
        targets: Numeric targets `[rows, *target_shape]`.
        attributes: Additional values of each row by name, each `[rows, …]`, such as sampling weights or a
            color. They are not model inputs; figures and diagnostics use them.
        origin: Name of the environment from which the rows were held out; "" if they were not held out.

    Attributes:
        name: Name of the environment.
        input_store: Inputs in the format in which they are stored, such as bytes.
        targets: Targets `[rows, *target_shape]`.
        attributes: Additional values of each row, by name.
        origin: Name of the environment from which the rows were held out; "" if they were not held out.

    Raises:
        EnvariantError: If lengths differ, there are no rows, or a value is NaN or infinite.
    """

    name: str
    input_store: InputStore
    targets: Shaped[Tensor, "rows *target_shape"]
    attributes: Mapping[str, Shaped[Tensor, "rows ..."]]
    origin: str

    def __init__(
        self,
        name: str,
        inputs: Float[Tensor, "rows *input_shape"] | InputStore,
        targets: Shaped[Tensor, "rows *target_shape"],
        attributes: Mapping[str, Tensor] | None = None,
        origin: str = "",
    ) -> None:
        where = f"environment '{name}'"
        if not isinstance(name, str) or not name or name in RESERVED or not name.isprintable():
            raise EnvariantError(
                f"{where}: a name must be one line of text and not {' or '.join(sorted(RESERVED))}"
            )
        store = input_store(inputs, where)
        targets, rows = conversion.tensor_of(targets, f"{where}: targets"), len(store)
        if rows == 0:
            raise EnvariantError(f"{where}: has no rows; leave it out")
        if not targets.dim() or len(targets) != rows:
            raise EnvariantError(
                f"{where}: {rows} rows of inputs need targets of shape ({rows},); got {tuple(targets.shape)}"
            )
        attributes = conversion.attributes_of(attributes or {}, rows, where)
        weights = attributes.get(WEIGHT, torch.ones(1))
        if weights.dim() != 1:
            shape = tuple(weights.shape)
            raise EnvariantError(f"{where}: weights must be one number per row; got the shape {shape}")
        if not bool((torch.isfinite(weights) & (weights >= 0)).all()) or not bool(weights.any()):
            raise EnvariantError(
                f"{where}: weights must be at least 0 and not all 0; correct them or leave them out"
            )
        values = {"name": name, "input_store": store, "targets": targets}
        for key, value in {**values, "attributes": attributes, "origin": origin}.items():
            object.__setattr__(self, key, value)

    def __len__(self) -> int:
        return len(self.input_store)

    def _display(self) -> Summary:
        more = {"attributes": ", ".join(self.attributes), "held out from": self.origin}
        return environment_display.of_environment(self.name, self.input_store, self.targets, more)

    @property
    def inputs(self) -> Float[Tensor, "rows *input_shape"]:
        """All inputs as float32. Stored bytes are decoded again at every access."""
        return self.input_store.decode(self.input_store.gather())

    def rows(self, index: Int[Tensor, " selected"] | None = None) -> tuple[Tensor, Tensor]:
        """Return inputs (as float32) and targets of selected rows.

        Args:
            index: Row numbers. Default: all rows.
        """
        inputs = self.input_store.decode(self.input_store.gather(index))
        return inputs, self.targets if index is None else self.targets[index]

    def select(
        self, index: Int[Tensor, " selected"], *, name: str | None = None, origin: str | None = None
    ) -> "Environment":
        """Return an environment with a subset of the rows, in the same storage format.

        Args:
            index: Row numbers of the subset.
            name: Name of the new environment. Default: the name of this environment.
            origin: Name of the environment from which the rows were held out. Default: the origin of this
                environment.
        """
        return Environment(
            self.name if name is None else name,
            self.input_store.select(index),
            self.targets[index],
            {key: values[index] for key, values in self.attributes.items()},
            self.origin if origin is None else origin,
        )
