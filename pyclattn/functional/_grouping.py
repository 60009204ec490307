"""Queries grouped into clusters: which kernels run in which order. Checks nothing; `clustering` and `clustered` do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pyclattn._dispatch import launch
from pyclattn.arrays import Codes, Float32, Int32, Int64
from pyclattn.errors import ArgumentError
from pyclattn.functional._ragged import Spans, Tokens, per_block, per_chunk, per_head

# Tokens of one clustering task: 4096 codes are 32 kB, so they stay in the first cache over all centroids.
CHUNK = 4096
# Clusters of one task where each is a gather: enough work to be worth drawing.
CLUSTER_CHUNK = 8


@dataclass(frozen=True)
class Recipe:
    """How queries are to be grouped; arguments already checked."""

    n_clusters: int
    clustering: str
    n_iterations: int
    n_bits: int
    planes: Float32 | None
    start: Int64 | None
    seed: int

    def drawn_planes(self, head_dim: int) -> Float32:
        """The hyperplanes given, or drawn from the seed: (n_bits, head_dim + 1), the last column a threshold."""
        if self.planes is not None:
            return self.planes
        rng = np.random.default_rng([self.seed, 0])
        return rng.standard_normal((self.n_bits, head_dim + 1), dtype=np.float32)

    def start_positions(self, lengths: Int64) -> list[Int64]:
        """For each sequence the tokens that open its clusters: as given, or drawn from the seed and its length."""
        if self.start is not None:
            return [self.start if n else self.start[:0] for n in lengths]
        drawn: dict[int, Int64] = {}
        for n in lengths.tolist():
            if n not in drawn:
                rng = np.random.default_rng([self.seed, 1, n])
                drawn[n] = rng.choice(n, min(self.n_clusters, n), replace=False).astype(np.int64)
        return [drawn[n] for n in lengths.tolist()]

    def refills(self) -> Codes:
        """Codes for clusters that run empty, (n_iterations - 1, n_clusters), drawn from the seed."""
        n_bits = self.n_bits if self.planes is None else len(self.planes)
        rng = np.random.default_rng([self.seed, 2])
        drawn = rng.integers(0, 1 << n_bits, (self.n_clusters, self.n_iterations - 1), dtype=np.uint64)
        return np.ascontiguousarray(drawn.T)  # drawn cluster by cluster: the first do not depend on how many there are


@dataclass(frozen=True)
class Grouping:
    """Tokens sorted by cluster. Clusters of sequence s: ``cluster_offsets[s]:cluster_offsets[s + 1]``, in all heads."""

    labels: Int32  # (H, T)
    cluster_offsets: Int64  # (n_sequences + 1,)
    sequences: Int64  # (n_clusters in all,) the sequence of each cluster
    order: Int64  # (H, T) rows, cluster by cluster
    member_offsets: Int64  # (H, n_clusters in all + 1)


def group(rows: Float32, tokens: Tokens, recipe: Recipe, n_threads: int) -> Grouping:
    """Cluster the tokens (with index) of every sequence and head of ``rows`` (batch, heads, length, D)."""
    n_heads, n_tokens = rows.shape[1], len(tokens.index)
    starts = recipe.start_positions(tokens.lengths)
    cluster_offsets = np.concatenate([[0], np.cumsum([len(s) for s in starts])]).astype(np.int64)
    sequences = np.repeat(np.arange(len(starts), dtype=np.int64), np.diff(cluster_offsets))
    labels = np.empty((n_heads, n_tokens), np.int32)
    order = np.empty((n_heads, n_tokens), np.int64)
    member_offsets = np.zeros((n_heads, cluster_offsets[-1] + 1), np.int64)
    grouping = Grouping(labels, cluster_offsets, sequences, order, member_offsets)
    opening = np.concatenate([s + first for s, first in zip(starts, tokens.spans[:, 1])] or [np.zeros(0, np.int64)])
    if recipe.clustering == "kmeans":
        _kmeans(rows, tokens, grouping, opening, recipe, n_threads)
    else:
        _lsh(rows, tokens, grouping, opening, recipe, n_threads)
        sort(tokens, grouping, n_threads)
    return grouping


def hash_codes(rows: Float32, tokens: Tokens, planes: Float32, n_threads: int) -> Codes:
    """Sign codes (H, T)."""
    codes = np.empty((rows.shape[1], len(tokens.index)), np.uint64)
    tasks = token_tasks(tokens, rows.shape[1])
    launch("clustering.hash_rows", n_threads, rows, tokens.spans, tokens.index, planes, tasks, CHUNK, codes)
    return codes


def token_tasks(tokens: Tokens, n_heads: int) -> Int64:
    """Tasks [sequence, head, first token] of CHUNK tokens."""
    tasks = per_chunk(tokens.lengths, n_heads, CHUNK)
    tasks[:, 2] += tokens.spans[tasks[:, 0], 1]
    return tasks


def means(
    rows: Float32,
    tokens: Tokens,
    grouping: Grouping,
    centroids: Float32,
    n_threads: int,
    spreads: Float32 | None = None,
) -> None:
    """Write the mean row of each cluster into ``centroids`` (H, n_clusters in all, D); an empty one keeps its own.

    Into ``spreads`` (H, n_clusters in all), if given, the mean square distance to it.
    """
    tasks = per_block(len(grouping.sequences), rows.shape[1], CLUSTER_CHUNK)
    batches = tokens.spans[grouping.sequences, 0]
    launch(
        "clustering.cluster_means", n_threads, rows, batches, grouping.order, grouping.member_offsets, tasks,
        CLUSTER_CHUNK, centroids, spreads,
    )  # fmt: skip


def sort(tokens: Tokens, grouping: Grouping, n_threads: int) -> None:
    """Sort the tokens by their labels."""
    kernel, *arguments = sorting(tokens, grouping)
    launch(kernel, n_threads, *arguments)


def sorting(tokens: Tokens, grouping: Grouping) -> tuple[Any, ...]:
    """The kernel that does it, and its arguments."""
    return (
        "clustering.sort_by_label", grouping.labels, tokens.spans, tokens.index, grouping.cluster_offsets,
        per_head(len(tokens.spans), len(grouping.labels)), grouping.order, grouping.member_offsets,
    )  # fmt: skip


def _lsh(rows: Float32, tokens: Tokens, grouping: Grouping, opening: Int64, recipe: Recipe, n_threads: int) -> None:
    """Lloyd's k-means on sign codes (Vyas et al. 2020, section 3.2.2)."""
    codes = hash_codes(rows, tokens, recipe.drawn_planes(rows.shape[3]), n_threads)
    centroids = np.ascontiguousarray(codes[:, opening])
    refills, labels, offsets = recipe.refills(), grouping.labels, grouping.cluster_offsets
    heads = per_head(len(tokens.spans), len(codes))
    if len(heads) >= 4 * n_threads:  # a task a head keeps its codes in cache over all iterations
        launch(
            "clustering.hamming_lloyd", n_threads, codes, tokens.spans, offsets, recipe.n_iterations, refills, heads,
            labels, centroids,
        )  # fmt: skip
        return
    # few long sequences: each iteration is cut over the tokens; the counts are whole, so the bits are the same
    tasks = token_tasks(tokens, len(codes))
    tasks = np.concatenate([tasks, np.arange(len(tasks))[:, None]], axis=1)
    numbers = tasks[:, 0] * len(codes) + tasks[:, 1]
    parts = np.stack([np.searchsorted(numbers, np.arange(len(heads)), side) for side in ("left", "right")], axis=1)
    sizes = np.empty((len(tasks), recipe.n_clusters), np.int32)
    bit_counts = np.empty((len(tasks), recipe.n_clusters, 64), np.int32)
    assign = (codes, tokens.spans, offsets, centroids, tasks, CHUNK, labels, sizes, bit_counts)
    for refill in refills:
        launch("clustering.hamming_assign", n_threads, *assign)
        launch("clustering.hamming_update", n_threads, sizes, bit_counts, parts, offsets, refill, heads, centroids)
    launch("clustering.hamming_assign", n_threads, *assign)


def _kmeans(rows: Float32, tokens: Tokens, grouping: Grouping, opening: Int64, recipe: Recipe, n_threads: int) -> None:
    """Lloyd's k-means on the rows themselves; leaves the tokens sorted."""
    batches = tokens.spans[grouping.sequences, 0]
    centroids = np.ascontiguousarray(rows[batches, :, tokens.index[opening]].swapaxes(0, 1))
    tasks = token_tasks(tokens, rows.shape[1])
    for iteration in range(recipe.n_iterations):
        if iteration:
            means(rows, tokens, grouping, centroids, n_threads)
        launch(
            "clustering.nearest_assign", n_threads, rows, tokens.spans, tokens.index, centroids,
            grouping.cluster_offsets, None, tasks, CHUNK, grouping.labels,
        )  # fmt: skip
        sort(tokens, grouping, n_threads)


def check_start(start: Int64, tokens: Spans, n_clusters: int) -> Int64:
    """Starting positions as token numbers: distinct rows that every sequence has.

    Raises
    ------
    ArgumentError
        If a position is repeated, or padding or beyond the end in some sequence.
    """
    if len(start) != n_clusters:
        raise ArgumentError(f"start must hold n_clusters = {n_clusters} positions, got {len(start)}")
    positions, times = np.unique(start, return_counts=True)
    if len(positions) != len(start):
        raise ArgumentError(f"start must hold distinct positions, got {positions[times > 1][0]} more than once")
    shortest = int(tokens.lengths[tokens.lengths > 0].min(initial=np.iinfo(np.int64).max))
    if len(start) and (start.min() < 0 or start.max() >= shortest):
        raise ArgumentError(
            f"start must hold positions of every sequence's tokens, 0 to {shortest - 1}, "
            f"got {start.min()} to {start.max()}"
        )
    return start
