"""Drawing tasks and reading spans: what every reference kernel does first."""

from collections.abc import Iterator

import numpy as np

from pyclattn.arrays import Int64


def drawn(tasks: Int64, counter: Int64) -> Iterator[list[int]]:
    """Rows of ``tasks`` until the counter has passed them all (the reference room runs on one thread)."""
    while counter[0] < len(tasks):
        task = int(counter[0])
        counter[0] += 1
        yield tasks[task].tolist()


def rows_of(spans: Int64, index: Int64 | None, sequence: int) -> tuple[int, Int64]:
    """The batch entry of a sequence and the rows of its tokens there."""
    batch, start, stop = spans[sequence].tolist()
    return batch, np.arange(start, stop) if index is None else index[start:stop]
