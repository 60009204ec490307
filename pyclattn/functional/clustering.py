"""Grouping queries, as functions of their own: sign hashes, clusters, k-means."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyclattn import _threads
from pyclattn.arrays import Codes, Float32, Given, Int32, Int64
from pyclattn.errors import ShapeError
from pyclattn.functional import _check, _ragged
from pyclattn.functional._grouping import Grouping, Recipe, check_start, group, hash_codes, means

# Ways to group queries that look at nothing else.
BY_ROWS = ("lsh", "kmeans")


@dataclass(frozen=True)
class Clusters:
    """Which cluster each row is in.

    Attributes
    ----------
    labels : int32 array (B, H, L), or (H, T) of a packed batch
        Number of the cluster; -1 at padding.
    counts : int64 array (B, H, C), or (n_sequences, H, C)
        Rows of each cluster. C is ``n_clusters``, or the longest sequence's length if that is less; a shorter sequence
        has fewer clusters, and zeros here.
    centroids : float32 array (B, H, C, D), or (n_sequences, H, C, D)
        Mean row of each cluster, 0 for an empty one.
    """

    labels: Int32
    counts: Int64
    centroids: Float32


def recipe(
    tokens: _ragged.Spans, head_dim: int, choices: tuple[str, ...], n_clusters: Given, clustering: Given,
    n_bits: Given, n_iterations: Given, planes: Given, start: Given, seed: Given,
) -> Recipe:  # fmt: skip
    """Check how queries are to be grouped."""
    n_clusters = _check.whole("n_clusters", n_clusters, 1)
    longest = int(tokens.lengths.max(initial=1))
    clustering = _check.one_of("clustering", clustering, choices)
    n_bits = _check.whole("n_bits", n_bits, 1, 63)
    n_iterations = _check.whole("n_iterations", n_iterations, 1, 10_000)
    seed = _check.whole("seed", seed, 0)
    if planes is not None:
        planes = np.ascontiguousarray(_check.rows("planes", planes, 2))
        if planes.shape[1] != head_dim + 1 or not 1 <= len(planes) <= 63:
            raise ShapeError(f"planes must have shape (1 to 63, head_dim + 1 = {head_dim + 1}), got {planes.shape}")
    if start is not None:
        start = check_start(_check.integers("start", start), tokens, n_clusters)
    return Recipe(min(n_clusters, longest), clustering, n_iterations, n_bits, planes, start, seed)


def _queries(name: str, given: Given, offsets: Given, padding: tuple[str, Given]) -> tuple[Float32, _ragged.Spans]:
    x = _check.rows(name, given, 4 if offsets is None else 3)
    if x.shape[-1] == 0:
        raise ShapeError(f"{name} must have rows of at least 1 number, got shape {x.shape}")
    if offsets is not None:
        x = x[None]
        if padding[1] is not None:
            raise ShapeError(f"{padding[0]} was given with offsets: packed tokens have no padding")
        return x, _ragged.packed(_check.packed_offsets("offsets", offsets, x.shape[2]))
    mask = None if padding[1] is None else _check.bool_mask(padding[0], padding[1], (x.shape[0], x.shape[2]))
    return x, _ragged.padded(x.shape[0], x.shape[2], mask)


def _unpacked(values: np.ndarray, tokens: _ragged.Tokens, shape: tuple[int, ...], fill: int) -> np.ndarray:
    """Per-token values (H, T) laid out as (B, H, L)."""
    out = np.full(shape, fill, values.dtype)
    out[np.repeat(tokens.spans[:, 0], tokens.lengths), :, tokens.index] = values.T
    return out


def hash_queries(
    query: Given,
    *,
    n_bits: int = 63,
    planes: Given = None,
    query_padding_mask: Given = None,
    offsets: Given = None,
    seed: int = 0,
    n_threads: int | None = None,
) -> Codes:
    """Sign codes of the queries under random hyperplanes.

    Bit b is 1 iff ``query . planes[b, :D] > planes[b, D]``, decided as if in exact arithmetic of float64.

    Parameters
    ----------
    query : array (B, H, L, D), or (H, T, D) with ``offsets``
    n_bits : int
        1 to 63.
    planes : array (n_bits, D + 1), optional
        The last column is a threshold. Drawn from the standard normal distribution with ``seed`` by default; then
        ``n_bits`` tells how many. Given planes bring their own number of bits.
    query_padding_mask : bool array (B, L), optional
        True = padding; its code is 0.
    offsets, seed, n_threads
        As in `clustered_attention`.

    Returns
    -------
    uint64 array (B, H, L), or (H, T)

    Notes
    -----
    Vyas et al. 2020 (arXiv 2007.04825), section 3.2.2.

    Examples
    --------
    >>> import numpy as np, pyclattn
    >>> query = np.array([[[[1.0, 0.0], [-1.0, 0.0]]]])
    >>> pyclattn.hash_queries(query, planes=[[1.0, 0.0, 0.0], [-1.0, 0.0, 0.5]]).tolist()
    [[[1, 2]]]
    """
    x, tokens = _queries("query", query, offsets, ("query_padding_mask", query_padding_mask))
    threads = _threads.resolve(n_threads)
    asked = recipe(tokens, x.shape[3], BY_ROWS, 1, "lsh", n_bits, 1, planes, None, seed)
    tokens = tokens.indexed()
    codes = hash_codes(x, tokens, asked.drawn_planes(x.shape[3]), threads)
    return codes if offsets is not None else _unpacked(codes, tokens, x.shape[:3], 0)


def cluster_queries(
    query: Given,
    *,
    n_clusters: int,
    clustering: str = "lsh",
    n_bits: int = 63,
    n_iterations: int = 10,
    query_padding_mask: Given = None,
    planes: Given = None,
    start: Given = None,
    seed: int = 0,
    offsets: Given = None,
    n_threads: int | None = None,
) -> Clusters:
    """The clusters `clustered_attention` would use for these queries.

    Parameters
    ----------
    query : array (B, H, L, D), or (H, T, D) with ``offsets``
    n_clusters, clustering, n_bits, n_iterations, query_padding_mask, planes, start, seed, offsets, n_threads
        As in `clustered_attention`.

    Returns
    -------
    Clusters

    Notes
    -----
    Vyas et al. 2020 (arXiv 2007.04825), section 3.2.2.

    Examples
    --------
    >>> import numpy as np, pyclattn
    >>> query = np.array([[[[1.0, 0.0], [-1.0, 0.0], [2.0, 0.1]]]])
    >>> pyclattn.cluster_queries(query, n_clusters=2, start=[0, 1]).labels.tolist()
    [[[0, 1, 0]]]
    """
    x, tokens = _queries("query", query, offsets, ("query_padding_mask", query_padding_mask))
    threads = _threads.resolve(n_threads)
    asked = recipe(tokens, x.shape[3], BY_ROWS, n_clusters, clustering, n_bits, n_iterations, planes, start, seed)
    return _clusters(x, tokens.indexed(), asked, offsets is not None, threads)


def kmeans(
    x: Given,
    *,
    n_clusters: int,
    n_iterations: int = 10,
    padding_mask: Given = None,
    start: Given = None,
    seed: int = 0,
    offsets: Given = None,
    n_threads: int | None = None,
) -> Clusters:
    """Lloyd's k-means of rows, in Euclidean distance, per batch entry and head.

    ``n_iterations`` assignments with an update of the centroids between each two; an empty cluster keeps its centroid;
    ties go to the lowest cluster.

    Parameters
    ----------
    x : array (B, H, L, D), or (H, T, D) with ``offsets``
    n_clusters : int
        At most the number of rows is used.
    n_iterations : int
    padding_mask : bool array (B, L), optional
        True = padding, in no cluster.
    start, seed, offsets, n_threads
        As in `clustered_attention`; the rows at ``start`` are the first centroids.

    Returns
    -------
    Clusters

    Examples
    --------
    >>> import numpy as np, pyclattn
    >>> x = np.array([[[[0.0], [0.2], [5.0], [5.2]]]])
    >>> pyclattn.kmeans(x, n_clusters=2, start=[0, 1]).labels.tolist()
    [[[0, 0, 1, 1]]]
    """
    rows, tokens = _queries("x", x, offsets, ("padding_mask", padding_mask))
    threads = _threads.resolve(n_threads)
    asked = recipe(tokens, rows.shape[3], BY_ROWS, n_clusters, "kmeans", 63, n_iterations, None, start, seed)
    return _clusters(rows, tokens.indexed(), asked, offsets is not None, threads)


def _clusters(x: Float32, tokens: _ragged.Tokens, asked: Recipe, is_packed: bool, n_threads: int) -> Clusters:
    grouping = group(x, tokens, asked, n_threads)
    n_sequences, n_heads, n_clusters = len(tokens.spans), x.shape[1], asked.n_clusters
    centroids = np.zeros((n_heads, len(grouping.sequences), x.shape[3]), np.float32)
    means(x, tokens, grouping, centroids, n_threads)
    counts = np.zeros((n_sequences, n_heads, n_clusters), np.int64)
    spread = np.zeros((n_sequences, n_heads, n_clusters, x.shape[3]), np.float32)
    places = grouping.sequences, slice(None), _numbers(grouping)
    counts[places] = np.diff(grouping.member_offsets, axis=1).T
    spread[places] = centroids.swapaxes(0, 1)
    labels = grouping.labels if is_packed else _unpacked(grouping.labels, tokens, x.shape[:3], -1)
    return Clusters(labels, counts, spread)


def _numbers(grouping: Grouping) -> Int64:
    """Each cluster's number within its sequence."""
    return np.arange(len(grouping.sequences)) - grouping.cluster_offsets[grouping.sequences]
