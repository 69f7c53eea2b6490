"""Freed memory stays with the process: on a CPU, giving it back and asking again costs more than the computation.

glibc maps every large block anew and unmaps it when freed, so each activation of each batch is paged in from zero again. Raising its
two thresholds keeps such blocks in the heap. Measured by benchmarks/allocator.py; what it costs is that the process's
memory does not shrink between batches.
"""

from __future__ import annotations

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's <malloc.h>
LARGEST_KEPT = 1 << 30
OLD_LIMIT = 32 << 20  # the most that glibc before 2.35 takes


def keep_freed_memory() -> bool:
    """Raise glibc's thresholds, unless the environment sets them; True where that was possible."""
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    libc = ctypes.CDLL(None)
    kept = libc.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT) or libc.mallopt(M_MMAP_THRESHOLD, OLD_LIMIT)
    return bool(kept and libc.mallopt(M_TRIM_THRESHOLD, 2 * LARGEST_KEPT - 1))
