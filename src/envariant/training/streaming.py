"""Streamed rows: threads read batches and blocks of rows from disk shortly before they are used.

The rows of a batch depend only on the seeds and the step, so a resumed run reads the same batches.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate, pairwise
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from envariant.core import machine
from envariant.core.input_store import InputStore

# Rows that one thread reads at a time: enough to hide the overhead, few enough to use all threads.
_ROWS_PER_TASK = 8
# Batches that are read ahead: at most `_MOST_AHEAD`, and at most about this many bytes.
_MOST_AHEAD, _BYTES_AHEAD = 4, 256 * 2**20

# Seconds of waiting that a user would not notice.
_WORTH_SAYING = 1.0

Request = tuple[InputStore, Tensor, int | None]
"""Input store, row indices, and random-number key of random transforms; the key is None for evaluation."""


def waiting_notes(waited: float, seconds: float) -> tuple[str, ...]:
    """Return a note if more than a tenth of the time was spent waiting for rows from disk.

    Args:
        waited: Seconds spent waiting for rows.
        seconds: Seconds of training and evaluation, including waiting.
    """
    if waited <= max(0.1 * seconds, _WORTH_SAYING):
        return ()
    return (
        f"data: {waited / seconds:.0%} of the time was spent waiting for rows from disk; storage=disk reads "
        f"faster than storage=files, and a faster disk or more cores help",
    )


@final
class Reader:
    """Multithreaded reader of rows, which measures the time spent waiting for them.

    Args:
        device: Device to which rows are copied.

    Attributes:
        waited: Seconds that callers of `collect` have waited for rows so far.
    """

    def __init__(self, device: torch.device) -> None:
        self._pool = ThreadPoolExecutor(machine.cores(), thread_name_prefix="rows")
        self._device, self.waited = device, 0.0

    def ahead(self, requests: Callable[[int], Sequence[Request]], number_bytes: int) -> "ReadAhead":
        """Return an object that reads numbered batches before they are used.

        Args:
            requests: Function that maps the number of a batch to the requests for its rows, in order.
            number_bytes: Bytes per batch; the larger the batches are, the fewer are read ahead.
        """
        return ReadAhead(self, requests, max(1, min(_MOST_AHEAD, _BYTES_AHEAD // max(1, number_bytes))))

    def submit(self, requests: Sequence[Request]) -> "list[Future[Tensor] | Request]":
        """Start reading rows; stores that do not allow concurrent reading are read later by `collect`."""
        return [
            self._pool.submit(_read, (store, part, key)) if store.concurrent else (store, part, key)
            for store, index, key in requests
            for part in (index.split(_ROWS_PER_TASK) if store.concurrent else (index,))
        ]

    def collect(self, parts: "Sequence[Future[Tensor] | Request]") -> Tensor:
        """Wait for the requested rows, and return them as one tensor on the device."""
        start = time.perf_counter()
        read = [part.result() if isinstance(part, Future) else _read(part) for part in parts]
        self.waited += time.perf_counter() - start
        if self._device.type != "cuda":
            return torch.cat(read)
        # Copies from pinned memory run at the same time as the computation.
        rows = torch.empty((sum(map(len, read)), *read[0].shape[1:]), dtype=read[0].dtype, pin_memory=True)
        return torch.cat(read, out=rows).to(self._device, non_blocking=True)


def _read(request: Request) -> Tensor:
    store, index, key = request
    return store.gather(index) if key is None else store.draw(index, key)


@final
class ReadAhead:
    """Numbered batches, read in ascending order before they are used; see `Reader.ahead`."""

    def __init__(self, reader: Reader, requests: Callable[[int], Sequence[Request]], depth: int) -> None:
        self._reader, self._requests, self._depth = reader, requests, depth
        self._pending: dict[int, list[Future[Tensor] | Request]] = {}

    def get(self, number: int, last: int | None = None) -> Tensor:
        """Return the rows of a batch, and start reading the next batches.

        Args:
            number: Number of the batch.
            last: Number of the last batch. Default: there is no last batch.
        """
        wanted = range(
            number, number + self._depth + 1 if last is None else min(last, number + self._depth) + 1
        )
        # A run that steps back, as in a rehearsal, reads its batches again.
        for other in self._pending.keys() - set(wanted):
            for part in self._pending.pop(other):
                if isinstance(part, Future):
                    part.cancel()
        for each in wanted:
            if each not in self._pending:
                self._pending[each] = self._reader.submit(self._requests(each))
        return self._reader.collect(self._pending.pop(number))


@final
class StreamedInputs:
    """Inputs of several environments, concatenated in order and read from disk when they are used.

    Args:
        reader: Reader of the rows.
        stores: Input stores of the environments: one sequence for all replicas, or one per replica.
        axis: Axis of the replicas: 0, or None if all replicas share the rows.
    """

    def __init__(self, reader: Reader, stores: Sequence[Sequence[InputStore]], axis: int | None) -> None:
        self._reader, self._stores, self._axis = reader, stores, axis
        self._starts = (0, *accumulate(map(len, stores[0])))

    @property
    def shape(self) -> torch.Size:
        """Shape of the inputs: `[rows, *shape]`, or `[replicas, rows, *shape]`."""
        replicas = () if self._axis is None else (len(self._stores),)
        return torch.Size((*replicas, self._starts[-1], *self._stores[0][0].shape))

    @property
    def row_bytes(self) -> int:
        """Bytes of one stored row."""
        return self._stores[0][0].shape.numel() * self._stores[0][0].dtype.itemsize

    def environments(self, names: slice) -> "StreamedInputs":
        """Return the inputs of a slice of the environments.

        Args:
            names: Slice of environment indices.
        """
        return StreamedInputs(self._reader, [stores[names] for stores in self._stores], self._axis)

    def ahead(
        self, index: Callable[[int], Int[Tensor, "replicas rows"]], keys: Callable[[int], Tensor], rows: int
    ) -> ReadAhead:
        """Return an object that reads training batches before they are used.

        Args:
            index: Function that maps the number of a batch to the row indices of each replica, on the CPU.
            keys: Function that maps the number of a batch to each replica's key for random transforms of the
                rows, on the CPU.
            rows: Total number of rows in a batch, over all replicas.
        """

        def requests(step: int) -> list[Request]:
            # If the replicas share one set of environments, all of them read from it.
            own = zip(index(step), keys(step).tolist(), strict=True)
            return [
                request
                for k, (numbers, key) in enumerate(own)
                for request in self._requests(0 if self._axis is None else k, numbers, key)
            ]

        return self._reader.ahead(requests, rows * self.row_bytes)

    def split(self, sizes: Sequence[int], dim: int = 0) -> Iterator[Tensor]:
        """Yield blocks of rows, as `Tensor.split` does; the next blocks are read while a block is used.

        Args:
            sizes: Number of rows of each block.
            dim: Axis of the rows.
        """
        edges = list(pairwise((0, *accumulate(sizes))))
        ahead = self._reader.ahead(
            lambda k: self._of_all(torch.arange(*edges[k])), max(sizes) * self.row_bytes * len(self._stores)
        )
        for k in range(len(edges)):
            yield self._shaped(ahead.get(k, len(edges) - 1), dim)

    def index_select(self, dim: int, index: Int[Tensor, " selected"]) -> Tensor:
        """Return selected rows, as `Tensor.index_select` does.

        Args:
            dim: Axis of the rows.
            index: Row indices.
        """
        return self._shaped(self._reader.collect(self._reader.submit(self._of_all(index.cpu()))), dim)

    def whole(self) -> Tensor:
        """Return all rows.

        Raises:
            EnvariantError: If the rows do not fit in memory.
        """
        machine.require_memory(
            self.shape.numel() * self._stores[0][0].dtype.itemsize,
            f"reading {self._starts[-1]:,} rows at once",
            "use smaller images or fewer rows",
        )
        return self.index_select(0 if self._axis is None else 1, torch.arange(self._starts[-1]))

    def _of_all(self, index: Tensor) -> list[Request]:
        return [each for k in range(len(self._stores)) for each in self._requests(k, index, None)]

    def _requests(self, number: int, index: Tensor, key: int | None) -> Iterator[Request]:
        """Yield one request for each series of adjacent entries of `index` in the same environment."""
        owner = torch.searchsorted(torch.tensor(self._starts[1:]), index, right=True)
        owners, lengths = owner.unique_consecutive(return_counts=True)
        for environment, rows in zip(owners.tolist(), index.split(lengths.tolist()), strict=True):
            yield self._stores[number][environment], rows - self._starts[environment], key

    def _shaped(self, rows: Tensor, dim: int) -> Tensor:
        del dim
        return rows if self._axis is None else rows.unflatten(0, (len(self._stores), -1))
