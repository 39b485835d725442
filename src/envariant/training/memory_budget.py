"""How much memory a piece of work needs at its height, and how much there is.

Needs are counted, not guessed: while the work runs once on a small scale, every tensor that an operation
makes is added to the tally and taken off when its storage dies. What kernels allocate inside themselves
is not seen; it is small beside the tensors they return.
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
    """The most that tensors hold at one time in each phase; what the phases return lives on to the end."""
    kept: list[Any] = []
    peaks: list[int] = []
    with _Tally() as tally:
        for phase in phases:
            kept.append(phase())
            peaks.append(tally.peak)
            tally.peak = tally.live
    return tuple(peaks)


Load = Callable[[int], float]
"""How many replicas' worth of rows a phase holds at one time, for a number of replicas."""


@final
@dataclass(frozen=True)
class Need:
    """Bytes of tensors as a function of the number of replicas; the phases come one after another.

    Attributes:
        phases: of each, what it needs whatever the number, what each replica's rows add, and its load.
    """

    phases: tuple[tuple[int, float, Load], ...]

    @classmethod
    def measured(cls, peaks: Callable[[int], tuple[int, ...]], loads: Sequence[Load]) -> "Need":
        """From the peaks of each phase at two and at four replicas."""
        phases: list[tuple[int, float, Load]] = []
        for two, four, load in zip(peaks(2), peaks(4), loads, strict=True):
            added = load(4) - load(2)
            each = max(0.0, (four - two) / added) if added > 0 else 0.0
            phases.append((max(0, round(two - load(2) * each)), each, load))
        return cls(tuple(phases))

    def of(self, replicas: int) -> int:
        """What so many replicas need at their height."""
        return max(round(fixed + load(replicas) * each) for fixed, each, load in self.phases)

    def fit(self, budget: int, most: int) -> int:
        """How many replicas fit, up to `most`."""
        # What is measured at one time may fall a little where blocks divide evenly; the height so far counts.
        heights = list(accumulate((self.of(count) for count in range(1, most + 1)), max))
        return bisect.bisect_right(heights, budget)


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
            # Views share a storage, and PyTorch gives back the same Python object for it while it lives.
            if storage not in self._known:
                self._known.add(storage)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, size: int) -> None:
        self.live -= size


def available(device: torch.device) -> int:
    """Bytes that can still be had: of the device, or of this machine as far as this process may use it."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [_linux_available(), _container_available()]
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def parse(text: str | float | None) -> int | None:
    """Bytes from a number or a text such as `8GB` or `512 MiB`; None for None.

    Raises:
        EnvariantError: the text is no amount of memory.
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
        found = dict(line.split(":", 1) for line in lines)
        return int(found["MemAvailable"].split()[0]) * 1024
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
