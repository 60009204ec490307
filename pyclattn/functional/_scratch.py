"""Large working arrays, kept from call to call: the pages of fresh memory cost several per cent of a call's time."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pyclattn.arrays import Float32
from pyclattn.functional.dense import aligned

# Bytes kept at most while nothing runs.
KEPT = 1 << 27
# Smaller arrays are left to the allocator, which keeps those itself.
LEAST = 1 << 22

_lock = threading.Lock()
_free: list[Float32] = []  # flat, the latest last


@contextmanager
def scratch(shape: tuple[int, ...]) -> Iterator[Float32]:
    """An array of any content, aligned to cache lines, for the block's duration; nothing of it may leave the block."""
    size = math.prod(shape)
    memory = aligned((size,)) if 4 * size < LEAST else _taken(size)
    try:
        yield memory[:size].reshape(shape)
    finally:
        if memory.nbytes >= LEAST:
            _keep(memory)


def _taken(size: int) -> Float32:
    """The smallest that is large enough, but not more than twice as large; else a new one."""
    with _lock:
        fitting = [i for i, memory in enumerate(_free) if size <= memory.size <= 2 * size]
        if fitting:
            return _free.pop(min(fitting, key=lambda i: _free[i].size))
    return aligned((size,))


def _keep(memory: Float32) -> None:
    with _lock:
        _free.append(memory)
        while sum(kept.nbytes for kept in _free) > KEPT:
            del _free[0]


def _forget() -> None:
    """In a forked child: another thread may have held the lock."""
    global _lock
    _lock = threading.Lock()
    _free.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
