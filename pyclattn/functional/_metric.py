"""Clusters that serve attention: rows are near when their logits with the other side are, not when their numbers are.

A difference dq of queries shifts the logits by dq . k, so what it costs depends on how the keys spread. Distances are
taken under the square root of the other side's covariance, along the leading axes only, and k-means runs on a sample
that is strided, not drawn: no random number anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import NamedTuple

import numpy as np

from pyclattn import _threads
from pyclattn._blas import single
from pyclattn._dispatch import launch, launch_together
from pyclattn.arrays import PANEL, Float32, Float64, Int64
from pyclattn.functional._grouping import Grouping, sorting
from pyclattn.functional._ragged import Tokens, per_chunk, per_head

# Rows a covariance is taken from: with 2048 errors were the same to 2 %.
COVARIANCE_ROWS = 1024
# Rows of the k-means sample for each cluster, and its updates: half of either cost 7 % more error.
ROWS_PER_CLUSTER, N_ITERATIONS = 16, 3
# Rows of one task of the last assignment.
ASSIGNED = 32 * PANEL


def strided(tokens: Tokens, counts: Int64) -> Tokens:
    """At most ``counts[s]`` tokens of each sequence, evenly spread."""
    counts = np.minimum(counts, tokens.lengths)
    stops = np.cumsum(counts)
    index = np.empty(int(stops[-1]) if len(stops) else 0, np.int64)
    for (_, start, stop), n, end in zip(tokens.spans.tolist(), counts.tolist(), stops.tolist()):
        if n:
            index[end - n : end] = tokens.index[start + np.arange(n) * (stop - start) // n]
    return Tokens(np.stack([tokens.spans[:, 0], stops - counts, stops], axis=1), index)


def _covariances(sides: Sequence[tuple[Float32, Tokens]], n_threads: int) -> Float64:
    """Covariance of each side, sequence and head, (sides, n_sequences, heads, D, D), from a sample."""
    (rows, tokens), n_sides = sides[0], len(sides)
    out = np.empty((n_sides, len(tokens.spans), rows.shape[1], rows.shape[3], rows.shape[3]), np.float32)
    tasks, launches = per_head(*out.shape[1:3]), []
    for (own, own_tokens), found in zip(sides, out):
        sample = strided(own_tokens, np.full(len(own_tokens.spans), COVARIANCE_ROWS))
        launches.append(("coclusters.covariances", own, sample.spans, sample.index, tasks, found))
    launch_together(n_threads, *launches)
    out[~np.isfinite(out).all(axis=(-1, -2))] = np.eye(rows.shape[3])  # NaN in, any clusters out
    return out.astype(np.float64)


def axes_between(
    rows: Float32, tokens: Tokens, others: Float32, other_tokens: Tokens, rank: int, n_threads: int,
    n_principal: int = 0,
) -> tuple[Float32, Float32, Float32]:  # fmt: skip
    """Axes (n_sequences, heads, rank, D) on which distances of rows and of others are taken, and those on which others
    vary most, ``n_principal`` of them."""
    spreads = _covariances([(rows, tokens), (others, other_tokens)], n_threads)
    with single:
        values, principal = _eigenvectors(spreads, n_threads)
        # R with R^T R the root of the covariance, for each the other side's
        roots = (np.maximum(values, 0) ** 0.25)[::-1, ..., None] * principal[::-1]
        sizes, leading = _eigenvectors(roots @ spreads @ roots.swapaxes(-1, -2), n_threads)
        # of variance 1 on the first axis; less is none in float32
        sizes = np.where(sizes[..., :1] > 1e-60, sizes[..., :1], 1) ** 0.5
        axes = (leading[..., :rank, :] / sizes[..., None] @ roots).astype(np.float32)
    return axes[0], axes[1], principal[1, ..., :n_principal, :].astype(np.float32)


def _eigenvectors(matrices: Float64, n_threads: int) -> tuple[Float64, Float64]:
    """Eigenvalues (..., D) of symmetric matrices, the largest first, and eigenvectors as rows."""
    size = matrices.shape[-1]
    flat = np.ascontiguousarray(matrices).reshape(-1, size, size)
    values, vectors = np.empty(flat.shape[:2]), np.empty_like(flat)
    launch("coclusters.eigenvectors", n_threads, flat, np.arange(len(flat))[:, None].copy(), values, vectors)
    return values.reshape(matrices.shape[:-1]), vectors.reshape(matrices.shape)


def each(n_tasks: int, function: Callable[[int], None], n_threads: int) -> None:
    """Small problems of linear algebra on our threads; BLAS' own would wait for each other."""
    numbers = count()

    def draw() -> None:
        while (task := next(numbers)) < n_tasks:
            function(task)

    with single:
        _threads.run(draw, min(n_threads, n_tasks))


class Side(NamedTuple):
    """Rows to be clustered: the tokens of each sequence into ``n_clusters[s]`` along its axes."""

    rows: Float32
    tokens: Tokens
    axes: Float32
    n_clusters: Int64


def group_along(rows: Float32, tokens: Tokens, axes: Float32, n_clusters: Int64, n_threads: int) -> Grouping:
    """Cluster the rows of one side."""
    return group_sides([Side(rows, tokens, axes, n_clusters)], n_threads)[0]


def group_sides(sides: Sequence[Side], n_threads: int) -> list[Grouping]:
    """Cluster each side's sequences: k-means on a sample, then all rows once."""
    groupings, updates, assignments = [], [], []
    for rows, tokens, axes, n_clusters in sides:
        n_heads, counts = rows.shape[1], np.minimum(n_clusters, tokens.lengths)
        sample = strided(tokens, counts * ROWS_PER_CLUSTER)
        grouping = _empty(rows, tokens, counts)
        centroids = np.empty((n_heads, len(grouping.sequences), axes.shape[2]), np.float32)
        updates.append((
            "clustering.lloyd_along", rows, sample.spans, sample.index, axes, grouping.cluster_offsets, N_ITERATIONS,
            per_head(len(counts), n_heads), centroids,
        ))  # fmt: skip
        tasks = per_chunk(tokens.lengths, n_heads, ASSIGNED)
        tasks[:, 2] += tokens.spans[tasks[:, 0], 1]
        assignments.append((
            "clustering.nearest_assign", rows, tokens.spans, tokens.index, centroids, grouping.cluster_offsets, axes,
            tasks, ASSIGNED, grouping.labels,
        ))  # fmt: skip
        groupings.append(grouping)
    launch_together(n_threads, *updates)
    launch_together(n_threads, *assignments)
    launch_together(n_threads, *[sorting(side.tokens, grouping) for side, grouping in zip(sides, groupings)])
    return groupings


def _empty(rows: Float32, tokens: Tokens, counts: Int64) -> Grouping:
    n_heads, n_tokens = rows.shape[1], len(tokens.index)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    sequences = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    return Grouping(
        np.empty((n_heads, n_tokens), np.int32), offsets, sequences, np.empty((n_heads, n_tokens), np.int64),
        np.zeros((n_heads, offsets[-1] + 1), np.int64),
    )  # fmt: skip
