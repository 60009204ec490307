"""Centroid attention: many inputs gathered into few centroids, and where centroids start."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from pyclattn import _threads
from pyclattn._dispatch import launch
from pyclattn.arrays import PANEL, Bool, Float32, Given, Int64
from pyclattn.errors import ArgumentError, DTypeError, ShapeError
from pyclattn.functional import _check, _ragged, exact
from pyclattn.functional.exact import SMALL

NORMALIZATIONS = ("centroids", "inputs", "both")
# Inputs of one task: enough that its sums over M centroids are small beside them; M at least, so that the sums of all
# tasks together never outgrow the inputs.
CHUNK = 1024
SMALL_PAIRS = 250_000  # of pairs x features, read here and there: below (0.2 ms) a second thread is not worth its start
SMALL_CHECK = 100_000  # neighbours: below (0.1 ms) likewise for their check
CHUNK_PAIRS = 64  # centroids of one task that gathers neighbours


def centroid_attention(
    query: Given,
    key: Given,
    value: Given,
    *,
    normalize: str = "centroids",
    neighbors: Given = None,
    key_padding_mask: Given = None,
    centroid_padding_mask: Given = None,
    scale: float | None = None,
    n_threads: int | None = None,
) -> Float32:
    """Gather N inputs into M centroids: one amortised gradient step of soft k-means, without W_O and the sum to u.

    ``out[j] = sum_i w_ij value_i``, with w_ij the softmax **over the centroids j** of ``scale * query_j . key_i``:
    every input parts its value among the centroids.

    Parameters
    ----------
    query : array (B, H, M, D)
        Of the centroids, M <= N. float32; float16 and float64 are converted.
    key : array (B, H', N, D)
        Of the inputs. H must be a multiple of H'.
    value : array (B, H', N, E)
    normalize : {"centroids", "inputs", "both"}
        "centroids" is the paper's. The others are extras: "inputs" takes the softmax over i, which is ordinary
        attention; "both" divides ``out[j]`` by its mass, the sum of w_ij over i.
    neighbors : int array (B, M, K), optional
        The inputs each centroid gathers from, all different; -1 = none. The softmax is over the centroids that hold
        input i (or, for "inputs", over the inputs centroid j holds); an input held by none gives nothing. This form is
        reconstructed from the paper's outline.
    key_padding_mask : bool array (B, N), optional
        True = padding: weight 0, never read.
    centroid_padding_mask : bool array (B, M), optional
        True = padding: takes no part, and its output is 0.
    scale : float, optional
        1/sqrt(D) by default.
    n_threads : int, optional
        Default: PYCLATTN_NUM_THREADS, else the CPUs this process may use.

    Returns
    -------
    float32 array (B, H, M, E)
        In the memory order of the query. A centroid without inputs gets zeros. The same bits for any number of
        threads.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Before any work, naming the argument, what was given and what was expected.

    Notes
    -----
    Wu, Liu, Liu 2021, arXiv 2102.08606. The (M, N) weights are never held whole: inputs go by in blocks, and what a
    chunk of them gives is summed at the end, in memory of at most (N + M) E a head.

    Examples
    --------
    >>> import numpy as np, pyclattn
    >>> rng = np.random.default_rng(0)
    >>> key, value = rng.standard_normal((2, 1, 4, 1000, 16), dtype=np.float32)
    >>> query = key[:, :, :50]
    >>> pyclattn.centroid_attention(query, key, np.ones_like(value)).sum(axis=2)[0, 0, 0].round(2)
    np.float32(1000.0)
    """
    q, k, v = _check.attention_inputs(query, key, value, False)
    if q.shape[2] > k.shape[2]:
        raise ShapeError(
            f"query must have at most as many centroids as key has inputs, got {q.shape[2]} > {k.shape[2]}"
        )
    _check.one_of("normalize", normalize, NORMALIZATIONS)
    factor = _check.factor(scale, q.shape[3])
    threads = _threads.resolve(n_threads)
    masks = {"key_padding_mask": (key_padding_mask, k), "centroid_padding_mask": (centroid_padding_mask, q)}
    padding, absent = (
        None if mask is None else _check.bool_mask(name, mask, (x.shape[0], x.shape[2]))
        for name, (mask, x) in masks.items()
    )
    if neighbors is not None:
        near = _neighbors(neighbors, (q.shape[0], q.shape[2]), k.shape[2], threads)
        return _gather_pairs(q, k, v, near, normalize, padding, absent, factor, threads)
    if normalize == "inputs":
        return _attend(q, k, v, padding, absent, factor, threads)
    return _gather(q, k, v, normalize == "both", padding, absent, factor, threads)


def working_bytes(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *, n_neighbors: int | None = None,
    n_threads: int = 1,
) -> int:  # fmt: skip
    """Bytes a call holds beside its inputs and output, of shapes as arrays would have.

    Parameters
    ----------
    query, key, value : tuple of int
    n_neighbors : int, optional
    n_threads : int

    Returns
    -------
    int
    """
    (n_batch, n_heads, n_centroids, depth), (n_inputs, width) = query, value[2:]
    if n_neighbors is not None:  # weights, neighbours without those left out, and a group of pairs for each input
        return n_batch * n_centroids * n_neighbors * (4 * n_heads + 9) + n_threads * (12 * n_inputs + 8 * n_neighbors)
    parts = -(-n_inputs // max(CHUNK, n_centroids))
    rows = max(16, min(128, (1 << 17) // max(1, n_centroids)))
    of_thread = 4 * (n_centroids + PANEL) * (depth + width + 1 + rows) + 4 * rows * (depth + width + 50)
    return 4 * parts * n_batch * n_heads * n_centroids * (width + 1) + n_threads * of_thread


def _gather(
    q: Float32, k: Float32, v: Float32, is_divided: bool, padding: Bool | None, absent: Bool | None, factor: float,
    threads: int,
) -> Float32:  # fmt: skip
    """Softmax over the centroids."""
    (n_batch, n_heads, n_centroids, depth), (n_inputs, width) = q.shape, v.shape[2:]
    out = _ragged.output(q, k, v, None, False, fill=True)
    centroids, inputs = _ragged.padded(n_batch, n_centroids, absent), _ragged.padded(n_batch, n_inputs, padding)
    lengths = np.where(centroids.lengths > 0, inputs.lengths, 0)
    chunk = max(CHUNK, n_centroids)
    tasks = _ragged.per_chunk(lengths, n_heads, chunk)
    if len(tasks) == 0:
        return out
    parts = int(-(-lengths.max() // chunk))
    values = np.zeros((parts, n_batch, n_heads, n_centroids, width), np.float32)
    masses = np.zeros(values.shape[:-1], np.float32) if is_divided else None
    work = int(centroids.lengths @ inputs.lengths) * n_heads * (depth + width)
    launch(
        "centroid.gather_inputs", threads if work > SMALL else 1, q, centroids.spans, centroids.index, k, v,
        inputs.spans, inputs.index, factor, tasks, chunk, values, masses,
    )  # fmt: skip
    values.sum(axis=0, out=out)
    if masses is not None:
        mass = masses.sum(axis=0)[..., None]
        np.divide(out, mass, out=out, where=mass != 0)
    return out


def _attend(
    q: Float32, k: Float32, v: Float32, padding: Bool | None, absent: Bool | None, factor: float, threads: int
) -> Float32:
    """Softmax over the inputs."""
    out = _ragged.output(q, k, v, None, False, fill=False)
    if out.size:
        centroids = _ragged.padded(q.shape[0], q.shape[2], None)
        inputs = _ragged.padded(k.shape[0], k.shape[2], padding)
        exact.attend(q, centroids, k, v, inputs, None, None, False, factor, out, threads)
    if absent is not None:
        out[np.broadcast_to(absent[:, None], out.shape[:3])] = 0
    return out


def _gather_pairs(
    q: Float32, k: Float32, v: Float32, neighbors: Int64, normalize: str, padding: Bool | None, absent: Bool | None,
    factor: float, threads: int,
) -> Float32:  # fmt: skip
    """Softmax over pairs of a centroid and a neighbour."""
    out = _ragged.output(q, k, v, None, False, fill=False)
    n_batch, n_heads, n_centroids, n_neighbors = *q.shape[:3], neighbors.shape[2]
    for is_left_out in _left_out(neighbors, padding, absent):
        neighbors = np.where(is_left_out, -1, neighbors)
    weights = np.empty((n_batch, n_heads, n_centroids, n_neighbors), np.float32)
    threads = threads if weights.size * (q.shape[3] + v.shape[3]) > SMALL_PAIRS else 1
    tasks = _ragged.per_head(n_batch, n_heads)
    launch("centroid.weigh_pairs", threads, q, k, neighbors, normalize == "inputs", factor, tasks, weights)
    tasks = _ragged.per_chunk(np.full(n_batch, n_centroids), n_heads, CHUNK_PAIRS)
    launch("centroid.gather_pairs", threads, v, neighbors, weights, normalize == "both", tasks, CHUNK_PAIRS, out)
    return out


def _left_out(neighbors: Int64, padding: Bool | None, absent: Bool | None) -> Iterator[Bool]:
    """Pairs of a padded input or of a centroid that is none."""
    if padding is not None:
        yield padding[np.arange(len(neighbors))[:, None, None], neighbors]
    if absent is not None:
        yield absent[:, :, None]


def _neighbors(given: Given, shape: tuple[int, int], n_inputs: int, threads: int) -> Int64:
    """Neighbours (B, M, K), each of a centroid's another input, or -1."""
    array = _check.array_of("neighbors", given)
    if array.dtype.kind not in "iu":
        raise DTypeError(f"neighbors must be whole numbers, got {array.dtype}")
    if array.ndim != 3 or array.shape[:2] != shape:
        raise ShapeError(f"neighbors must have shape (B, M, K) = ({shape[0]}, {shape[1]}, K), got {array.shape}")
    if array.size and not (array.min() >= -1 and array.max() < n_inputs):
        raise ArgumentError(
            f"neighbors must be positions of the {n_inputs} inputs, or -1; got {array.min()} to {array.max()}"
        )
    array = np.ascontiguousarray(array, np.int64)
    repeated = np.full(len(array), -1, np.int64)
    tasks = np.arange(len(array), dtype=np.int64)[:, None]
    launch("centroid.find_repeated", threads if array.size > SMALL_CHECK else 1, array, n_inputs, tasks, repeated)
    if (repeated >= 0).any():
        batch = int((repeated >= 0).argmax())
        centroid, place = divmod(int(repeated[batch]), array.shape[2])
        raise ArgumentError(
            f"neighbors of a centroid must be different, got {array[batch, centroid, place]} twice for centroid "
            f"{centroid} of batch entry {batch}"
        )
    return array


def mean_pool_tokens(
    tokens: Given, n_centroids: int, *, grid: tuple[int, int] | None = None, key_padding_mask: Given = None
) -> Float32:
    """Means of M groups of neighbouring tokens.

    Parameters
    ----------
    tokens : array (B, N, width)
        float32; float16 and float64 are converted.
    n_centroids : int
        M <= N. Group j is tokens ``j N // M : (j + 1) N // M``.
    grid : tuple of int, optional
        (rows, columns) of the tokens, row by row. Groups are then squares of r x r tokens, row by row, with
        ``M = rows columns / r^2``.
    key_padding_mask : bool array (B, N), optional
        True = padding, left out of the means. A group of nothing but padding gets zeros.

    Returns
    -------
    float32 array (B, M, width)

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Before any work.

    Notes
    -----
    A start of Centroid Transformers (Wu, Liu, Liu 2021, arXiv 2102.08606); how N not divisible by M is parted is ours.

    Examples
    --------
    >>> import numpy as np, pyclattn
    >>> pyclattn.mean_pool_tokens(np.arange(8.0).reshape(1, 8, 1), 3)[0, :, 0]
    array([0.5, 3. , 6. ], dtype=float32)
    >>> pyclattn.mean_pool_tokens(np.arange(8.0).reshape(1, 8, 1), 2, grid=(2, 4))[0, :, 0]
    array([2.5, 4.5], dtype=float32)
    """
    x = _check.rows("tokens", tokens, 3)
    n = _check.n_centroids(n_centroids, x.shape[1])
    starts, order = _pools(x.shape[1], n, grid)
    padding = None
    if key_padding_mask is not None:
        padding = _check.bool_mask("key_padding_mask", key_padding_mask, x.shape[:2])
        x = np.where(padding[..., None], np.float32(0), x)
    if order is not None:
        x = x[:, order]
    sums: Float32 = np.add.reduceat(x, starts, axis=1)
    sums /= np.maximum(pool_counts(padding, x.shape[1], n, grid), 1)[..., None].astype(np.float32)
    return sums


def pool_counts(padding: Bool | None, n_tokens: int, n_centroids: int, grid: tuple[int, int] | None) -> Int64:
    """Tokens in each group of `mean_pool_tokens`: (B, M), or (1, M) without a mask."""
    starts, order = _pools(n_tokens, n_centroids, grid)
    there = np.ones((1, n_tokens), np.int64) if padding is None else (~padding).astype(np.int64)
    return np.add.reduceat(there if order is None else there[:, order], starts, axis=1)


def _pools(n_tokens: int, n_centroids: int, grid: tuple[int, int] | None) -> tuple[Int64, Int64 | None]:
    """Where groups begin, and, on a grid, the tokens in the order of their squares."""
    if grid is None:
        return np.arange(n_centroids, dtype=np.int64) * n_tokens // n_centroids, None
    try:
        rows, columns = (_check.whole("grid", n, 1) for n in grid)
    except (TypeError, ValueError):
        raise DTypeError(f"grid must be (rows, columns), got {grid!r}") from None
    side = math.isqrt(max(1, rows * columns // n_centroids))
    if rows * columns != n_tokens:
        raise ShapeError(f"grid must hold the {n_tokens} tokens, got {rows} x {columns}")
    if side * side * n_centroids != n_tokens or rows % side or columns % side:
        raise ArgumentError(
            f"n_centroids must part the grid of {rows} x {columns} into squares of r x r tokens, got {n_centroids}"
        )
    order = np.arange(n_tokens, dtype=np.int64).reshape(rows // side, side, columns // side, side)
    return np.arange(n_centroids, dtype=np.int64) * side * side, order.swapaxes(1, 2).reshape(-1)


def random_positions(n_tokens: int, n_centroids: int, seed: int = 0, key_padding_mask: Bool | None = None) -> Int64:
    """Positions of M tokens drawn without replacement: (B, M), or (1, M) without a mask.

    Parameters
    ----------
    n_tokens : int
    n_centroids : int
        M <= n_tokens.
    seed : int
        The first M of ``numpy.random.default_rng(seed).permutation(n_tokens)``, without padding; -1 where no token is
        left.
    key_padding_mask : bool array (B, n_tokens), optional

    Returns
    -------
    int64 array

    Examples
    --------
    >>> random_positions(6, 3, seed=1).shape
    (1, 3)
    """
    n = _check.n_centroids(n_centroids, n_tokens)
    drawn = np.random.default_rng(_check.whole("seed", seed, 0)).permutation(n_tokens)
    if key_padding_mask is None:
        return drawn[None, :n]
    padding = key_padding_mask[:, drawn]
    order = padding.argsort(axis=1, kind="stable")[:, :n]  # what is no padding first, in the order drawn
    return np.where(np.take_along_axis(padding, order, axis=1), -1, drawn[order])
