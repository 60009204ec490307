"""Co-clustered attention: queries and keys are both grouped, the strongest pairs stay exact. This library's own."""

from __future__ import annotations

import math

import numpy as np

from pyclattn import _threads
from pyclattn._dispatch import launch, launch_together
from pyclattn.arrays import PANEL, Float32, Float64, Given, Int64
from pyclattn.errors import ShapeError
from pyclattn.functional import _check, _ragged, exact
from pyclattn.functional._grouping import CLUSTER_CHUNK, Grouping, means
from pyclattn.functional._metric import Side, axes_between, group_sides
from pyclattn.functional._scratch import scratch
from pyclattn.functional.precision import require
from pyclattn.functional.sampled_error import ErrorCheck

LOG2E = math.log2(math.e)
KERNELS = {"float32": "tails.attend", "bfloat16": "tails.attend_bfloat16"}
# Shorter sequences are as fast exactly.
SHORTEST = 1024
# Query clusters of one task: a panel; fewer where a thread would have few tasks.
CHUNKS, ENOUGH_TASKS = (PANEL, 32, 16), 2.5
# Centroids of one task while a sample of keys is scored.
PANELS = 4 * PANEL
# Axes that rows are clustered along: with 12 sharp attention errs 5 to 30 % more, with 24 images' 4 % less.
CLUSTER_AXES = 16
# Keys that the threshold is found from, with every query cluster: of 512 x 110 pairs one in 40 are found to 3 %.
SAMPLED_KEYS = 512
# A cluster of so many queries sums up slopes of its own, over the keys whose error is less than the threshold's by at
# most so many powers of two. It costs D x E products a key: with 89 queries in the mean (21,317 tokens) a call took a
# fifth longer where clusters of 128 did so, for nothing; with 910 (131,072) a fifth of the exact keys is enough.
MANY, WITHIN = 256, np.float32(4)
# Added to a threshold, in powers of two: else rounding decided about the very key it was found at.
HAIR = np.float32(1e-4)
# A key's own logit counts as at most this; sums of millions that are FAR from 0 are still finite.
MOST, FAR = np.float32(1e38), np.float32(1e30)
# The least variance that has a logarithm.
TINY = np.finfo(np.float32).tiny
# Bytes of sorted rows and their kin that are worked on at a time; a single head may need more.
ROUND_BYTES = 96 << 20
# What a query costs in each head: its label and its place.
QUERY_BYTES = 12


def coclustered_attention(
    query: Given,
    key: Given,
    value: Given,
    *,
    n_query_clusters: int | None = None,
    n_key_clusters: int | None = None,
    n_exact: int = 128,
    rank: int = 32,
    key_bias: Given = None,
    key_padding_mask: Given = None,
    query_padding_mask: Given = None,
    scale: float | None = None,
    precision: str = "float32",
    offsets: Given = None,
    key_offsets: Given = None,
    return_error: bool = False,
    max_error: float | None = None,
    on_error: str = "exact",
    n_threads: int | None = None,
    out: Given = None,
) -> Float32 | tuple[Float32, Float64]:
    """Attention near the exact one for pretrained models: the keys that matter to a cluster of queries are attended to
    exactly; of every cluster of keys the rest stands in as one mean key and value, with a slope. No random numbers.

    Parameters
    ----------
    query : array (B, H, L, D), or (H, T, D) with ``offsets``
        float32; float16 and float64 are converted. Any strides with contiguous rows are read in place.
    key : array (B, H', S, D)
        H must be a multiple of H'.
    value : array (B, H', S, E)
    n_query_clusters, n_key_clusters : int, optional
        Clusters of each sequence and head: by default 1.5 sqrt(L) in whole panels of 48, and 0.75 sqrt(S), at least 16.
        Attention that is very sharp (keypoint matching) wants more query clusters, about 4 sqrt(L).
    n_exact : int
        Keys that a query attends to exactly, in the mean over the queries of a head (clusters whose error would be
        large take more). 64 to 256 gave 5 to 1.5 % error on images; with as many as half of the keys, or on sequences
        under 1,024 tokens, attention is exact.
    rank : int
        Axes along which the mean values have slopes. Rows are clustered along as many, at most 16.
    key_bias : array (B, S), optional
        Added to the logits of each key; -inf = padding. Not with ``offsets``.
    key_padding_mask, query_padding_mask : bool array (B, S), (B, L), optional
        True = padding. A padded key is never read; a padded query's output is 0.
    scale : float, optional
        Factor on the logits, 1/sqrt(D) by default.
    precision : str
        Of the products with the keys that are attended to exactly: "float32", or "bfloat16" on a processor with
        AVX512-BF16 (docs/bfloat16.md). Which keys those are, and what stands for the others, does not depend on it.
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
    BackendError
        If the processor, or the instruction set that was chosen, has no products of bfloat16.
    AccuracyError
        With ``on_error="raise"``, naming heads and estimates.

    Notes
    -----
    docs/coclustered.md tells the method, its limits and its evidence. How large the error is depends on the data: rows
    without any structure cannot be clustered.

    How many keys of a head are exact depends on the other heads of its sequence: one threshold is taken for all that
    are worked on together (of grouped heads, those without a key head in common; of long sequences, as many as 96 MB
    of keys and values allow). Other sequences of the batch change no bit. A row that is not finite may spoil every
    row of its head, and changes which keys the others take.

    Examples
    --------
    >>> import numpy as np, pyclattn
    >>> rng = np.random.default_rng(0)
    >>> centers = 3 * rng.standard_normal((20, 16))
    >>> query, key = (centers[rng.integers(0, 20, (1, 1, 3000))] + rng.standard_normal((1, 1, 3000, 16)) for _ in "qk")
    >>> value = rng.standard_normal((1, 1, 3000, 16))
    >>> near = pyclattn.coclustered_attention(query, key, value, n_exact=64)
    >>> exact = pyclattn.scaled_dot_product_attention(query, key, value)
    >>> bool(np.linalg.norm(near - exact) < 0.05 * np.linalg.norm(exact))
    True
    """
    require(precision)
    q, k, v = _check.attention_inputs(query, key, value, offsets is not None)
    counts = _count("n_query_clusters", n_query_clusters), _count("n_key_clusters", n_key_clusters)
    n_exact, rank = _check.whole("n_exact", n_exact, 0), _check.whole("rank", rank, 1)
    factor, threads = _check.factor(scale, q.shape[3]), _threads.resolve(n_threads)
    bias, key_padding_mask = _bias(key_bias, key_padding_mask, k, offsets is not None)
    queries, keys = _ragged.locate(q, k, offsets, key_offsets, query_padding_mask, key_padding_mask)
    check = ErrorCheck.of(return_error, max_error, on_error, len(queries.spans), q.shape[1])
    is_whole = int(queries.lengths.sum()) == q.shape[0] * q.shape[2] and keys.lengths.all()
    result = _ragged.output(q, k, v, out, offsets is not None, fill=not is_whole)
    if result.size:
        rank = min(rank, q.shape[3])
        _attend(q, queries, k, v, keys, bias, counts, n_exact, rank, factor, result, check, precision, threads)
    own = result if offsets is None else result[0]
    return own if check is None else check.answer(own, return_error)


def _count(name: str, given: Given) -> int | None:
    return None if given is None else _check.whole(name, given, 1)


def bias_of(given: Given, key_shape: tuple[int, ...], is_packed: bool) -> Float32:
    """``key_bias`` as float32 (B, S)."""
    if is_packed:
        raise ShapeError("key_bias was given with offsets: packed sequences take none")
    bias = _check.array_of("key_bias", given)
    bias = _check.rows("key_bias", _check.logits(bias) if _check.is_float(bias) else bias, 2)
    if bias.shape != key_shape[::2]:
        raise ShapeError(f"key_bias must have shape (B, S) = {key_shape[::2]}, got {bias.shape}")
    return bias


def _bias(given: Given, key_padding_mask: Given, k: Float32, is_packed: bool) -> tuple[Float32 | None, Given]:
    """The keys' own logits, none far from 0 but NaN, and the padding that -inf among them means.

    Where all are far from 0 the largest becomes 0, which changes no softmax. Keys far below it have no share in one.
    """
    if given is None:
        return None, key_padding_mask
    bias = bias_of(given, k.shape, is_packed)
    absent = np.isneginf(bias)
    if key_padding_mask is not None:
        absent |= _check.bool_mask("key_padding_mask", key_padding_mask, bias.shape)
    bias = np.clip(bias, -MOST, MOST)
    largest = bias.max(axis=1, keepdims=True, where=~absent, initial=-MOST)
    bias = np.where(np.abs(largest) > FAR, bias - largest, bias)
    absent |= bias < -FAR
    return np.where(absent, np.float32(0), bias), absent


def _attend(
    q: Float32, queries: _ragged.Spans, k: Float32, v: Float32, keys: _ragged.Spans, bias: Float32 | None,
    counts: tuple[int | None, int | None], n_exact: int, rank: int, factor: float, out: Float32,
    check: ErrorCheck | None, precision: str, n_threads: int,
) -> None:  # fmt: skip
    """Short sequences exactly, the others in rounds of sequences and heads."""
    lengths, key_lengths = queries.lengths, keys.lengths
    is_long = (np.minimum(lengths, key_lengths) >= SHORTEST) & (2 * n_exact < key_lengths)
    if bias is not None:  # NaN hides among clusters; exactly, it reaches whoever attends to it
        is_long &= ~np.isnan(bias).any(axis=1)
    short = np.flatnonzero(~is_long & (lengths > 0) & (key_lengths > 0))
    if len(short):
        exact.attend_some(short, q, queries, k, v, keys, bias, factor, out, n_threads, precision)
    group = q.shape[1] // max(k.shape[1], 1)
    row_bytes = _row_bytes(q.shape[3], v.shape[3])
    steps, rounds = _rounds(np.flatnonzero(is_long), lengths, key_lengths, row_bytes, k.shape[1])
    for step, members in zip(steps, rounds):
        tokens = _ragged.Spans(queries.spans[members], queries.index).indexed()
        key_tokens = _ragged.Spans(keys.spans[members], keys.index).indexed()
        clusters = _numbers(tokens.lengths, key_tokens.lengths, counts)
        for first in range(0, k.shape[1], step):
            for member in range(group):  # heads that share keys have clusters of their own all the same
                heads = slice(first * group + member, min(first + step, k.shape[1]) * group, group)
                own = slice(first, first + step)
                risks = None if check is None else np.empty((*out[:, heads].shape[:3], 2), np.float32)
                grouping = _round(
                    q[:, heads], tokens, k[:, own], v[:, own], key_tokens, bias, clusters, n_exact, rank, factor,
                    out[:, heads], risks, precision, n_threads,
                )  # fmt: skip
                if check is not None:
                    check.add(
                        members, heads, q[:, heads], tokens, k[:, own], v[:, own], key_tokens, bias, grouping, factor,
                        out[:, heads], n_threads, risks,
                    )  # fmt: skip
                del grouping, risks  # before there are next ones


def _rounds(
    sequences: Int64, lengths: Int64, key_lengths: Int64, row_bytes: int, n_kv_heads: int
) -> tuple[list[int], list[Int64]]:
    """Heads of keys at a time, and sequences, of each round.

    How many heads share a threshold depends on the sequence alone, so that it is the same in any company.
    """
    costs = row_bytes * key_lengths[sequences] + QUERY_BYTES * lengths[sequences]
    fitting = np.clip(ROUND_BYTES // np.maximum(costs, 1), 1, max(n_kv_heads, 1))
    heads = -(-n_kv_heads // -(-n_kv_heads // fitting))  # in shares as even as can be
    steps, rounds = [], []
    for step in np.unique(heads).tolist():
        alike = sequences[heads == step]
        numbers = np.cumsum(costs[heads == step] * step) // ROUND_BYTES
        for number in np.unique(numbers):
            steps.append(step)
            rounds.append(alike[numbers == number])
    return steps, rounds


def working_bytes(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *, n_threads: int,
    n_query_clusters: int | None = None, n_key_clusters: int | None = None, n_exact: int = 128, rank: int = 32,
    **_: Given,
) -> int:  # fmt: skip
    """What a call holds at most beside inputs and output, compiler included, for arrays of these shapes.

    The rest is as of the function, a padded batch without padding.
    """
    (batch, n_heads, length, depth), (n_kv_heads, n_keys), width = query, key[1:3], value[3]
    if 0 in (batch, n_kv_heads) or min(length, n_keys) < SHORTEST or 2 * n_exact >= n_keys:
        return 1 << 20
    rank = min(rank, depth)
    lengths, key_lengths = np.full(batch, length), np.full(batch, n_keys)
    steps, rounds = _rounds(np.arange(batch), lengths, key_lengths, _row_bytes(depth, width), n_kv_heads)
    own, others = (int(n[0]) for n in _numbers(lengths, key_lengths, (n_query_clusters, n_key_clusters)))
    n_sequences = max(map(len, rounds))
    rows, besides = _array_bytes(length, n_keys, depth, width, own, others, rank)
    rows, besides = rows * steps[0] * n_sequences, besides * steps[0] * n_sequences
    besides += 8 * n_sequences * (length + n_keys) + (1 << 15)  # tokens, and what is Python's
    besides += n_threads * _thread_bytes(length, n_keys, depth, width, own, others, n_exact, rank)
    # What one pass gives back does not always fit the next: grouped heads of 4 and 8 took up to as much again.
    return rows + besides * (2 if n_threads and n_heads > n_kv_heads else 1)


def _array_bytes(length: int, n_keys: int, depth: int, width: int, own: int, others: int, rank: int) -> tuple[int, int]:
    """A head's sorted rows with their distances, and its other arrays while the limits are found."""
    row = depth + 1 + width
    rows = 4 * n_keys * (row + 2)
    grouped = 12 * (length + n_keys) + 8 * (own + others) + 4 * depth * (2 * CLUSTER_AXES + rank)
    clusters = 4 * (others * rank * (width + 1) + own * (depth + 7))
    passing = 4 * max(n_keys + SAMPLED_KEYS * own, others * row)  # scores and the sample, or before them the mean rows
    roots = 8 * 10 * depth * depth  # of covariances, before there are rows
    return rows, max(roots - rows, grouped + clusters + passing)


def _thread_bytes(
    length: int, n_keys: int, depth: int, width: int, own: int, others: int, n_exact: int, rank: int
) -> int:
    """The buffers of `tails.attend`, where products of bfloat16 take a little more, and the pages its lists touch."""
    row = depth + 1 + width
    of_lane = others * (row + 3) + rank * (width + 2) + 10 * row + 320
    block = 128 * 2 * row + (depth + PANEL) * (width + 128) + depth * (width + 4)
    # Few lanes take more than this, and no more than this share of the clusters can be so large that they list keys
    # of the tail: of rows without structure nearly all.
    listed = min(n_keys, 4 * n_exact + 1024) + int(n_keys * min(1, length / (MANY * own)))
    return 4 * (PANEL * (of_lane + 2 * listed) + block)


def _row_bytes(depth: int, width: int) -> int:
    """What a key costs in each head: its sorted row, its label and place, its distances and score."""
    return 4 * (depth + 1 + width + 6)


def query_clusters(length: int, factor: float = 1.5) -> int:
    """Whole panels that hold ``factor`` times the root of the number of queries."""
    return PANEL * math.ceil(factor * math.sqrt(length) / PANEL)


def _numbers(lengths: Int64, key_lengths: Int64, counts: tuple[int | None, int | None]) -> tuple[Int64, Int64]:
    """Query and key clusters of each sequence."""
    n_queries, n_keys = counts
    own = np.array([query_clusters(n) for n in lengths.tolist()], np.int64)
    if n_queries is not None:
        own = np.full(len(lengths), n_queries)
    others = np.maximum(16, np.round(0.75 * np.sqrt(key_lengths)).astype(np.int64))
    if n_keys is not None:
        others = np.full(len(lengths), n_keys)
    return np.minimum(own, lengths), np.minimum(others, key_lengths)


def _round(
    q: Float32, tokens: _ragged.Tokens, k: Float32, v: Float32, key_tokens: _ragged.Tokens, bias: Float32 | None,
    clusters: tuple[Int64, Int64], n_exact: int, rank: int, factor: float, out: Float32, risks: Float32 | None,
    precision: str, n_threads: int,
) -> Grouping:  # fmt: skip
    """Group both sides, sort the keys, find what is taken exactly, attend. As many heads of keys as of queries.

    Returns the clusters of the queries.
    """
    axes, key_axes, slope_axes = axes_between(q, tokens, k, key_tokens, min(rank, CLUSTER_AXES), n_threads, rank)
    sides = Side(q, tokens, axes, clusters[0]), Side(k, key_tokens, key_axes, clusters[1])
    grouping, key_grouping = group_sides(sides, n_threads)
    centroids, spreads = _centroids(q, tokens, grouping, factor, n_threads)
    with scratch((k.shape[1], len(key_tokens.index), k.shape[3] + 1 + v.shape[3])) as rows:
        radii, slopes, squares = _sorted(k, v, bias, key_tokens, key_grouping, slope_axes, rows, n_threads)
        key_scores, limits = _limits(centroids, spreads, grouping, rows, radii, key_tokens, n_exact, n_threads)
        chunk, tasks = _cut(grouping, len(rows), n_threads)
        launch(
            KERNELS[precision], n_threads, q, tokens.spans, grouping.order, grouping.member_offsets, centroids,
            grouping.cluster_offsets, limits, rows, key_scores, key_grouping.member_offsets,
            key_grouping.cluster_offsets, slopes, slope_axes, squares, factor * LOG2E, tasks, chunk, out, risks,
        )  # fmt: skip
    return grouping


def _centroids(
    q: Float32, tokens: _ragged.Tokens, grouping: Grouping, factor: float, n_threads: int
) -> tuple[Float32, Float32]:
    """Centroids (H, clusters, D + 1) as the kernels want them, and log2 of the members' root mean square distance."""
    shape = (q.shape[1], len(grouping.sequences), q.shape[3])
    plain, squares = np.zeros(shape, np.float32), np.zeros(shape[:2], np.float32)
    means(q, tokens, grouping, plain, n_threads, squares)
    centroids = np.ones((*shape[:2], shape[2] + 1), np.float32)
    np.multiply(plain, np.float32(factor * LOG2E), out=centroids[..., :-1])
    return centroids, 0.5 * np.log2(np.maximum(squares, TINY))


def _sorted(
    k: Float32,
    v: Float32,
    bias: Float32 | None,
    tokens: _ragged.Tokens,
    grouping: Grouping,
    axes: Float32,
    rows: Float32,
    n_threads: int,
) -> tuple[Float32, Float32, Float32]:
    """Fill ``rows`` (H, T, D + 1 + E) cluster by cluster; each key's and value's distance to their means (H, T, 2), and
    the clusters' slopes along axes, with the mean squares of the keys there."""
    n_heads, depth, width = k.shape[1], k.shape[3], v.shape[3]
    n_clusters, n_tokens = len(grouping.sequences), len(tokens.index)
    centers = np.zeros((n_heads, n_clusters, depth + 1 + width), np.float32)
    tasks = _ragged.per_block(n_clusters, n_heads, CLUSTER_CHUNK)
    spread_bias = None if bias is None else np.broadcast_to(bias[:, None], (k.shape[0], n_heads, k.shape[2]))
    launch(
        "coclusters.sort_rows", n_threads, k, v, spread_bias, tokens.spans[grouping.sequences, 0], grouping.order,
        grouping.member_offsets, tasks, CLUSTER_CHUNK, rows, centers,
    )  # fmt: skip
    rank = axes.shape[2]
    slopes = np.empty((n_heads, n_clusters, rank * width), np.float32)
    squares = np.empty((n_heads, n_clusters, rank), np.float32)
    radii = np.empty((n_heads, n_tokens, 2), np.float32)
    launch(
        "coclusters.moments", n_threads, rows, grouping.member_offsets, centers, grouping.sequences, axes, tasks,
        CLUSTER_CHUNK, slopes, squares, radii,
    )  # fmt: skip
    spreads = np.empty((len(tokens.spans), n_heads, rank), np.float32)
    for s, (_, start, stop) in enumerate(tokens.spans.tolist()):
        own = slice(int(grouping.cluster_offsets[s]), int(grouping.cluster_offsets[s + 1]))
        spreads[s] = squares[:, own].sum(axis=1) / (stop - start)
    return radii, slopes, spreads


def _limits(
    centroids: Float32, spreads: Float32, grouping: Grouping, rows: Float32, radii: Float32,
    key_tokens: _ragged.Tokens, n_exact: int, n_threads: int,
) -> tuple[Float32, Float32]:  # fmt: skip
    """Key scores (H, T), log2 of the error each makes in the tail, and for each centroid (2, H, clusters) the limits
    above which its logit + key score makes a key exact, and gives a key of the tail a slope of its own."""
    n_heads, n_clusters, _ = centroids.shape
    counts = np.diff(grouping.cluster_offsets)
    logs, limits = np.empty((n_heads, n_clusters), np.float32), np.empty((n_heads, n_clusters), np.float32)
    sample = np.empty((n_heads, n_clusters, SAMPLED_KEYS), np.float32)
    tasks = _ragged.per_chunk(counts, n_heads, PANELS)
    tasks[:, 2] += grouping.cluster_offsets[tasks[:, 0]]
    key_scores = np.empty(rows.shape[:2], np.float32)
    launch_together(
        n_threads,
        ("coclusters.weigh", centroids, grouping.cluster_offsets, rows, key_tokens.spans, tasks, PANELS, sample, logs),
        ("coclusters.score_keys", radii, key_tokens.spans, _ragged.per_head(len(counts), n_heads), key_scores),
    )
    share = (n_exact / np.maximum(key_tokens.lengths, 1)).astype(np.float32)
    launch(
        "coclusters.thresholds", n_threads, sample, logs, spreads, key_scores, grouping.cluster_offsets,
        grouping.member_offsets, key_tokens.spans, share, np.arange(len(counts))[:, None].copy(), limits,
    )  # fmt: skip
    limits += HAIR
    is_large = np.diff(grouping.member_offsets, axis=1) >= MANY
    return key_scores, np.stack([limits, np.where(is_large, limits - WITHIN, limits)])


def _cut(grouping: Grouping, n_heads: int, n_threads: int) -> tuple[int, Int64]:
    """Query clusters a task, and the tasks. Each cluster's sums are its own, however they are cut."""
    counts = np.diff(grouping.cluster_offsets)
    chunk = CHUNKS[-1]
    for chunk in CHUNKS:
        if int((-(-counts // chunk)).sum()) * n_heads >= ENOUGH_TASKS * n_threads:
            break
    tasks = _ragged.per_chunk(counts, n_heads, chunk)
    sizes = np.minimum(chunk, counts[tasks[:, 0]] - tasks[:, 2])
    tasks[:, 2] += grouping.cluster_offsets[tasks[:, 0]]
    return chunk, tasks[np.argsort(-sizes, kind="stable")]  # small ones last: threads end together
