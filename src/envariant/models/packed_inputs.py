"""Pack several input tensors into one tensor, and unpack them to a dictionary for the model."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from envariant.core.conversion import check_lengths, tensor_of
from envariant.core.errors import EnvariantError


@final
@dataclass(frozen=True)
class InputPacking:
    """Order and shapes of the tensors in packed inputs.

    Attributes:
        shapes: Shape of one row of each tensor, by name.
    """

    shapes: Mapping[str, tuple[int, ...]]

    def unpack(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return the tensors by name.

        Args:
            inputs: Packed inputs `[rows, numbers]`.
        """
        parts = inputs.split([math.prod(shape) for shape in self.shapes.values()], dim=1)
        named = zip(self.shapes.items(), parts, strict=True)
        return {name: part.reshape(len(inputs), *shape) for (name, shape), part in named}

    def model(self, module: nn.Module) -> nn.Module:
        """Wrap a module that takes a dictionary of tensors, so that it takes packed inputs.

        Args:
            module: Module whose `forward` takes a dictionary of tensors.
        """
        return Unpacked(module, self)


@final
class Unpacked(nn.Module):
    """Module that unpacks its inputs and passes them to another module as a dictionary of tensors.

    Args:
        module: Module whose `forward` takes a dictionary of tensors.
        packing: Order and shapes of the tensors.

    Attributes:
        module: The given module.
    """

    def __init__(self, module: nn.Module, packing: InputPacking) -> None:
        super().__init__()
        self.module = module
        self._packing = packing

    def forward(self, inputs: Tensor) -> Any:
        """Unpack the inputs, and call the module with the tensors by name."""
        return self.module(self._packing.unpack(inputs))

    def extra_repr(self) -> str:
        """Return the names and shapes of the tensors, for the module's `repr`."""
        return ", ".join(f"{name}: {shape}" for name, shape in self._packing.shapes.items())


def pack_inputs(inputs: Mapping[str, Any]) -> tuple[Tensor, InputPacking]:
    """Pack several tensors into one, for models whose `forward` takes a dictionary of tensors.

    Args:
        inputs: Numbers `[rows, …]` by name.

    Returns:
        Packed inputs `[rows, numbers]` in float32, and the packing, whose method `model` adapts a module.

    Raises:
        EnvariantError: If a value does not contain numbers, or the numbers of rows differ.

    Example:
        >>> packed, packing = pack_inputs({"image": torch.zeros(4, 8, 8), "age": torch.zeros(4)})
        >>> packed.shape, packing.shapes["image"]
        (torch.Size([4, 65]), (8, 8))
    """
    if not isinstance(inputs, Mapping):
        raise EnvariantError(f"inputs must be a dictionary of tensors; got {type(inputs).__name__}")
    tensors = {name: tensor_of(values, f"inputs: '{name}'") for name, values in inputs.items()}
    if not tensors:
        raise EnvariantError("inputs: the dictionary is empty; give at least one tensor")
    if scalars := [name for name, values in tensors.items() if not values.dim()]:
        raise EnvariantError(f"inputs: '{scalars[0]}' must have the shape [rows, …]; got one number")
    check_lengths({name: len(values) for name, values in tensors.items()}, "inputs")
    packed = torch.cat([values.reshape(len(values), -1).float() for values in tensors.values()], dim=1)
    return packed, InputPacking({name: tuple(values.shape[1:]) for name, values in tensors.items()})
