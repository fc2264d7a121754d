"""How this process keeps host memory between steps."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's <malloc.h>


def keep_freed_memory() -> None:
    """Let the allocator keep what a step frees for the next one, instead of giving it back to the system.

    The activations of a CPU step are large and short-lived; by default glibc maps and unmaps each of them, and the
    page faults cost more than many a kernel: the step with MESA takes 1.31 x the plain one instead of 1.37 x (medians;
    ``python -m benchmarks.step``). The process holds its peak until it ends. Does nothing without glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library or system
        return
    mallopt(M_MMAP_THRESHOLD, 1 << 30)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
