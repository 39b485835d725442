"""Extraction of features on a Ray cluster; only the calling process writes the feature files.

Blocks of rows are computed as tasks. If a worker dies, its block is computed again on another one.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from itertools import islice
from typing import Any, final

import torch
from torch import Tensor

from envariant.core.cluster import connected
from envariant.core.errors import EnvariantError, first_line

# Maximum number of times that a block is computed again because its worker died.
_TRIES = 3
# Submitted blocks per worker, so that no worker is idle.
_AHEAD = 2
# Seconds within which a canceled block ends.
_CANCEL_S = 5

BlocksOf = Callable[[int, int], Iterator[Tensor]]
"""Function of an environment index and a row index; it yields blocks of features from that row on."""


class Extractable(ABC):
    """Base class of picklable objects that compute features in workers; each worker receives one copy."""

    @abstractmethod
    def features(self, environment: int, first: int, last: int) -> Tensor:
        """Return the features of the rows from `first` to `last` − 1, float32 `[rows, width]`.

        Args:
            environment: Index of the environment.
            first: First row.
            last: Index after the last row.
        """


@final
@dataclass(frozen=True)
class Cluster:
    """Ray cluster on which features are extracted.

    Attributes:
        address: Address for `ray.init`. Default: the running cluster, or a new one on this machine.
    """

    address: str | None = None

    def blocks(self, work: Extractable, rows: Sequence[int], size: int) -> BlocksOf:
        """Return a function that yields the features of an environment in order, block by block.

        The arguments of the function are the index of the environment and the index of the first row. The
        connection to the cluster is made when the first block is requested. Each block is a task of the
        cluster, with one core and, if the cluster has GPUs, one GPU.

        Args:
            work: Object that computes features in the workers.
            rows: Number of rows of each environment.
            size: Rows per block.
        """

        @cache
        def submission() -> tuple[Any, Any, list[Any], int]:
            ray = connected(self.address)
            resources = ray.cluster_resources()
            gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
            try:
                # In a list, so that Ray does not fetch the object again for every task.
                reference = [ray.put(work)]
            except Exception as error:
                # The message of Ray's own error is the whole object as text.
                cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
                raise EnvariantError(
                    f"features: source or backbone cannot be sent to the cluster ({first_line(cause)}); use "
                    f"names, or executor='local'"
                ) from None
            task = ray.remote(num_cpus=1, num_gpus=min(gpus, 1), max_retries=_TRIES)(_computed)
            return ray, task, reference, _AHEAD * max(1, gpus or cores)

        def blocks(environment: int, first: int) -> Iterator[Tensor]:
            ray, task, reference, ahead = submission()
            waiting = iter(divided(first, rows[environment], size))
            pending = deque(task.remote(reference, environment, *part) for part in islice(waiting, ahead))
            try:
                while pending:
                    yield _result(ray, pending[0])
                    pending.popleft()
                    pending.extend(task.remote(reference, environment, *part) for part in islice(waiting, 1))
            finally:
                for block in pending:
                    ray.cancel(block)
                for block in pending:
                    # Ray prints the tracebacks of errors that nobody has received.
                    with suppress(Exception):
                        ray.get(block, timeout=_CANCEL_S)

        return blocks


def divided(first: int, rows: int, size: int) -> list[tuple[int, int]]:
    """Divide the rows from `first` onward into blocks.

    Args:
        first: First row.
        rows: Total number of rows, including those before `first`.
        size: Rows per block; the last block may be shorter.

    Returns:
        For each block, the index of its first row and the index after its last row.
    """
    return [(begin, min(begin + size, rows)) for begin in range(first, rows, size)]


def _computed(reference: list[Any], environment: int, first: int, last: int) -> Tensor:
    """Compute a block in a worker process."""
    torch.set_num_threads(1)
    return _received(reference[0]).features(environment, first, last)


@lru_cache(maxsize=1)
def _received(reference: Any) -> Extractable:
    # Kept for the next blocks, because opening the source and its files takes a moment.
    return import_module("ray").get(reference)


def _result(ray: Any, block: Any) -> Tensor:
    try:
        return ray.get(block)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, EnvariantError):
            raise error.cause from None
        what = f"{type(error.cause).__name__}: {first_line(error.cause)}"
        raise EnvariantError(f"features: a worker of the Ray cluster failed ({what})") from None
    except ray.exceptions.RayError as error:
        raise EnvariantError(
            f"features: workers of the Ray cluster died, {_TRIES} times ({first_line(error)}); repeat the "
            f"call to resume",
            retryable=True,
        ) from None
