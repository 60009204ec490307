"""Places in one arena for buffers that live at different times."""

from __future__ import annotations

from dataclasses import dataclass

# The widest vector registers are 64 bytes, and so is a cache line.
ALIGNMENT = 64


@dataclass
class Buffer:
    """Bytes that are needed from step ``first`` to step ``last``, both included."""

    size: int
    first: int
    last: int
    offset: int = -1


def place(buffers: list[Buffer]) -> int:
    """Give every buffer an offset such that those alive together do not overlap; returns the arena's size.

    Largest first, each at the lowest gap that fits (greedy by size, Pisarchyk and Lee 2020, arXiv 2001.03288).

    Examples
    --------
    >>> buffers = [Buffer(100, 0, 1), Buffer(100, 1, 2), Buffer(100, 2, 3)]
    >>> place(buffers), [b.offset for b in buffers]
    (256, [0, 128, 0])
    """
    placed: list[Buffer] = []
    total = 0
    for buffer in sorted(buffers, key=lambda b: (-b.size, b.first)):
        size = -(-buffer.size // ALIGNMENT) * ALIGNMENT
        start = 0
        for other in placed:  # sorted by offset
            if other.last < buffer.first or buffer.last < other.first:
                continue
            if start + size <= other.offset:
                break
            start = max(start, other.offset + -(-other.size // ALIGNMENT) * ALIGNMENT)
        buffer.offset = start
        total = max(total, start + size)
        at = len(placed)
        while at and placed[at - 1].offset > start:
            at -= 1
        placed.insert(at, buffer)
    return total
