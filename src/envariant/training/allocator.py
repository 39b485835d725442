"""Make the C library keep freed memory instead of returning it to the kernel after every step.

By default, glibc returns large freed blocks to the kernel and requests them again in the next step. With full
batches, these requests take a large part of the training time. Keeping the memory avoids them, but the memory
of the process stays at its peak until the process ends.
"""

import ctypes
import platform
from functools import cache

# From malloc.h: larger blocks than the first threshold use mmap; free memory above the second is returned.
_M_MMAP_THRESHOLD = -3
_M_TRIM_THRESHOLD = -1


@cache
def keep_freed_memory() -> bool:
    """Make this process keep freed memory, and return whether the C library allows it.

    The mmap and trim thresholds of glibc's `malloc` are set to their maximum, once per process.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    most = 2**31 - 1
    return all(library.mallopt(key, most) == 1 for key in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))
