"""Input stores: how an environment holds its inputs, and how stored rows become inputs of a model.

Rows stay in their storage type, also on the device that trains; a batch, or a block of rows, is decoded to
float32 when it is used. Training so never holds all rows of a uint8 set as float32.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from envariant.core import conversion
from envariant.core.errors import EnvariantError


class InputStore(ABC):
    """Stored inputs of one environment."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows."""

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """Return the shape of one row of inputs."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Return the storage type of the rows."""

    @property
    @abstractmethod
    def encoding(self) -> Hashable:
        """Return what `decode` depends on: equal for stores whose rows may lie in one batch."""

    @abstractmethod
    def gather(self, index: Int[Tensor, " selected"] | None = None) -> Shaped[Tensor, "selected *shape"]:
        """Return stored rows, not decoded.

        Args:
            index: Numbers of the rows; None is all of them.
        """

    @abstractmethod
    def decode(self, rows: Shaped[Tensor, "*rows_and_shape"]) -> Float[Tensor, "*rows_and_shape"]:
        """Return stored rows as float32 inputs, on the device of `rows`.

        Args:
            rows: Rows as `gather` returns them, with any number of leading axes.
        """

    @abstractmethod
    def with_rows(self, rows: Shaped[Tensor, "selected *shape"]) -> "InputStore":
        """Return a store of other rows in the same encoding.

        Args:
            rows: Rows as `gather` returns them.
        """

    def select(self, index: Int[Tensor, " selected"]) -> "InputStore":
        """Return a store of some of the rows.

        Args:
            index: Numbers of the rows.
        """
        return self.with_rows(self.gather(index))

    def chunks(self) -> Iterator[bytes]:
        """Yield bytes that identify the inputs, for a content hash."""
        yield self.gather().cpu().contiguous().numpy().tobytes()


@final
@dataclass(frozen=True, eq=False)
class FloatStore(InputStore):
    """Inputs in memory as float32; decoding returns them as they are.

    Attributes:
        values: Inputs `[rows, *shape]`.
    """

    values: Float[Tensor, "rows *shape"]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> torch.Size:
        return self.values.shape[1:]

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def encoding(self) -> Hashable:
        return torch.float32

    def gather(self, index: Tensor | None = None) -> Tensor:
        return self.values if index is None else self.values[index]

    def decode(self, rows: Tensor) -> Tensor:
        return rows

    def with_rows(self, rows: Tensor) -> "FloatStore":
        return FloatStore(rows)


@final
@dataclass(frozen=True, eq=False)
class ByteStore(InputStore):
    """Inputs in memory as uint8: a value v is decoded to (v / 255 − mean) / deviation.

    Attributes:
        values: Stored inputs `[rows, *shape]`.
        mean: Mean of each channel, subtracted after scaling to [0, 1]; None subtracts nothing.
        deviation: Standard deviation of each channel, by which values are divided; None divides by nothing.

    Raises:
        EnvariantError: If the values are not uint8, or means and deviations do not fit the channels.
    """

    values: Shaped[Tensor, "rows *shape"]
    mean: tuple[float, ...] | None = None
    deviation: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.values.dtype != torch.uint8 or self.values.dim() < 2:
            raise EnvariantError(
                f"ByteStore: values must be uint8 of shape [rows, …]; got {self.values.dtype} of shape "
                f"{tuple(self.values.shape)}"
            )
        for name, numbers in (("mean", self.mean), ("deviation", self.deviation)):
            if numbers is not None and len(numbers) != self.values.shape[1]:
                raise EnvariantError(
                    f"ByteStore: {name} must have one number per channel, {self.values.shape[1]} of them; "
                    f"got {len(numbers)}"
                )
        if self.deviation is not None and min(self.deviation) <= 0:
            raise EnvariantError(f"ByteStore: deviation must be above 0; got {self.deviation}")

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> torch.Size:
        return self.values.shape[1:]

    @property
    def dtype(self) -> torch.dtype:
        return torch.uint8

    @property
    def encoding(self) -> Hashable:
        return torch.uint8, self.mean, self.deviation

    def gather(self, index: Tensor | None = None) -> Tensor:
        return self.values if index is None else self.values[index]

    def decode(self, rows: Tensor) -> Tensor:
        inputs = rows.float() / 255
        if self.mean is not None:
            inputs = inputs - self._by_channel(self.mean, inputs)
        if self.deviation is not None:
            inputs = inputs / self._by_channel(self.deviation, inputs)
        return inputs

    def with_rows(self, rows: Tensor) -> "ByteStore":
        return ByteStore(rows, self.mean, self.deviation)

    def chunks(self) -> Iterator[bytes]:
        yield repr((self.mean, self.deviation)).encode()
        yield from super().chunks()

    def _by_channel(self, numbers: Sequence[float], inputs: Tensor) -> Tensor:
        values = torch.tensor(numbers, dtype=inputs.dtype, device=inputs.device)
        return values.view(-1, *(1 for _ in self.shape[1:]))


def input_store(inputs: Any, where: str) -> InputStore:
    """Return the store of an environment's inputs.

    Args:
        inputs: A store, or numbers of any kind `[rows, *shape]`, which become float32.
        where: Name of the environment, for messages.

    Raises:
        EnvariantError: If inputs are not numbers of such a shape, or hold NaN or infinity.
    """
    if isinstance(inputs, InputStore):
        return inputs
    values = conversion.tensor_of(inputs, f"{where}: inputs")
    if values.is_complex() or values.dim() < 2:
        raise EnvariantError(
            f"{where}: inputs must be real numbers of shape [rows, …]; got shape {tuple(values.shape)}"
        )
    values = values.to(torch.float32)
    invalid = ~torch.isfinite(values).flatten(1).all(dim=1)
    if bool(invalid.any()):
        raise EnvariantError(
            f"{where}: inputs hold NaN or infinity in {int(invalid.sum())} of {len(values)} rows "
            f"(first: row {int(invalid.nonzero()[0])}); fill in or remove them"
        )
    return FloatStore(values)
