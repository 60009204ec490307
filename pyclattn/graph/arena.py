"""The memory of one arena. A large one is lent to the system while nobody runs, instead of given back to it.

Fresh memory is slow: the system clears each page when it is first written to, and under a hypervisor may have to find
it first; of 500 MB that is 0.1 to 1.5 s. Pages that are lent (MADV_FREE) stay as they are until others need them.
"""

from __future__ import annotations

import mmap

import numpy as np

from pyclattn.graph.memory import ALIGNMENT

CAN_LEND = hasattr(mmap, "MADV_FREE")


class Arena:
    """So many bytes of any content, from a multiple of 64 bytes on.

    Parameters
    ----------
    size : int
    is_lendable : bool
        In pages of its own, where the system can borrow those.
    """

    def __init__(self, size: int, is_lendable: bool = False) -> None:
        self._pages: mmap.mmap | None = None
        if is_lendable and CAN_LEND and size:
            self._pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                self._pages.madvise(mmap.MADV_HUGEPAGE)
            self.bytes = np.frombuffer(self._pages, np.uint8)
        else:
            raw = np.empty(size + ALIGNMENT, np.uint8)
            start = -raw.ctypes.data % ALIGNMENT
            self.bytes = raw[start : start + size]

    def lend(self) -> bool:
        """Let the system take the pages, content and all, until they are next written to; False if it cannot."""
        if self._pages is None:
            return False
        try:
            self._pages.madvise(mmap.MADV_FREE)
        except OSError:  # kernels before 4.5
            return False
        return True
