"""Clusters that serve attention: rows are near when their logits with the other side are, not when their numbers are.

A difference dq of queries shifts the logits by dq . k, so what it costs depends on how the keys spread. Distances are
taken under the square root of the other side's covariance, along the leading axes only, and k-means runs on a sample
that is strided, not drawn: no random number anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import numpy as np

from pyclattn import _threads
from pyclattn._blas import single
from pyclattn._dispatch import launch
from pyclattn.arrays import Float32, Float64, Int64
from pyclattn.functional._grouping import Grouping, sort
from pyclattn.functional._ragged import Tokens, per_chunk, per_head

# Rows a covariance is taken from: with 2048 errors were the same to 2 %.
COVARIANCE_ROWS = 1024
# Rows of the k-means sample for each cluster, and its updates: half of either cost 7 % more error.
ROWS_PER_CLUSTER, N_ITERATIONS = 16, 3
# Rows of one task of the last assignment: whole panels of every instruction set.
ASSIGNED = 1536


def strided(tokens: Tokens, counts: Int64) -> Tokens:
    """At most ``counts[s]`` tokens of each sequence, evenly spread."""
    counts = np.minimum(counts, tokens.lengths)
    stops = np.cumsum(counts)
    index = np.empty(int(stops[-1]) if len(stops) else 0, np.int64)
    for (_, start, stop), n, end in zip(tokens.spans.tolist(), counts.tolist(), stops.tolist()):
        if n:
            index[end - n : end] = tokens.index[start + np.arange(n) * (stop - start) // n]
    return Tokens(np.stack([tokens.spans[:, 0], stops - counts, stops], axis=1), index)


def _covariances(rows: Float32, tokens: Tokens, n_threads: int) -> Float64:
    """Covariance of each sequence and head, (n_sequences, heads, D, D), from a sample."""
    sample = strided(tokens, np.full(len(tokens.spans), COVARIANCE_ROWS))
    out = np.empty((len(tokens.spans), rows.shape[1], rows.shape[3], rows.shape[3]), np.float32)
    tasks = per_head(*out.shape[:2])
    launch("coclusters.covariances", n_threads, rows, sample.spans, sample.index, tasks, out)
    out[~np.isfinite(out).all(axis=(-1, -2))] = np.eye(rows.shape[3])  # NaN in, any clusters out
    return out.astype(np.float64)


def axes_between(
    rows: Float32, tokens: Tokens, others: Float32, other_tokens: Tokens, rank: int, n_threads: int,
    n_principal: int = 0,
) -> tuple[Float32, Float32, Float32]:  # fmt: skip
    """Axes (n_sequences, heads, rank, D) on which distances of rows and of others are taken, and those on which others
    vary most, ``n_principal`` of them."""
    spread, other_spread = _covariances(rows, tokens, n_threads), _covariances(others, other_tokens, n_threads)
    shape = spread.shape
    axes, other_axes, principal = (np.empty((*shape[:2], n, shape[3]), np.float32) for n in (rank, rank, n_principal))

    def solve(task: int) -> None:
        at = divmod(task, shape[1])
        root, _ = _root(spread[at])
        other_root, vectors = _root(other_spread[at])
        axes[at] = _leading(spread[at], other_root, rank)
        other_axes[at] = _leading(other_spread[at], root, rank)
        principal[at] = vectors[:, ::-1][:, :n_principal].T

    each(shape[0] * shape[1], solve, n_threads)
    return axes, other_axes, principal


def _root(covariance: Float64) -> tuple[Float64, Float64]:
    """R with R R^T = covariance^(1/2), and the principal axes as columns, the least first."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.maximum(values, 0) ** 0.25, vectors


def _leading(own: Float64, root: Float64, rank: int) -> Float64:
    """Leading axes of rows with covariance ``own`` under the metric root root^T, of variance 1 on the first."""
    values, leading = np.linalg.eigh(root.T @ own @ root)
    size = values[-1] ** 0.5 if values[-1] > 1e-60 else 1.0  # less is none in float32
    return (root @ leading[:, ::-1][:, :rank]).T / size


def each(n_tasks: int, function: Callable[[int], None], n_threads: int) -> None:
    """Small problems of linear algebra on our threads; BLAS' own would wait for each other."""
    numbers = count()

    def draw() -> None:
        while (task := next(numbers)) < n_tasks:
            function(task)

    with single:
        _threads.run(draw, min(n_threads, n_tasks))


def group_along(rows: Float32, tokens: Tokens, axes: Float32, n_clusters: Int64, n_threads: int) -> Grouping:
    """Cluster each sequence's tokens into ``n_clusters[s]`` along the axes: k-means on a sample, then all rows once."""
    n_heads, counts = rows.shape[1], np.minimum(n_clusters, tokens.lengths)
    sample = strided(tokens, counts * ROWS_PER_CLUSTER)
    grouping = _empty(rows, tokens, counts)
    centroids = np.empty((n_heads, len(grouping.sequences), axes.shape[2]), np.float32)
    launch(
        "clustering.lloyd_along", n_threads, rows, sample.spans, sample.index, axes, grouping.cluster_offsets,
        N_ITERATIONS, per_head(len(counts), n_heads), centroids,
    )  # fmt: skip
    tasks = per_chunk(tokens.lengths, n_heads, ASSIGNED)
    tasks[:, 2] += tokens.spans[tasks[:, 0], 1]
    launch(
        "clustering.nearest_assign", n_threads, rows, tokens.spans, tokens.index, centroids, grouping.cluster_offsets,
        axes, tasks, ASSIGNED, grouping.labels,
    )  # fmt: skip
    sort(tokens, grouping, n_threads)
    return grouping


def _empty(rows: Float32, tokens: Tokens, counts: Int64) -> Grouping:
    n_heads, n_tokens = rows.shape[1], len(tokens.index)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    sequences = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    return Grouping(
        np.empty((n_heads, n_tokens), np.int32), offsets, sequences, np.empty((n_heads, n_tokens), np.int64),
        np.zeros((n_heads, offsets[-1] + 1), np.int64),
    )  # fmt: skip
