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
from pyclattn.functional._grouping import CHUNK, Grouping, means, sort, token_tasks
from pyclattn.functional._ragged import Tokens

# Rows a covariance is taken from: its leading axes hardly move with more.
COVARIANCE_ROWS = 2048
# Rows of the k-means sample for each cluster, and its assignments: more moved the error by less than 2 %.
ROWS_PER_CLUSTER, N_ITERATIONS = 16, 3


def strided(tokens: Tokens, counts: Int64) -> Tokens:
    """At most ``counts[s]`` tokens of each sequence, evenly spread."""
    counts = np.minimum(counts, tokens.lengths)
    stops = np.cumsum(counts)
    index = np.empty(int(stops[-1]) if len(stops) else 0, np.int64)
    for (_, start, stop), n, end in zip(tokens.spans.tolist(), counts.tolist(), stops.tolist()):
        if n:
            index[end - n : end] = tokens.index[start + np.arange(n) * (stop - start) // n]
    return Tokens(np.stack([tokens.spans[:, 0], stops - counts, stops], axis=1), index)


def covariances(samples: Float32, counts: Int64, n_threads: int) -> Float64:
    """Covariances (..., D, D) of centred samples (..., n, D) of which ``counts`` rows each are filled."""
    flat = samples.reshape(-1, *samples.shape[-2:])
    out = np.empty((len(flat), flat.shape[2], flat.shape[2]), np.float32)
    launch("coclusters.covariances", n_threads, flat, np.arange(len(flat), dtype=np.int64)[:, None].copy(), out)
    found = out.reshape(*samples.shape[:-2], *out.shape[1:]).astype(np.float64)
    found /= np.maximum(counts, 1).reshape(-1, *(1,) * (found.ndim - 1))
    found[~np.isfinite(found).all(axis=(-1, -2))] = np.eye(found.shape[-1])  # NaN in, any clusters out
    return found


def sampled(rows: Float32, tokens: Tokens) -> tuple[Float32, Int64]:
    """A centred sample of each sequence and head, (n_sequences, heads, n, D), zeros behind the rows that are filled."""
    taken = strided(tokens, np.full(len(tokens.spans), COVARIANCE_ROWS))
    counts = taken.lengths
    samples = np.zeros((len(counts), rows.shape[1], int(counts.max(initial=0)), rows.shape[3]), np.float32)
    for s, (batch, start, stop) in enumerate(taken.spans.tolist()):
        own = rows[batch][:, taken.index[start:stop]]
        samples[s, :, : stop - start] = own - own.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    return samples, counts


def axes_between(
    rows: Float32, tokens: Tokens, others: Float32, other_tokens: Tokens, rank: int, n_threads: int
) -> tuple[Float32, Float32]:
    """For each side the axes (n_sequences, heads, rank, D) on which its distances are taken."""
    spread = covariances(*sampled(rows, tokens), n_threads)
    other_spread = covariances(*sampled(others, other_tokens), n_threads)
    n_problems, shape = int(np.prod(spread.shape[:2])), (*spread.shape[:2], rank, spread.shape[3])
    found = np.empty((2, *shape), np.float32)
    sides = (spread, other_spread)

    def solve(task: int) -> None:
        side, problem = divmod(task, n_problems)
        place = np.unravel_index(problem, shape[:2])
        found[(side, *place)] = _axes(sides[side][place], sides[1 - side][place], rank)

    _each(2 * n_problems, solve, n_threads)
    return found[0], found[1]


def _axes(own: Float64, other: Float64, rank: int) -> Float64:
    """Leading axes of rows with covariance ``own`` under the metric other^(1/2)."""
    values, vectors = np.linalg.eigh(other)
    root = vectors * np.maximum(values, 0) ** 0.25
    _, leading = np.linalg.eigh(root.T @ own @ root)
    return (root @ leading[:, ::-1][:, :rank]).T


def leading_axes(covariance: Float64, rank: int, n_threads: int) -> Float32:
    """The ``rank`` directions of largest variance, (..., rank, D)."""
    found = np.empty((*covariance.shape[:-2], rank, covariance.shape[-1]), np.float32)

    def solve(task: int) -> None:
        place = np.unravel_index(task, covariance.shape[:-2])
        found[place] = np.linalg.eigh(covariance[place])[1][:, ::-1][:, :rank].T

    _each(int(np.prod(covariance.shape[:-2])), solve, n_threads)
    return found


def _each(n_tasks: int, function: Callable[[int], None], n_threads: int) -> None:
    """Small problems of linear algebra on our threads; BLAS' own would wait for each other."""
    numbers = count()

    def draw() -> None:
        while (task := next(numbers)) < n_tasks:
            function(task)

    with single:
        _threads.run(draw, min(n_threads, n_tasks))


def group_along(rows: Float32, tokens: Tokens, axes: Float32, n_clusters: Int64, n_threads: int) -> Grouping:
    """Cluster each sequence's tokens into ``n_clusters[s]`` along the axes: k-means on a sample, then all rows once."""
    counts = np.minimum(n_clusters, tokens.lengths)
    sample = strided(tokens, counts * ROWS_PER_CLUSTER)
    part = _empty(rows, sample, counts)
    start = strided(sample, counts)
    batches = sample.spans[part.sequences, 0]
    centroids = np.ascontiguousarray(rows[batches, :, start.index].swapaxes(0, 1))
    for _ in range(N_ITERATIONS):
        _assign(rows, sample, centroids, axes, part, n_threads)
        means(rows, sample, part, centroids, n_threads)
    grouping = _empty(rows, tokens, counts)
    _assign(rows, tokens, centroids, axes, grouping, n_threads)
    return grouping


def _empty(rows: Float32, tokens: Tokens, counts: Int64) -> Grouping:
    n_heads, n_tokens = rows.shape[1], len(tokens.index)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    sequences = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    return Grouping(
        np.empty((n_heads, n_tokens), np.int32), offsets, sequences, np.empty((n_heads, n_tokens), np.int64),
        np.zeros((n_heads, offsets[-1] + 1), np.int64),
    )  # fmt: skip


def _assign(
    rows: Float32, tokens: Tokens, centroids: Float32, axes: Float32, grouping: Grouping, n_threads: int
) -> None:
    launch(
        "clustering.nearest_assign", n_threads, rows, tokens.spans, tokens.index, centroids, grouping.cluster_offsets,
        axes, token_tasks(tokens, rows.shape[1]), CHUNK, grouping.labels,
    )  # fmt: skip
    sort(tokens, grouping, n_threads)
