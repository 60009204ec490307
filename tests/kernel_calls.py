"""Calling one kernel in the reference and in its fast owner, with outputs between guards; and batches to call it on."""

import inputs
import numpy as np
import pytest
from conftest import ISA_LEVELS, Room

from pyclattn import _dispatch

TESTED = set()


def kernel(name):
    """Run the test with `launch(*arguments)` of this kernel's fast owner, at each instruction set it is built for."""
    TESTED.add(name)
    owner = _dispatch.OWNERS[name]
    rooms = [Room(owner, level) for level in (ISA_LEVELS if owner == "cython" else [None])]
    return pytest.mark.parametrize(("name", "fast"), [(name, room) for room in rooms], ids=str)


class Guarded:
    """Output arrays of one call: each in the middle of a larger buffer whose ends must stay as they were."""

    def __init__(self):
        self.buffers = []

    def new(self, shape, dtype, fill):
        size, guard = int(np.prod(shape)), 256
        buffer = np.full(size + 2 * guard, fill, dtype)
        self.buffers.append((buffer, guard, fill))
        return buffer[guard : guard + size].reshape(shape)

    def check(self):
        for buffer, guard, fill in self.buffers:
            for end in (buffer[:guard], buffer[len(buffer) - guard :]):
                assert np.isnan(end).all() if fill != fill else (end == fill).all(), "written outside of an output"


def both(name, fast, make, n_threads=3):
    """What the reference and the fast owner write; ``make(new)`` returns arguments and the outputs among them."""
    found = []
    for room, threads in ((Room("reference"), 1), (fast, n_threads)):
        guarded = Guarded()
        arguments, outputs = make(guarded.new)
        with room.forced():
            if room is fast:
                assert _dispatch.room_of(name) == fast.backend
            _dispatch.launch(name, threads, *arguments)
        guarded.check()
        found.append(outputs)
    return found


def spans(*rows):
    return np.array(rows, np.int64).reshape(-1, 3)


def tasks_of(lengths, n_heads, chunk):
    rows = [[s, h, first] for s, n in enumerate(lengths) for h in range(n_heads) for first in range(0, n, chunk)]
    return np.array(rows, np.int64).reshape(-1, 3)


def blocks_of(n_clusters, n_heads, chunk):
    return np.array([[h, c] for h in range(n_heads) for c in range(0, n_clusters, chunk)], np.int64).reshape(-1, 2)


RAGGED = [37, 0, 1, 130, 300]  # lengths of packed sequences


def packed_spans(lengths):
    stops = np.cumsum(lengths)
    return spans(*[[0, stop - n, stop] for n, stop in zip(lengths, stops)])


def holes_index(batch, n, seed=3):
    """Spans and index of a padded batch with holes."""
    there = ~inputs.padding(batch, n, holes=0.4, seed=seed)
    counts = there.sum(axis=1)
    stops = np.cumsum(counts)
    rows = [[b, stop - count, stop] for b, (count, stop) in enumerate(zip(counts, stops))]
    return spans(*rows), np.nonzero(there)[1].astype(np.int64)
