"""Peak memory that work needs, and the memory that is available.

Needs are counted, not estimated: while the work runs once on a small scale, the storage of every tensor that
an operation returns is added, and subtracted when it is freed. Memory that kernels allocate internally is
not seen; it is small compared with the tensors they return.
"""

import bisect
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, final

import torch
from pydantic import ByteSize, TypeAdapter, ValidationError
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from envariant.core.errors import EnvariantError

_AMOUNT = TypeAdapter(ByteSize)


def peak_bytes(*phases: Callable[[], Any]) -> tuple[int, ...]:
    """Return the peak bytes of tensors in each phase; what a phase returns is kept until the last one ends.

    Args:
        phases: Functions that run one after another.
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
"""Function from a number of replicas to the replicas' worth of rows that a phase holds at one time."""


@final
@dataclass(frozen=True)
class Need:
    """Bytes of tensors as a function of the number of replicas.

    Attributes:
        phases: For each phase its fixed bytes, the bytes per replica's worth of rows, and its load.
    """

    phases: tuple[tuple[int, float, Load], ...]

    @classmethod
    def measured(cls, peaks: Callable[[int], tuple[int, ...]], loads: Sequence[Load]) -> "Need":
        """Return the need that follows from the peaks of each phase with two and with four replicas.

        Args:
            peaks: Function from a number of replicas to the peak bytes of each phase.
            loads: Load of each phase.
        """
        phases: list[tuple[int, float, Load]] = []
        for two, four, load in zip(peaks(2), peaks(4), loads, strict=True):
            added = load(4) - load(2)
            each = max(0.0, (four - two) / added) if added > 0 else 0.0
            phases.append((max(0, round(two - load(2) * each)), each, load))
        return cls(tuple(phases))

    def of(self, replicas: int) -> int:
        """Return the peak bytes of so many replicas.

        Args:
            replicas: Number of replicas.
        """
        return max(round(fixed + load(replicas) * each) for fixed, each, load in self.phases)

    def fit(self, budget: int, most: int) -> int:
        """Return how many replicas fit.

        Args:
            budget: Bytes available.
            most: Largest number to consider.
        """
        # The load may fall a little where blocks divide evenly, so the peak up to each number counts.
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
    """Return the bytes of memory that this process can still allocate on a device.

    Args:
        device: The device.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [_linux_available(), _container_available()]
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def parse(text: str | float | None) -> int | None:
    """Return the bytes of a number or of a text such as `8GB` or `512 MiB`; None for None.

    Args:
        text: Amount of memory.

    Raises:
        EnvariantError: If the text is not an amount of memory.
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


def _linux_available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        amounts = dict(line.split(":", 1) for line in lines)
        return int(amounts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _container_available() -> int | None:
    folder = Path("/sys/fs/cgroup")
    try:
        most = (folder / "memory.max").read_text(encoding="ascii").strip()
        used = (folder / "memory.current").read_text(encoding="ascii").strip()
        return int(most) - int(used)
    except (OSError, ValueError):
        return None
