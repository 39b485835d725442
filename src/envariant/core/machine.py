"""Processor cores, threads and memory that this process may use, within the limits of its container."""

import math
import os
import sys
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path

from envariant.core.errors import EnvariantError

_GROUPS = Path("/sys/fs/cgroup")
"""Folder of the control groups, by which Linux limits the processes of a container."""

# Bytes that are not worth the time of reading the available memory, which takes about 0.1 ms.
_SMALL = 1 << 24


def cores() -> int:
    """Return the number of processor cores that this process may use, at least 1."""
    allowed = [_affinity()]
    for folder in _groups():
        # In the second version of control groups, one file holds both numbers.
        numbers = _words(folder / "cpu.max") or [
            *_words(folder / "cpu.cfs_quota_us"),
            *_words(folder / "cpu.cfs_period_us"),
        ]
        if len(numbers) == 2 and all(number.isdecimal() and int(number) for number in numbers):
            allowed.append(math.ceil(int(numbers[0]) / int(numbers[1])))
    return max(1, min(allowed))


def memory() -> int | None:
    """Return the available memory in bytes, including memory used for file caches; None if it is unknown."""
    amounts = _amounts(Path("/proc/meminfo"))
    known = [amounts["MemAvailable:"] * 1024] if "MemAvailable:" in amounts else []
    if not known and hasattr(os, "sysconf"):
        known = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2]
    for folder in _groups():
        for limit, used, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            numbers = [*_words(folder / limit), *_words(folder / used)]
            if len(numbers) == 2 and all(number.isdecimal() for number in numbers):
                free = int(numbers[0]) - int(numbers[1])
                known.append(max(0, free + _amounts(folder / "memory.stat").get(cached, 0)))
    return min(known) if known else None


def require_memory(
    needed: float, what: str, remedy: str, available: Callable[[], int | None] = memory
) -> None:
    """Check that an amount of memory is available, before it is allocated.

    Args:
        needed: Lower bound of the required memory in bytes.
        what: Computation or object that requires the memory, for the error message.
        remedy: Advice on how to reduce the memory, for the error message.
        available: Function that returns the available memory in bytes, or None if it is unknown.

    Raises:
        EnvariantError: If less memory is available.
    """
    if needed > _SMALL and (free := available()) is not None and needed > free:
        size = f"{needed / 1e9:{'.3g' if needed < 1e12 else ',.0f'}}"
        raise EnvariantError(
            f"memory: {what} would need at least {size} GB, but only {free / 1e9:.3g} GB are free; {remedy}"
        )


def limit_threads(environ: MutableMapping[str, str] = os.environ) -> None:
    """Limit the threads of numerical libraries to the available cores, unless the user has set a limit.

    Waiting threads are also set to sleep instead of spinning. With spinning threads, processes that share
    cores slow each other down by an order of magnitude. All limits are set as environment variables, which
    the libraries read only once. The function therefore does nothing after PyTorch has been imported.
    """
    if "torch" in sys.modules:
        return
    environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    environ.setdefault("KMP_BLOCKTIME", "0")
    # By default, the libraries respect the affinity of the process, but not the quota of its container.
    if cores() < _affinity():
        environ.setdefault("OMP_NUM_THREADS", str(cores()))


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _groups() -> Iterator[Path]:
    """Yield the folders of this process's control groups, and of all their parent groups."""
    for line in _lines(Path("/proc/self/cgroup")):
        controllers, _, group = line.partition(":")[2].partition(":")
        root = _GROUPS / controllers
        # In a container, the group may be named as on its host, where only the root exists.
        folder = root / group.strip("/")
        yield folder
        yield from (parent for parent in folder.parents if parent.is_relative_to(root))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []


def _words(path: Path) -> list[str]:
    return [word for line in _lines(path) for word in line.split()]


def _amounts(path: Path) -> dict[str, int]:
    """Read a file with one name and one number per line."""
    rows = (line.split() for line in _lines(path))
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}
