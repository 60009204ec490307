"""Clustered and improved clustered attention (Vyas, Katharopoulos, Fleuret 2020, arXiv 2007.04825)."""

from __future__ import annotations

import numpy as np

from pyclattn import _threads
from pyclattn._dispatch import launch
from pyclattn.arrays import PANEL, Float32, Float64, Given, Int64
from pyclattn.errors import ArgumentError, ShapeError
from pyclattn.functional import _check, _ragged
from pyclattn.functional._grouping import CLUSTER_CHUNK, Grouping, Recipe, group, means
from pyclattn.functional._memory import grouping_bytes, library_bytes
from pyclattn.functional._metric import axes_between, group_along
from pyclattn.functional.clustering import BY_ROWS, recipe
from pyclattn.functional.sampled_error import ErrorCheck

# Clusters of one task: panels that share each block of keys.
PANELS = 4 * PANEL
# Parts a long key sequence is cut into: enough tasks for many threads, whatever their number (the same bits for any),
# but never under 4096 keys, below which each part looks for its own top-k in vain.
MOST_TASKS, LEAST_SPLIT = 24, 4096
# Axes along which "metric" clusters, as many as `coclustered_attention` has.
AXES = 16
# Tokens of one round: a large batch goes through in rounds, so that working memory does not grow with it.
ROUND = 65_536


def clustered_attention(
    query: Given,
    key: Given,
    value: Given,
    *,
    n_clusters: int,
    n_bits: int = 63,
    n_iterations: int = 10,
    clustering: str = "lsh",
    key_padding_mask: Given = None,
    query_padding_mask: Given = None,
    planes: Given = None,
    start: Given = None,
    seed: int = 0,
    scale: float | None = None,
    offsets: Given = None,
    key_offsets: Given = None,
    return_error: bool = False,
    max_error: float | None = None,
    on_error: str = "exact",
    n_threads: int | None = None,
    out: Given = None,
) -> Float32 | tuple[Float32, Float64]:
    """Attention of query clusters: each query gets the output of its cluster's mean query. O(L + S) time and memory.

    Parameters
    ----------
    query : array (B, H, L, D), or (H, T, D) with ``offsets``
        float32; float16 and float64 are converted. Any strides with contiguous rows are read in place.
    key : array (B, H', S, D)
        H must be a multiple of H'.
    value : array (B, H', S, E)
    n_clusters : int
        Clusters of each sequence and head; at most the sequence's length is used.
    n_bits : int
        Length of the sign codes that queries are clustered by, 1 to 63.
    n_iterations : int
        Assignments of Lloyd's k-means, with an update between each two.
    clustering : {"lsh", "kmeans", "metric"}
        "lsh", the paper's: k-means of sign codes in Hamming distance. "kmeans": k-means of the queries themselves.
        "metric": k-means of what the keys see of them, on a sample; the cheapest, and of the least error. It takes no
        ``n_iterations``, ``start`` or ``seed``: nothing is drawn.
    key_padding_mask, query_padding_mask : bool array (B, S), (B, L), optional
        True = padding. A padded key is never read; a padded query is in no cluster and its output is 0.
    planes : array (n_bits, D + 1), optional
        Hyperplanes and thresholds of the codes; drawn from the standard normal distribution by default.
    start : int array (n_clusters,), optional
        Distinct positions among the unpadded tokens of each sequence whose codes (or rows) open the clusters; drawn
        from the seed and the sequence's length by default.
    seed : int
        Of whatever is drawn: planes, starting positions, and the codes of clusters that run empty ("kmeans" keeps the
        centroid of an empty cluster instead).
    scale : float, optional
        Factor on the logits, 1/sqrt(D) by default.
    offsets, key_offsets : int array (n_sequences + 1,), optional
        A ragged batch packed along the token axis; ``key_offsets`` where the keys' lengths differ.
    return_error : bool
        Also return how far the result is from exact attention, as estimated (docs/errors.md).
    max_error : float, optional
        Where the estimate of a sequence and head is above this, see ``on_error``.
    on_error : {"exact", "warn", "raise"}
        Compute that head of that sequence exactly; or warn; or raise an error naming those.
    n_threads : int, optional
        Default: PYCLATTN_NUM_THREADS, else the CPUs this process may use.
    out : float32 array (B, H, L, E), or (H, T, E), optional
        Where the result goes; any strides with contiguous rows. Must not overlap the inputs.

    Returns
    -------
    float32 array (B, H, L, E), or (H, T, E)
        In the memory order of the query. The same bits for any number of threads and from run to run.
    float64 array (B, H), or (n_sequences, H), with ``return_error``
        Estimated relative Frobenius error of each sequence and head, before any was made exact for ``max_error``: from
        the exact outputs of 64 of its queries. 0 where attention was exact from the start.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Before any work, naming the argument, what was given and what was expected.
    AccuracyError
        With ``on_error="raise"``, naming heads and estimates.

    Notes
    -----
    Vyas et al. 2020 (arXiv 2007.04825), section 3.2. Starting positions come from unpadded tokens only, and an empty
    cluster's code from the seed, where the authors' code draws anew at each call.

    Examples
    --------
    >>> import numpy as np, pyclattn
    >>> rng = np.random.default_rng(0)
    >>> query, key, value = (rng.standard_normal((1, 2, 300, 16), dtype=np.float32) for _ in range(3))
    >>> pyclattn.clustered_attention(query, key, value, n_clusters=20).shape
    (1, 2, 300, 16)
    """
    return _attend(
        query, key, value, 0, False, scale, offsets, key_offsets, query_padding_mask, key_padding_mask, n_threads, out,
        (n_clusters, clustering, n_bits, n_iterations, planes, start, seed), (return_error, max_error, on_error),
    )  # fmt: skip


def improved_clustered_attention(
    query: Given,
    key: Given,
    value: Given,
    *,
    n_clusters: int,
    topk: int = 32,
    is_causal: bool = False,
    n_bits: int = 63,
    n_iterations: int = 10,
    clustering: str = "lsh",
    key_padding_mask: Given = None,
    query_padding_mask: Given = None,
    planes: Given = None,
    start: Given = None,
    seed: int = 0,
    scale: float | None = None,
    offsets: Given = None,
    key_offsets: Given = None,
    return_error: bool = False,
    max_error: float | None = None,
    on_error: str = "exact",
    n_threads: int | None = None,
    out: Given = None,
) -> Float32 | tuple[Float32, Float64]:
    """Clustered attention whose ``topk`` strongest keys of each cluster are attended to exactly, query by query.

    Parameters
    ----------
    query, key, value, n_clusters, n_bits, n_iterations, clustering, key_padding_mask, query_padding_mask, planes, \
start, seed, scale, offsets, key_offsets, return_error, max_error, on_error, n_threads, out
        As in `clustered_attention`.
    topk : int
        Keys with the largest logits of each cluster's mean query, ties to the first.
    is_causal : bool
        Query i attends only to those of its cluster's ``topk`` keys that are not after it, and to nothing else; a
        query whose keys all lie in the future gets zeros. **This is not strictly causal**: which keys are chosen, and
        which queries share a cluster, depends on the whole sequence, the future included.

    Returns
    -------
    float32 array (B, H, L, E), or (H, T, E)
        In the memory order of the query. With ``topk`` of at least the number of keys it is exact attention.
    float64 array (B, H), or (n_sequences, H), with ``return_error``
        Estimated relative Frobenius error of each sequence and head, before any was made exact for ``max_error``: from
        the exact outputs of 64 of its queries. 0 where attention was exact from the start.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Before any work, naming the argument, what was given and what was expected.
    AccuracyError
        With ``on_error="raise"``, naming heads and estimates.

    Notes
    -----
    Vyas et al. 2020 (arXiv 2007.04825), section 3.3.

    Examples
    --------
    >>> import numpy as np, pyclattn
    >>> rng = np.random.default_rng(0)
    >>> query, key, value = (rng.standard_normal((1, 2, 300, 16), dtype=np.float32) for _ in range(3))
    >>> approximate = pyclattn.improved_clustered_attention(query, key, value, n_clusters=20, topk=300)
    >>> np.allclose(approximate, pyclattn.scaled_dot_product_attention(query, key, value), atol=1e-5)
    True
    """
    topk = _check.whole("topk", topk, 1)
    is_causal = _check.flag("is_causal", is_causal)
    return _attend(
        query, key, value, topk, is_causal, scale, offsets, key_offsets, query_padding_mask, key_padding_mask,
        n_threads, out, (n_clusters, clustering, n_bits, n_iterations, planes, start, seed),
        (return_error, max_error, on_error),
    )  # fmt: skip


def _attend(
    query: Given, key: Given, value: Given, topk: int, is_causal: bool, scale: Given, offsets: Given,
    key_offsets: Given, query_padding_mask: Given, key_padding_mask: Given, n_threads: Given,
    given_out: Given, how: tuple, checking: tuple[Given, Given, Given],
) -> Float32 | tuple[Float32, Float64]:  # fmt: skip
    """Check, then go through the batch in rounds of sequences."""
    q, k, v = _check.attention_inputs(query, key, value, offsets is not None)
    factor = _check.factor(scale, q.shape[3])
    threads = _threads.resolve(n_threads)
    queries, keys = _ragged.locate(q, k, offsets, key_offsets, query_padding_mask, key_padding_mask)
    if is_causal and offsets is None and q.shape[2] != k.shape[2]:
        raise ShapeError(f"is_causal needs as many keys as queries, got query {q.shape} and key {k.shape}")
    asked = recipe(queries, q.shape[3], (*BY_ROWS, "metric"), *how)
    check = ErrorCheck.of(*checking, len(queries.spans), q.shape[1])
    if check is not None and is_causal:
        raise ArgumentError("is_causal was given with return_error or max_error: the causal form has no estimate")
    out = _ragged.output(q, k, v, given_out, offsets is not None, fill=True)
    own = out if offsets is None else out[0]
    if out.size == 0:
        return own if check is None else check.answer(own, checking[0])
    # padded rows are their own positions; a packed sequence's rows start anywhere
    shifts = np.zeros(len(queries.spans), np.int64)
    if offsets is not None:
        shifts = keys.spans[:, 1] - queries.spans[:, 1]
    lengths = queries.lengths
    rounds = np.cumsum(lengths) // ROUND
    for number in np.unique(rounds[(lengths > 0) & (keys.lengths > 0)]):
        members = np.flatnonzero((rounds == number) & (lengths > 0) & (keys.lengths > 0))
        tokens = _ragged.Spans(queries.spans[members], queries.index).indexed()
        own_keys = _ragged.Spans(keys.spans[members], keys.index)
        grouping = _round(q, k, v, tokens, own_keys, shifts[members], asked, topk, is_causal, factor, out, threads)
        if check is not None:
            heads = slice(0, q.shape[1])
            check.add(members, heads, q, tokens, k, v, own_keys, None, grouping, factor, out, threads)
    return own if check is None else check.answer(own, checking[0])


def _round(
    q: Float32, k: Float32, v: Float32, tokens: _ragged.Tokens, keys: _ragged.Spans, shifts: Int64, asked: Recipe,
    topk: int, is_causal: bool, factor: float, out: Float32, n_threads: int,
) -> Grouping:  # fmt: skip
    """Cluster, attend at the centroids, hand the result to the members."""
    if asked.clustering == "metric":
        grouping = _grouped_by_keys(q, tokens, k, keys, asked, n_threads)
    else:
        grouping = group(q, tokens, asked, n_threads)
    n_heads, n_clusters = q.shape[1], len(grouping.sequences)
    centroids = np.zeros((n_heads, n_clusters, q.shape[3]), np.float32)
    means(q, tokens, grouping, centroids, n_threads)
    topk = min(topk, int(keys.lengths.max()))
    selected, weights, values = _at_centroids(centroids, grouping, k, v, keys, topk, factor, n_threads)
    tasks = _ragged.per_block(n_clusters, n_heads, CLUSTER_CHUNK)
    batches = tokens.spans[grouping.sequences, 0]
    if topk == 0:
        launch(
            "attention.spread_members", n_threads, batches, grouping.order, grouping.member_offsets, values, tasks,
            CLUSTER_CHUNK, out,
        )  # fmt: skip
        return grouping
    launch(
        "attention.attend_members", n_threads, q, k, v, batches, shifts[grouping.sequences], grouping.order,
        grouping.member_offsets, selected, weights, values, is_causal, factor, tasks, CLUSTER_CHUNK, out,
    )  # fmt: skip
    return grouping


def _grouped_by_keys(
    q: Float32, tokens: _ragged.Tokens, k: Float32, keys: _ragged.Spans, asked: Recipe, n_threads: int
) -> Grouping:
    """Queries that give like logits with these keys: the clustering of `coclustered_attention`."""
    group_size = q.shape[1] // k.shape[1]
    own = k if group_size == 1 else np.repeat(k, group_size, axis=1)
    axes, _, _ = axes_between(q, tokens, own, keys.indexed(), min(AXES, q.shape[3]), n_threads)
    return group_along(q, tokens, axes, np.full(len(tokens.spans), asked.n_clusters), n_threads)


def _at_centroids(
    centroids: Float32, grouping: Grouping, k: Float32, v: Float32, keys: _ragged.Spans, topk: int, factor: float,
    n_threads: int,
) -> tuple[Int64, Float32, Float32]:  # fmt: skip
    """Each centroid's ``topk`` keys, their softmax weights, and its output over all keys."""
    n_heads, n_clusters, _ = centroids.shape
    longest, width = int(keys.lengths.max()), v.shape[3]
    blocks = _ragged.per_chunk(np.diff(grouping.cluster_offsets), n_heads, PANELS)
    blocks[:, 2] += grouping.cluster_offsets[blocks[:, 0]]
    n_parts = _n_parts(len(blocks), longest)
    split = -(-longest // n_parts)
    tasks = np.concatenate(
        [np.repeat(blocks, n_parts, axis=0), np.tile(np.arange(n_parts), len(blocks))[:, None]], axis=1
    )
    shape = (n_parts, n_heads, n_clusters)
    peaks, masses, partial = (
        np.empty(shape, np.float32),
        np.empty(shape, np.float32),
        np.empty((*shape, width), np.float32),
    )
    top_scores, top_keys = np.empty((*shape, topk), np.float32), np.empty((*shape, topk), np.int64)
    launch(
        "attention.attend_centroids", n_threads, centroids, grouping.cluster_offsets, k, v, keys.spans, keys.index,
        topk, factor, tasks, PANELS, split, peaks, masses, partial, top_scores, top_keys,
    )  # fmt: skip
    selected, weights = (
        np.empty((n_heads, n_clusters, topk), np.int64),
        np.empty((n_heads, n_clusters, topk), np.float32),
    )
    values = np.empty((n_heads, n_clusters, width), np.float32)
    launch(
        "attention.merge_partials", n_threads, peaks, masses, partial, top_scores, top_keys,
        _ragged.per_block(n_clusters, n_heads, CLUSTER_CHUNK), CLUSTER_CHUNK, values, selected, weights,
    )  # fmt: skip
    return selected, weights, values


def _n_parts(n_blocks: int, n_keys: int) -> int:
    """Parts that the keys are cut into."""
    return max(1, min(MOST_TASKS // max(1, n_blocks), n_keys // LEAST_SPLIT))


def working_bytes(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *, n_threads: int, n_clusters: int,
    topk: int = 0, clustering: str = "lsh", n_iterations: int = 10, **_: Given,
) -> int:  # fmt: skip
    """What a call holds at most beside inputs and output, compiler included, for arrays of these shapes.

    ``topk`` is 0 for `clustered_attention`; the rest is as of the functions, a padded batch without padding.
    """
    (batch, n_heads, length, depth), n_keys, width = query, key[2], value[3]
    topk, n_own = min(topk, n_keys), min(n_clusters, length)
    n_sequences = min(batch, -(-ROUND // max(1, length)))  # of one round
    kept, grouping = grouping_bytes(n_sequences, n_heads, length, depth, n_own, clustering, n_iterations, n_threads)
    n_parts = _n_parts(n_sequences * n_heads * -(-n_own // PANELS), n_keys)
    partial, whole = 4 * (2 + width + 3 * topk), 4 * (width + 3 * topk)  # of a cluster: float32, keys as int64
    attending = n_sequences * n_heads * n_own * (4 * depth + n_parts * partial + whole)
    return kept + max(grouping, attending) + library_bytes("attention.merge_partials")
