"""One setting of the C library: keep freed memory instead of handing it back after every step.

glibc returns large freed blocks to the kernel and page-faults them in again when the next step asks for
the same memory; on full batches that cost more than the arithmetic saved by anything else. The price is
that a process keeps the memory of its largest step until it ends.
"""

import ctypes
import platform
from functools import cache

# From malloc.h: blocks above the first go to the kernel's mmap; free memory above the second is returned.
_M_MMAP_THRESHOLD = -3
_M_TRIM_THRESHOLD = -1


@cache
def keep_freed_memory() -> bool:
    """Sets both thresholds to their maximum, once a process; whether it could (only with glibc)."""
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    most = 2**31 - 1
    return all(library.mallopt(key, most) == 1 for key in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))
