"""Read datasets of other libraries.

Rows that are random, or too large to keep in memory, are read again each time they are used.
"""

import itertools
import random
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from envariant.core import counter_rng, image_rows, machine
from envariant.core.conversion import tensor_of
from envariant.core.errors import EnvariantError, shown
from envariant.core.input_store import ByteStore, FloatStore, InputStore, standardized

Convert = Callable[[Any], Any]
"""Function from the inputs of an item to numbers, such as from an image to pixels."""

Key = int | str
"""Index of an entry if items are tuples or lists; name of an entry if items are dictionaries."""

# Share of the free memory up to which the rows of a dataset are kept in memory.
_MEMORY_SHARE = 0.25


@final
@dataclass(frozen=True, eq=False)
class DatasetStore(InputStore):
    """Store of rows that are read from a dataset whenever they are used, such as rows with random transforms.

    Random transforms are seeded: in training by the seed of the run, the step and the row; elsewhere by the
    row only. They use the global generators of Python, NumPy and PyTorch, so rows are read by one thread.

    Attributes:
        dataset: Dataset with a length.
        numbers: Indices of the rows in the dataset.
        key: Position or name of the inputs in an item.
        like: One row of inputs, which defines the shape and data type of all rows.
        convert: Function applied to the inputs of every item. Default: none.
        mean: Mean of each channel of byte images, after scaling to [0, 1]; None is equivalent to 0.
        deviation: Standard deviation of each channel, after scaling to [0, 1]; None is equivalent to 1.
    """

    dataset: Any
    numbers: NDArray[np.int64]
    key: Key
    like: Tensor
    convert: Convert | None = None
    mean: tuple[float, ...] | None = None
    deviation: tuple[float, ...] | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def shape(self) -> torch.Size:
        return self.like.shape

    @property
    def dtype(self) -> torch.dtype:
        return torch.uint8 if self.like.dtype == torch.uint8 else torch.float32

    @property
    def encoding(self) -> Hashable:
        return (torch.uint8, self.mean, self.deviation) if self.dtype == torch.uint8 else torch.float32

    @property
    def streamed(self) -> bool:
        return True

    @property
    def concurrent(self) -> bool:
        return False

    def gather(self, index: Int[Tensor, " selected"] | None = None) -> Tensor:
        return self._read(self.numbers if index is None else self.numbers[index.cpu().numpy()], 0)

    def draw(self, index: Int[Tensor, " selected"], key: int) -> Tensor:
        return self._read(self.numbers[index.cpu().numpy()], key)

    def decode(self, rows: Tensor) -> Tensor:
        return self.standardize(self.unit(rows))

    def unit(self, rows: Tensor) -> Tensor:
        return rows.float() / 255 if rows.dtype == torch.uint8 else rows

    def standardize(self, inputs: Tensor) -> Tensor:
        return standardized(inputs, self.mean, self.deviation)

    def with_rows(self, rows: Tensor) -> InputStore:
        return ByteStore(rows, self.mean, self.deviation) if self.dtype == torch.uint8 else FloatStore(rows)

    def select(self, index: Int[Tensor, " selected"]) -> "DatasetStore":
        return replace(self, numbers=self.numbers[index.cpu().numpy()])

    def chunks(self) -> Iterator[bytes]:
        # Only eight rows are hashed, because reading all rows a second time may take an hour.
        yield repr((type(self.dataset).__qualname__, len(self.dataset), self.numbers.tolist())).encode()
        yield self._read(self.numbers[:8], 0).contiguous().numpy().tobytes()

    def _read(self, numbers: NDArray[np.int64], key: int) -> Tensor:
        rows = torch.empty((len(numbers), *self.shape), dtype=self.dtype)
        with image_rows.kept_random_states():
            for row, number in zip(rows, numbers.tolist(), strict=True):
                _seed(counter_rng.step_key(key, number))
                with _named(f"dataset: item {number}"):
                    value = self.dataset[number][self.key]
                    value = value if self.convert is None else self.convert(value)
                value = tensor_of(value, f"dataset: item {number}")
                if value.shape != self.shape:
                    shapes = f"{tuple(value.shape)}, but the first item has {tuple(self.shape)}"
                    raise EnvariantError(f"dataset: item {number} has shape {shapes}")
                row.copy_(value)
                if not bool(torch.isfinite(row).all()):
                    raise EnvariantError(
                        f"dataset: item {number} holds NaN or infinity; correct or remove it"
                    )
        return rows


def read_items(
    dataset: Any, where: str, keys: Sequence[Key] = (0, 1), convert: Convert | None = None
) -> tuple[Tensor | DatasetStore, list[list[Any]]]:
    """Read all items of a dataset; return the inputs, and one list of labels for each key after the first.

    Inputs are returned as one tensor. If they are random or need more than a quarter of the free memory, they
    are returned as a `DatasetStore`.

    Args:
        dataset: Dataset with a length, or an iterable; its items are tuples, lists or dictionaries.
        where: Name of the dataset, for error messages.
        keys: Positions or names of the entries of an item: the inputs first, then each kind of label.
        convert: Function applied to the inputs of every item. Default: none.

    Raises:
        EnvariantError: If the dataset is empty or raises an error, an item lacks a key, or shapes of inputs
            differ.
    """
    # Iterating over a PyTorch dataset with a length need not terminate.
    has_length = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if not has_length and not hasattr(dataset, "__iter__"):
        raise EnvariantError(f"{where}: must be a dataset of {_described(keys)} pairs; got {shown(dataset)}")
    items = _items(dataset, has_length, where)
    labels: list[list[Any]] = [[] for _ in keys[1:]]
    inputs: list[Tensor] = []
    first, large, count = torch.empty(0), False, 0
    for count, item in enumerate(items, 1):
        row, own = _parts(item, keys, f"{where}: item {count - 1}", convert)
        if count == 1:
            first = row
            length = len(dataset) if has_length else 1
            large = has_length and row.numel() * row.element_size() * length > _share_of_memory()
            _require_memory(row, min(length, image_rows.READ_TWICE) if large else length, where)
        if row.shape != first.shape:
            shapes = f"{tuple(row.shape)}, but earlier items have {tuple(first.shape)}"
            raise EnvariantError(f"{where}: item {count - 1} has shape {shapes}")
        if not large or count <= image_rows.READ_TWICE:
            inputs.append(row)
        for column, value in zip(labels, own, strict=True):
            column.append(value)
    if not count:
        raise EnvariantError(f"{where}: has no rows; leave it out")
    if not large:
        _require_memory(first, count, where)
    rows = torch.stack(inputs)

    def read_again(several: int) -> tuple[Tensor, list[Any]]:
        again = [_parts(dataset[k], keys, where, convert) for k in range(several)]
        return torch.stack([row for row, _ in again]), [own[0] if own else None for _, own in again]

    answers = labels[0] if labels else []
    streams = has_length and rows.dim() > 1
    random_inputs = image_rows.check_repeatable(
        dataset, rows, answers, read_again if has_length else None, where, warn_of_inputs=not streams
    )
    if streams and (large or random_inputs):
        return DatasetStore(dataset, np.arange(count), keys[0], first, convert), labels
    return image_rows.prepared(rows, where) if rows.dim() > 1 else rows[:, None], labels


@contextmanager
def _named(where: str) -> Generator[None]:
    """Convert errors of the user's dataset in a `with` block to one-line errors that begin with `where`."""
    try:
        yield
    except EnvariantError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise EnvariantError(f"{where}: {type(error).__name__}{text and ': '}{text}") from error


def _items(dataset: Any, has_length: bool, where: str) -> Iterator[Any]:
    """Yield all items of a dataset; an error names the item."""
    iterator, end = None if has_length else iter(dataset), object()
    for k in range(len(dataset)) if has_length else itertools.count():
        with _named(f"{where}: item {k}"):
            item = dataset[k] if iterator is None else next(iterator, end)
        if item is end:
            return
        yield item


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed % 2**63)


def _parts(item: Any, keys: Sequence[Key], where: str, convert: Convert | None) -> tuple[Tensor, list[Any]]:
    """Return the input of an item as a tensor, and the labels of the item."""
    named = isinstance(item, Mapping)
    last = max((key for key in keys if isinstance(key, int)), default=-1)
    if (not named and not isinstance(item, tuple | list)) or (not named and len(item) <= last):
        raise EnvariantError(f"{where} must be {_described(keys)}; got {type(item).__name__}")
    get: Callable[[Any], Any] = item.__getitem__
    try:
        value, *labels = (get(key) for key in keys)
    except (KeyError, TypeError) as error:
        raise EnvariantError(f"{where} has no entry {error}; it must have {_described(keys)}") from None
    if convert is not None:
        with _named(where):
            value = convert(value)
    elif type(value).__module__.startswith("PIL."):
        remedy = "give the dataset a transform that converts images to tensors"
        raise EnvariantError(f"{where} is an image; {remedy}")
    return tensor_of(value, where), [_plain(label) for label in labels]


def _described(keys: Sequence[Key]) -> str:
    roles = ("input", "target", "environment")[: len(keys)]
    if all(isinstance(key, int) for key in keys):
        return f"({', '.join(roles)})"
    return (
        f"a dictionary with {', '.join(f'{key!r} ({role})' for key, role in zip(keys, roles, strict=True))}"
    )


def _plain(target: Any) -> Any:
    return target.item() if isinstance(target, Tensor) and target.numel() == 1 else target


def _share_of_memory() -> float:
    free = machine.memory()
    return float("inf") if free is None else _MEMORY_SHARE * free


def _require_memory(row: Tensor, count: int, where: str) -> None:
    shape = "×".join(map(str, row.shape)) or "one number"
    machine.require_memory(
        row.numel() * row.element_size() * count,
        f"{where}: {count:,} {'item' if count == 1 else 'items'} of shape {shape}",
        "use smaller or fewer items",
    )
