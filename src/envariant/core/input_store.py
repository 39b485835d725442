"""Input stores: storage of the inputs of an environment, and decoding to float32.

Rows keep their storage type on every device; a batch or block of rows is decoded to float32 when it is used.
Training on uint8 data therefore never holds all rows as float32.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from envariant.core import conversion
from envariant.core.errors import EnvariantError
from envariant.core.image_rows import may_be_images
from envariant.core.single_precision import single_precision

if TYPE_CHECKING:
    import pandas as pd


class InputStore(ABC):
    """Base class of input stores, which hold the inputs of one environment.

    Attributes:
        shares_batches: Whether replicas with equal batches share one tensor of inputs. The sums in matrix
            products are then rounded differently than for a single replica.
    """

    shares_batches: ClassVar[bool] = False

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
        """Return a hashable key of the storage format; stores with equal keys decode rows in the same way."""

    @abstractmethod
    def gather(self, index: Int[Tensor, " selected"] | None = None) -> Shaped[Tensor, "selected *shape"]:
        """Return rows in their storage type, without decoding.

        Args:
            index: Row numbers. Default: all rows.
        """

    @abstractmethod
    def decode(self, rows: Shaped[Tensor, "*rows_and_shape"]) -> Float[Tensor, "*rows_and_shape"]:
        """Decode stored rows to float32 inputs, on the device of `rows`.

        Args:
            rows: Rows in the format of `gather`, with any number of leading axes.
        """

    @abstractmethod
    def with_rows(self, rows: Shaped[Tensor, "selected *shape"]) -> "InputStore":
        """Return a store with the same encoding but other rows.

        Args:
            rows: Rows in the format of `gather`.
        """

    @property
    def streamed(self) -> bool:
        """Whether rows are read when they are used, because they may not fit in memory."""
        return False

    @property
    def concurrent(self) -> bool:
        """Whether several threads may read rows at the same time."""
        return True

    def draw(self, index: Int[Tensor, " selected"], key: int) -> Shaped[Tensor, "selected *shape"]:
        """Return rows of a training batch in their storage type, with random transforms seeded by the key.

        Args:
            index: Row numbers.
            key: Seed of random transforms; it depends on the seed of the run and on the step.
        """
        del key
        return self.gather(index)

    def unit(self, rows: Shaped[Tensor, "*rows_and_shape"]) -> Float[Tensor, "*rows_and_shape"]:
        """Decode stored rows, but leave out standardization: bytes become values in [0, 1].

        Args:
            rows: Rows in the format of `gather`, with any number of leading axes.
        """
        return self.decode(rows)

    def standardize(self, inputs: Float[Tensor, "*rows_and_shape"]) -> Float[Tensor, "*rows_and_shape"]:
        """Apply the standardization that `unit` leaves out; `standardize(unit(rows))` equals `decode(rows)`.

        Args:
            inputs: Result of `unit`, possibly augmented.
        """
        return inputs

    def select(self, index: Int[Tensor, " selected"]) -> "InputStore":
        """Return a store with a subset of the rows.

        Args:
            index: Row numbers of the subset.
        """
        return self.with_rows(self.gather(index))

    def frame(self, index: Int[Tensor, " selected"] | None = None) -> "pd.DataFrame | None":
        """Return the raw table columns of rows, or None if the inputs do not come from a table.

        Args:
            index: Row numbers. Default: all rows.
        """
        del index
        return None

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes of the inputs in chunks, for a content hash."""
        yield self.gather().cpu().contiguous().numpy().tobytes()


@final
@dataclass(frozen=True, eq=False)
class FloatStore(InputStore):
    """Store of float32 inputs in memory; decoding returns the rows unchanged.

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
    """Store of uint8 inputs in memory; a value v is decoded to (v / 255 − mean) / deviation.

    Attributes:
        values: Stored inputs `[rows, *shape]`.
        mean: Mean of each channel after scaling to [0, 1]; None is equivalent to 0.
        deviation: Standard deviation of each channel after scaling to [0, 1]; None is equivalent to 1.

    Raises:
        EnvariantError: If the values are not uint8, the number of means or deviations is not the
            number of channels, or a deviation is not positive.
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
        return self.standardize(self.unit(rows))

    def unit(self, rows: Tensor) -> Tensor:
        return rows.float() / 255

    def standardize(self, inputs: Tensor) -> Tensor:
        return standardized(inputs, self.mean, self.deviation, len(self.shape) - 1)

    def with_rows(self, rows: Tensor) -> "ByteStore":
        return ByteStore(rows, self.mean, self.deviation)

    def chunks(self) -> Iterator[bytes]:
        yield repr((self.mean, self.deviation)).encode()
        yield from super().chunks()


def standardized(
    inputs: Tensor, mean: Sequence[float] | None, deviation: Sequence[float] | None, axes: int = 2
) -> Tensor:
    """Subtract a mean and divide by a standard deviation, separately for each channel.

    Args:
        inputs: Inputs `[…, channels, height, width]`.
        mean: Mean of each channel; None is equivalent to 0.
        deviation: Standard deviation of each channel; None is equivalent to 1.
        axes: Number of axes after the channels.
    """
    for numbers, apply in ((mean, torch.sub), (deviation, torch.div)):
        if numbers is not None:
            values = torch.tensor(numbers, dtype=inputs.dtype, device=inputs.device)
            inputs = apply(inputs, values.view(-1, *(1,) * axes))
    return inputs


def image_store(rows: Tensor | InputStore) -> Tensor | InputStore:
    """Store byte images in a `ByteStore`, which decodes them to [0, 1]; return other inputs unchanged.

    Args:
        rows: Inputs as returned by `image_rows.prepared`, or a store.
    """
    if isinstance(rows, InputStore):
        return rows
    return ByteStore(rows) if rows.dtype == torch.uint8 and may_be_images(rows) else rows


def input_store(inputs: Any, where: str) -> InputStore:
    """Convert the inputs of an environment to an input store.

    Args:
        inputs: Input store, or numbers `[rows, *shape]`, converted to float32.
        where: Name of the environment, for error messages.

    Raises:
        EnvariantError: If inputs are not real numbers of shape `[rows, *shape]`, contain NaN or infinity, or
            differ by amounts too small for float32.
    """
    if isinstance(inputs, InputStore):
        return inputs
    values = conversion.tensor_of(inputs, f"{where}: inputs")
    if values.is_complex() or values.dim() < 2:
        raise EnvariantError(
            f"{where}: inputs must be real numbers of shape [rows, …]; got shape {tuple(values.shape)}"
        )
    invalid = ~torch.isfinite(values.to(torch.float32)).flatten(1).all(dim=1)
    if bool(invalid.any()):
        raise EnvariantError(
            f"{where}: inputs hold NaN or infinity in {int(invalid.sum())} of {len(values)} rows "
            f"(first: row {int(invalid.nonzero()[0])}); fill in or remove them"
        )
    return FloatStore(single_precision(values, f"{where}: inputs"))


def check_compatible(stores: Mapping[str, InputStore], label: str) -> None:
    """Check that all environments have inputs of the same shape and storage format.

    Args:
        stores: Input stores by environment.
        label: Name of the data set, for error messages.

    Raises:
        EnvariantError: If a store differs from the first.
    """
    first_name, first = next(iter(stores.items()))
    for name, store in stores.items():
        if store.shape != first.shape:
            raise EnvariantError(
                f"{label}: environment '{name}' has inputs of shape {tuple(store.shape)}, but "
                f"'{first_name}' has {tuple(first.shape)}"
            )
        if store.encoding != first.encoding:
            raise EnvariantError(
                f"{label}: environments '{first_name}' and '{name}' store their inputs with different data "
                f"types or normalization constants; use the same ones for all environments"
            )
