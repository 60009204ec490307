"""Training-free rivals of clustered attention, from their papers, on NumPy and our exact kernel.

`smyrf_attention`: balanced clusters by asymmetric hashing (Daras, Kitaev, Odena, Dimakis 2020, arXiv 2010.05315).
`block_sparse_attention`: blocks of keys chosen for each block of queries (Jiang et al. 2024, arXiv 2407.02490; the
bounds of Tang et al. 2024, arXiv 2406.10774). Both become packed sequences that `scaled_dot_product_attention` takes
in one call; what is left to NumPy runs on as many threads. One sequence, no masks: they are here to be measured.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pyclattn import _threads, scaled_dot_product_attention
from pyclattn._blas import single
from pyclattn.arrays import Float32, Int64
from pyclattn.errors import ArgumentError, ShapeError

# Bytes of gathered keys and values at a time: all that is chosen would be many times the input.
GATHERED_BYTES = 64 << 20
# The least weight of the extra key that is told from none: sums of its inverse stay far from float32's end.
LEAST = np.float32(1e-30)


def smyrf_attention(
    query: Float32,
    key: Float32,
    value: Float32,
    *,
    cluster_size: int = 128,
    n_rounds: int = 4,
    seed: int = 0,
    scale: float | None = None,
    n_threads: int | None = None,
) -> Float32:
    """Attention within balanced clusters of queries and keys, over several rounds of hashing.

    Queries and keys are lifted so that their distance falls with their inner product, projected on a random direction,
    sorted, and cut into clusters of equal size. A query's output is the mean of what its rounds found, each weighted
    with the sum of exponentials it saw.

    Parameters
    ----------
    query, key, value : float32 array (1, H, L, D), (1, H, S, D), (1, H, S, E)
    cluster_size : int
        Keys of a cluster, about; with S or more there is one cluster, and attention is exact.
    n_rounds : int
    seed : int
        Of the random directions.
    scale : float, optional
        Factor on the logits, 1/sqrt(D) by default.
    n_threads : int, optional

    Returns
    -------
    float32 array (1, H, L, E)

    Raises
    ------
    ShapeError, ArgumentError

    Examples
    --------
    >>> import numpy as np
    >>> query, key, value = np.random.default_rng(0).standard_normal((3, 1, 2, 100, 8), dtype=np.float32)
    >>> exact = scaled_dot_product_attention(query, key, value)
    >>> bool(np.allclose(smyrf_attention(query, key, value, cluster_size=100, n_rounds=2), exact, atol=1e-5))
    True
    """
    _check(query, key, value, cluster_size=cluster_size, n_rounds=n_rounds)
    (n_heads, length, depth), n_keys, width = query.shape[1:], key.shape[2], value.shape[3]
    factor, threads = depth**-0.5 if scale is None else scale, _threads.resolve(n_threads)
    n_clusters = max(1, min(length, round(n_keys / cluster_size)))
    ends, key_ends = (np.arange(n_clusters + 1) * n // n_clusters for n in (length, n_keys))
    directions = np.random.default_rng(seed).standard_normal((n_rounds, depth + 2), dtype=np.float32)
    # One zero key a cluster, its value a mark in a column of its own: its weight tells the sum of all the others.
    extra_ends = key_ends + np.arange(n_clusters + 1)
    places = np.delete(np.arange(extra_ends[-1]), extra_ends[1:] - 1)
    centered, marked = (np.zeros((n_heads, n_keys + 1, n), np.float32) for n in (depth, width + 1))
    marked[:, -1, width] = 1
    queries = np.empty((n_heads, length, depth), np.float32)
    keys, values = (np.empty((n_heads, extra_ends[-1], n), np.float32) for n in (depth, width + 1))
    found, sorted_back, sums = (np.zeros((n_heads, length, width + 1), np.float32) for _ in range(3))
    hashes, key_hashes = (np.empty((n_heads, n_rounds, n), np.float32) for n in (length, n_keys))
    orders = np.empty((n_heads, length), np.int64)
    out = np.empty((1, n_heads, length, width), np.float32)

    def hash_rows(head: int) -> None:
        # a shift of all keys changes no softmax; now the zero key is an average one
        np.subtract(key[0, head], key[0, head].mean(axis=0), out=centered[head, :-1])
        marked[head, :-1, :width] = value[0, head]
        hashes[head], key_hashes[head] = _hashes(query[0, head], centered[head, :-1], directions)

    def arrange(head: int, turn: int) -> None:
        orders[head] = np.argsort(hashes[head, turn])
        index = np.full(extra_ends[-1], n_keys)
        index[places] = np.argsort(key_hashes[head, turn])
        for rows, order, sorted_rows in (
            (query[0], orders[head], queries), (centered, index, keys), (marked, index, values),
        ):  # fmt: skip
            np.take(rows[head], order, axis=0, out=sorted_rows[head], mode="clip")  # other modes copy once more

    def join(head: int) -> None:
        # of N / (Z + 1) and 1 / (Z + 1), where Z is the sum of exponentials, N and Z + 1
        weight = np.maximum(found[head, :, width:], LEAST)
        found[head, :, width] = 1
        found[head] /= weight
        back = np.empty_like(orders[head])
        back[orders[head]] = np.arange(length)
        np.take(found[head], back, axis=0, out=sorted_back[head], mode="clip")
        sums[head] += sorted_back[head]

    def divide(head: int) -> None:
        np.divide(sums[head, :, :width], np.maximum(sums[head, :, width:] - n_rounds, LEAST), out=out[0, head])

    with single, ThreadPoolExecutor(threads) as pool:  # BLAS' own threads would wait for each other
        _each(pool, hash_rows, n_heads)
        for turn in range(n_rounds):
            _each(pool, lambda head, turn=turn: arrange(head, turn), n_heads)
            scaled_dot_product_attention(
                queries, keys, values, offsets=ends, key_offsets=extra_ends, scale=factor, n_threads=threads, out=found
            )
            _each(pool, join, n_heads)
        _each(pool, divide, n_heads)
    return out


def _hashes(query: Float32, key: Float32, directions: Float32) -> tuple[Float32, Float32]:
    """Projections (rounds, L) and (rounds, S) of F(q) = [q; 0; r(q)] and G(k) = [k; r(k); 0].

    r(x)^2 = max |q|^2 + max |k|^2 - |x|^2: all lifted rows are equally long, and |F(q) - G(k)|^2 = const - 2 q.k.
    """
    squares, key_squares = (np.einsum("nd,nd->n", x, x) for x in (query, key))
    longest, depth = squares.max() + key_squares.max(), query.shape[1]
    projected, key_projected = (directions[:, :depth] @ x.T for x in (query, key))
    projected += directions[:, depth + 1, None] * np.sqrt(longest - squares)
    key_projected += directions[:, depth, None] * np.sqrt(longest - key_squares)
    return projected, key_projected


def block_sparse_attention(
    query: Float32,
    key: Float32,
    value: Float32,
    *,
    n_blocks: int = 16,
    block_size: int = 64,
    query_block_size: int = 128,
    scoring: str = "mean",
    scale: float | None = None,
    n_threads: int | None = None,
) -> Float32:
    """Each block of queries attends to the ``n_blocks`` blocks of keys with the highest scores, and to nothing else.

    Parameters
    ----------
    query, key, value : float32 array (1, H, L, D), (1, H, S, D), (1, H, S, E)
    n_blocks : int
        Blocks of keys for each block of queries; with as many as there are, attention is exact.
    block_size, query_block_size : int
        Neighbouring keys, and queries, of a block.
    scoring : {"mean", "bounds"}
        "mean" (MInference): mean query . mean key. "bounds" (Quest): the most that mean query . key can be for a key
        between the block's least and largest coordinates.
    scale : float, optional
        Factor on the logits, 1/sqrt(D) by default.
    n_threads : int, optional

    Returns
    -------
    float32 array (1, H, L, E)

    Raises
    ------
    ShapeError, ArgumentError

    Examples
    --------
    >>> import numpy as np
    >>> query, key, value = np.random.default_rng(0).standard_normal((3, 1, 2, 100, 8), dtype=np.float32)
    >>> exact = scaled_dot_product_attention(query, key, value)
    >>> bool(np.allclose(block_sparse_attention(query, key, value, n_blocks=2), exact, atol=1e-5))
    True
    """
    _check(query, key, value, n_blocks=n_blocks, block_size=block_size, query_block_size=query_block_size)
    if scoring not in ("mean", "bounds"):
        raise ArgumentError(f"scoring must be 'mean' or 'bounds', got {scoring!r}")
    (n_heads, length, depth), n_keys, width = query.shape[1:], key.shape[2], value.shape[3]
    factor, threads = depth**-0.5 if scale is None else scale, _threads.resolve(n_threads)
    starts, key_starts = np.arange(0, length, query_block_size), np.arange(0, n_keys, block_size)
    n_blocks = min(n_blocks, len(key_starts))
    chosen = np.empty((n_heads, len(starts), n_blocks), np.int64)  # the first key of each block taken

    def choose(head: int) -> None:
        scores = _scores(query[0, head], key[0, head], starts, key_starts, scoring)
        best = np.argpartition(scores, len(key_starts) - n_blocks, axis=1)[:, len(key_starts) - n_blocks :]
        chosen[head] = key_starts[np.sort(best, axis=1)]

    # Heads one after the other: a block of queries is a sequence, whatever its head.
    rows, others, far = (x.reshape(1, -1, x.shape[3]) for x in (query, key, value))
    offsets = np.append((np.arange(n_heads)[:, None] * length + starts).ravel(), n_heads * length)
    out = np.empty((1, n_heads, length, width), np.float32)
    at_once = max(1, GATHERED_BYTES // (4 * (depth + width) * n_blocks * block_size))
    with single, ThreadPoolExecutor(threads) as pool:  # BLAS' own threads would wait for each other
        _each(pool, choose, n_heads)
        for first in range(0, n_heads * len(starts), at_once):
            blocks = np.arange(first, min(first + at_once, n_heads * len(starts)))
            index, counts = _members(chosen.reshape(-1, n_blocks)[blocks], blocks // len(starts), n_keys, block_size)
            part = slice(offsets[blocks[0]], offsets[blocks[-1] + 1])
            scaled_dot_product_attention(
                rows[:, part], _gather(pool, others, index), _gather(pool, far, index), scale=factor,
                offsets=offsets[first : blocks[-1] + 2] - offsets[first], n_threads=threads,
                key_offsets=np.append(0, np.cumsum(counts)), out=out.reshape(1, -1, width)[:, part],
            )  # fmt: skip
    return out


def _scores(query: Float32, key: Float32, starts: Int64, key_starts: Int64, scoring: str) -> Float32:
    """What blocks of queries may find in blocks of keys, (query blocks, key blocks)."""
    pooled = np.add.reduceat(query, starts, axis=0)  # ranks are taken within a row: the sum is as good as the mean
    if scoring == "mean":
        counts = np.diff(key_starts, append=len(key)).astype(np.float32)
        return pooled @ (np.add.reduceat(key, key_starts, axis=0) / counts[:, None]).T
    least, most = np.minimum.reduceat(key, key_starts, axis=0), np.maximum.reduceat(key, key_starts, axis=0)
    return np.maximum(pooled, 0) @ most.T + np.minimum(pooled, 0) @ least.T


def _members(chosen: Int64, heads: Int64, n_keys: int, block_size: int) -> tuple[Int64, Int64]:
    """Rows of the keys in the chosen blocks, heads one after the other, and how many each block of queries has."""
    index = (chosen[:, :, None] + np.arange(block_size)).reshape(len(chosen), -1)
    is_key = index < n_keys  # the last block may be short
    index += heads[:, None] * n_keys
    return index[is_key], is_key.sum(axis=1)


def _gather(pool: ThreadPoolExecutor, rows: Float32, index: Int64) -> Float32:
    """rows[:, index] of one packed head, a piece a thread."""
    out = np.empty((1, len(index), rows.shape[2]), np.float32)
    ends = np.linspace(0, len(index), 2 * pool._max_workers + 1).astype(np.int64)

    def copy(piece: int) -> None:
        own = slice(ends[piece], ends[piece + 1])
        np.take(rows[0], index[own], axis=0, out=out[0, own], mode="clip")  # other modes copy through a buffer

    _each(pool, copy, len(ends) - 1)
    return out


def _each(pool: ThreadPoolExecutor, function: Callable[[int], None], n_tasks: int) -> None:
    """Run tasks; the first error is raised."""
    for _ in pool.map(function, range(n_tasks)):
        pass


def _check(query: Float32, key: Float32, value: Float32, **counts: int) -> None:
    """One sequence, as many heads of keys as of queries, whole positive numbers."""
    heads = {x.shape[:2] for x in (query, key, value)}
    if any(x.ndim != 4 for x in (query, key, value)) or len(heads) != 1 or query.shape[0] != 1:
        raise ShapeError(
            f"query, key and value must be (1, H, length, width), got {query.shape}, {key.shape}, {value.shape}"
        )
    for name, count in counts.items():
        if count < 1:
            raise ArgumentError(f"{name} must be at least 1, got {count}")
