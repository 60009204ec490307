"""Points in NumPy: the farthest from those chosen, and the nearest. Distances are float32: the squares of a pair's
coordinates, in their order, each rounded and added to a rounded sum; no fused multiply-add.
"""

import numpy as np

from pyclattn.arrays import Float32, Int64
from pyclattn.reference._tasks import drawn, rows_of

LARGEST = float(np.finfo(np.float32).max)  # a square that overflows counts as this


def square_distances(points: Float32, center: Float32) -> Float32:
    """Of each of the points (N, D) to one (D,)."""
    total = np.zeros(len(points), np.float32)
    with np.errstate(over="ignore"):
        for d in range(points.shape[1]):
            difference = points[:, d] - center[d]
            total += difference * difference
    return np.minimum(total, np.float32(LARGEST))


def choose_farthest(
    points: Float32, spans: Int64, index: Int64 | None, tasks: Int64, chosen: Int64, counter: Int64
) -> None:
    """The first point, then again and again the one farthest from those chosen, ties to the first.

    A task is [sequence]. ``chosen`` (n_sequences, M) gets rows; -1 where there are no points left.
    """
    for (sequence,) in drawn(tasks, counter):
        batch, rows = rows_of(spans, index, sequence)
        own = points[batch, rows]
        chosen[sequence] = -1
        nearest, at = np.full(len(rows), np.inf, np.float32), 0
        for number in range(min(len(rows), chosen.shape[1])):
            chosen[sequence, number] = rows[at]
            nearest = np.minimum(nearest, square_distances(own, own[at]))
            nearest[at] = -1  # below every distance from now on
            at = int(nearest.argmax())


def find_nearest(
    queries: Float32, points: Float32, spans: Int64, index: Int64 | None, topk: int, tasks: Int64, chunk: int,
    neighbors: Int64, counter: Int64,
) -> None:  # fmt: skip
    """The ``topk`` points nearest to each of ``chunk`` queries, the nearest first, ties to the first.

    A task is [sequence, first query]. Empty places (-1) last.
    """
    for sequence, first in drawn(tasks, counter):
        batch, rows = rows_of(spans, index, sequence)
        own = points[batch, rows]
        for j in range(first, min(first + chunk, queries.shape[1])):
            best = np.argsort(square_distances(own, queries[batch, j]), kind="stable")[:topk]
            neighbors[batch, j] = -1
            neighbors[batch, j, : len(best)] = rows[best]
