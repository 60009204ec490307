"""Keep memory steady where glibc would not."""

from __future__ import annotations

import ctypes

# From malloc.h. By default the threshold grows with what is freed, up to 32 MB, and each thread has a heap of its own:
# buffers of runs then leave holes in several heaps, and a service seems to leak for its first hour.
_MMAP_THRESHOLD, _ARENA_MAX = -3, -8
LARGE = 1 << 20
HEAPS = 2


def steady() -> bool:
    """Have blocks of 1 MB and more go back to the system when they are freed; whether this C library can."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc
        return False
    return bool(mallopt(_MMAP_THRESHOLD, LARGE)) and bool(mallopt(_ARENA_MAX, HEAPS))
