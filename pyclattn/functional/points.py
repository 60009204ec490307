"""Points in space: a few that are far apart, and the nearest of many."""

from __future__ import annotations

import numpy as np

from pyclattn import _threads
from pyclattn._dispatch import launch
from pyclattn.arrays import PANEL, Float32, Given, Int64
from pyclattn.errors import ArgumentError, ShapeError
from pyclattn.functional import _check, _ragged

CHUNK = 64  # queries of one task, which share the loading of the points
BLOCK = 2048  # points that the compiled kernel has before it at a time
# Below this many differences (0.1 ms; neighbours are also picked) a second thread costs more than it saves.
SMALL, SMALL_PICKED = 1_000_000, 250_000


def farthest_point_sampling(
    points: Given, n_centroids: int, *, key_padding_mask: Given = None, n_threads: int | None = None
) -> Int64:
    """Points far apart: the first one, then again and again the point farthest from those chosen.

    Parameters
    ----------
    points : array (B, N, P)
        float32 (float16 and float64 are converted), P coordinates of each point. NaN and infinities are refused.
    n_centroids : int
        M <= N, points to choose.
    key_padding_mask : bool array (B, N), optional
        True = padding, never chosen.
    n_threads : int, optional
        Sequences are shared out; one alone runs on one thread.

    Returns
    -------
    int64 array (B, M)
        Positions, all different, in the order they were chosen; -1 where no point is left.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Before any work.

    Notes
    -----
    The start of Centroid Transformers on point clouds (Wu, Liu, Liu 2021, arXiv 2102.08606; the method is Eldar et al.
    1997). Exact in float32: a distance is the sum of squared differences in the order of the coordinates, each step
    rounded; ties go to the lowest position; a chosen point is not chosen again, even where others lie on it.

    Examples
    --------
    >>> import numpy as np, pyclattn
    >>> points = np.array([[[0, 0], [1, 0], [9, 0], [9, 5]]], np.float32)
    >>> pyclattn.farthest_point_sampling(points, 3)
    array([[0, 3, 2]])
    """
    p, places = _points("points", points, key_padding_mask)
    n = _check.n_centroids(n_centroids, p.shape[1])
    threads = _threads.resolve(n_threads)
    chosen = np.empty((len(p), n), np.int64)
    work = int(places.lengths.sum()) * n * p.shape[2]
    tasks = np.arange(len(p), dtype=np.int64)[:, None]
    launch(
        "points.choose_farthest", threads if work > SMALL else 1, p, places.spans, places.index, tasks, chosen
    )  # fmt: skip
    return chosen


def nearest_neighbors(
    queries: Given, points: Given, n_neighbors: int, *, key_padding_mask: Given = None, n_threads: int | None = None
) -> Int64:
    """The points nearest to each query, in memory that grows with M K, never with M x N.

    Parameters
    ----------
    queries : array (B, M, P)
    points : array (B, N, P)
        float32 (float16 and float64 are converted). NaN and infinities are refused.
    n_neighbors : int
        K <= N.
    key_padding_mask : bool array (B, N), optional
        True = padding, nobody's neighbour.
    n_threads : int, optional

    Returns
    -------
    int64 array (B, M, K)
        Positions, the nearest first, ties to the lowest; -1 where there are not enough points.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Before any work.

    Notes
    -----
    Exact, by the distance of `farthest_point_sampling`.

    Examples
    --------
    >>> import numpy as np, pyclattn
    >>> points = np.array([[[0.0], [5.0], [6.0], [9.0]]])
    >>> pyclattn.nearest_neighbors(np.array([[[5.4], [-1.0]]]), points, 2)
    array([[[1, 2],
            [0, 1]]])
    """
    (q, _), (p, places) = _points("queries", queries, None), _points("points", points, key_padding_mask)
    if q.shape[0] != p.shape[0] or q.shape[2] != p.shape[2]:
        raise ShapeError(f"queries and points must have the same batch and coordinates, got {q.shape} and {p.shape}")
    topk = _check.whole("n_neighbors", n_neighbors, 1, p.shape[1])
    threads = _threads.resolve(n_threads)
    neighbors = np.empty((*q.shape[:2], topk), np.int64)
    tasks = _ragged.per_chunk(np.full(len(q), q.shape[1]), 1, CHUNK)[:, [0, 2]].copy()
    work = q.shape[1] * int(places.lengths.sum()) * p.shape[2]
    launch(
        "points.find_nearest", threads if work > SMALL_PICKED else 1, q, p, places.spans, places.index, topk, tasks,
        CHUNK, neighbors,
    )  # fmt: skip
    return neighbors


def working_bytes(
    points: tuple[int, ...], n_queries: int = 0, n_neighbors: int | None = None, *, n_threads: int = 1
) -> int:
    """Bytes a call holds at most beside its inputs and output: of `nearest_neighbors`, or without it of the other.

    Parameters
    ----------
    points : tuple of int
        (B, N, P)
    n_queries, n_neighbors : int
    n_threads : int

    Returns
    -------
    int
    """
    batch, n_points, depth = points
    checked = batch * (depth * max(n_points, n_queries) + 32 * n_points)  # what is finite; positions beside a mask
    if n_neighbors is None:
        return checked + n_threads * 4 * (n_points + PANEL) * (depth + 1)
    lists = 3 * (CHUNK + 17) * (n_neighbors + max(n_neighbors, 32) + 16)  # a query's nearest and newcomers
    return checked + n_threads * 4 * ((min(BLOCK, n_points) + 64) * (depth + 2) + lists)


def _points(name: str, given: Given, padding: Given) -> tuple[Float32, _ragged.Spans]:
    """Float32 points (B, N, P), side by side, and where those that count lie, which must be finite."""
    points = np.ascontiguousarray(_check.rows(name, given, 3))
    if points.shape[2] == 0:
        raise ShapeError(f"{name} must have at least one coordinate, got shape {points.shape}")
    if padding is not None:
        padding = _check.bool_mask("key_padding_mask", padding, points.shape[:2])
    is_finite = np.isfinite(points)
    if not is_finite.all():
        is_bad = ~is_finite.all(axis=2)
        if padding is not None:
            is_bad &= ~padding
        if is_bad.any():
            batch, at = np.argwhere(is_bad)[0].tolist()
            raise ArgumentError(f"{name} must be finite, got {points[batch, at]} at [{batch}, {at}]")
    return points, _ragged.padded(points.shape[0], points.shape[1], padding)
