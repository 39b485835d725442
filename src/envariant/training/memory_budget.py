"""Measure the peak memory of training and the available memory.

Peak memory is measured in a small run: the size of each tensor is added when an operation returns the tensor,
and subtracted when the tensor is freed. Internal memory of kernels is small, and not counted.
"""

import bisect
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, final

import torch
from pydantic import ByteSize, TypeAdapter, ValidationError
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from envariant.core import machine
from envariant.core.errors import EnvariantError

_AMOUNT = TypeAdapter(ByteSize)
# Assumed if the system does not report how much memory is available.
_UNKNOWN = 4 * 2**30


def peak_bytes(*phases: Callable[[], Any]) -> tuple[int, ...]:
    """Call functions one after another, and return the peak memory of tensors during each call, in bytes.

    Args:
        phases: Functions without arguments; their results are kept in memory until the last call ends.
    """
    results: list[Any] = []
    peaks: list[int] = []
    with _Tally() as tally:
        for phase in phases:
            results.append(phase())
            peaks.append(tally.peak)
            tally.peak = tally.live
    return tuple(peaks)


Load = Callable[[int], float]
"""Function that maps a number of replicas to the number of rows in memory at a time, as a multiple of the
rows of one replica."""


@final
@dataclass(frozen=True)
class Need:
    """Memory that training requires, as a function of the number of replicas.

    Attributes:
        phases: For each phase of training, a tuple (a, b, f) of two numbers and a function. With k replicas,
            the phase needs a + b · f(k) bytes.
    """

    phases: tuple[tuple[int, float, Load], ...]

    @classmethod
    def measured(cls, peaks: Callable[[int], tuple[int, ...]], loads: Sequence[Load]) -> "Need":
        """Extrapolate the required memory from the peak memory with two and with four replicas.

        Args:
            peaks: Function that maps a number of replicas to the peak memory of each phase, in bytes.
            loads: Function f of each phase, as in `phases`.
        """
        phases: list[tuple[int, float, Load]] = []
        for two, four, load in zip(peaks(2), peaks(4), loads, strict=True):
            added = load(4) - load(2)
            each = max(0.0, (four - two) / added) if added > 0 else 0.0
            phases.append((max(0, round(two - load(2) * each)), each, load))
        return cls(tuple(phases))

    def of(self, replicas: int) -> int:
        """Return the peak memory over all phases, in bytes.

        Args:
            replicas: Number of replicas.
        """
        return max(round(fixed + load(replicas) * each) for fixed, each, load in self.phases)

    def fit(self, budget: int, most: int) -> int:
        """Return the largest number of replicas that fit in memory; 0 if not even one fits.

        Args:
            budget: Available bytes.
            most: Largest number of replicas to consider.
        """
        # The load may decrease slightly if blocks divide evenly, so use the maximum up to each number.
        peaks = list(accumulate((self.of(count) for count in range(1, most + 1)), max))
        return bisect.bisect_right(peaks, budget)


@final
class _Tally(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.peak = self.live = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self._count(result)
        return result

    def _count(self, result: Any) -> None:
        if isinstance(result, tuple | list):
            for part in result:
                self._count(part)
        elif type(result) is Tensor and result.device.type != "meta":
            storage = result.untyped_storage()
            # Views share a storage, and PyTorch returns the same Python object for it while it lives.
            if storage not in self._known:
                self._known.add(storage)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, size: int) -> None:
        self.live -= size


def available(device: torch.device) -> int:
    """Return the available memory of a device in bytes.

    Args:
        device: CPU or CUDA device.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = machine.memory()
    return _UNKNOWN if free is None else free


def require(needed: float, device: torch.device, what: str, remedy: str) -> None:
    """Check that enough memory is available, before the memory is allocated.

    Args:
        needed: Lower bound on the number of bytes required.
        device: CPU or CUDA device.
        what: Computation or object that requires the memory, for the error message.
        remedy: Advice on how to reduce memory use, for the error message.

    Raises:
        EnvariantError: If less memory is available.
    """
    machine.require_memory(needed, what, remedy, lambda: available(device))


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error reports that memory ran out, or that a tensor is too large for any memory."""
    # PyTorch has no exception class for lack of memory on a CPU.
    texts = (
        "not enough memory",
        "can't allocate memory",
        "out of memory",
        "storage size calculation overflow",
        "overflow when unpacking",
    )
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error).lower() for text in texts)


def parse(text: str | float | None) -> int | None:
    """Convert an amount of memory such as `8GB` or `512 MiB` to bytes.

    Args:
        text: Amount of memory as a string, or a number of bytes; None is returned unchanged.

    Raises:
        EnvariantError: If the string is not an amount of memory.
    """
    if text is None:
        return None
    try:
        amount = int(_AMOUNT.validate_python(text))
    except ValidationError:
        amount = 0
    if amount < 1:
        raise EnvariantError(f"memory: expected an amount such as 8GB or 512MiB; got '{text}'")
    return amount
