"""One setting of the C library: keep freed memory instead of returning it after every step.

By default glibc returns large freed blocks to the kernel, and the next step page-faults the same memory in
again; on full batches that costs a large part of a step. With the setting, a process keeps the memory of
its largest step until it ends.
"""

import ctypes
import platform
from functools import cache

# From malloc.h: blocks larger than the first are allocated by mmap; free memory above the second is returned.
_M_MMAP_THRESHOLD = -3
_M_TRIM_THRESHOLD = -1


@cache
def keep_freed_memory() -> bool:
    """Set both thresholds to their maximum, once per process; return whether that was possible."""
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    most = 2**31 - 1
    return all(library.mallopt(key, most) == 1 for key in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))
