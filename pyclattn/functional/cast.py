"""CAST: attention within learned clusters and summaries of all clusters (van Engelenhoven et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from pyclattn import _threads
from pyclattn._dispatch import launch, launch_together
from pyclattn.arrays import Bool, Float32, Given, Int32, Int64
from pyclattn.errors import ArgumentError, ShapeError
from pyclattn.functional import _check, _ragged
from pyclattn.functional._scratch import scratch

CLUSTERINGS = ("topk", "sa_topk")
ATTENTIONS = ("softmax", "laplace")
# Tokens of one task: whole panels of every instruction set (48, 24 and 8 lanes).
CHUNK = 192
# Members of one task: four 48-lane panels share each gathered block of keys.
MEMBERS = 192
# Clusters whose tokens one task selects.
CLUSTER_CHUNK = 4
# Affinities held at a time: 8 MB. SA Top-K holds at least those of one sequence.
CELLS = 1 << 21
# Logits of queries kept from the affinities for the mixing: 32 MB. More are computed again.
LOGITS = 1 << 23
# Tokens of one round: a large batch goes through in rounds, so that working memory does not grow with it.
ROUND = 65_536
# Multiply-adds below which a second thread costs more than it saves.
SMALL = 1 << 17


@dataclass(frozen=True)
class _Recipe:
    """How tokens are to be clustered and weighed; arguments already checked."""

    surrogates: Float32  # (H, C, D)
    cluster_size: int
    clustering: str
    is_laplace: bool
    factor: float


@dataclass(frozen=True)
class _Members:
    """Who is where. Cluster g = s C + c holds the members ``offsets[g]:offsets[g + 1]``."""

    tokens: Int64  # (n_members,) ascending within a cluster
    offsets: Int64  # (clusters + 1,)


def cast_attention(
    query: Given,
    key: Given,
    value: Given,
    surrogate_tokens: Given,
    gate: Given,
    *,
    cluster_size: int,
    clustering: str = "topk",
    attention: str = "softmax",
    gate_temperature: bool = True,
    key_padding_mask: Given = None,
    offsets: Given = None,
    scale: float | None = None,
    n_threads: int | None = None,
    out: Given = None,
) -> Float32:
    """Self-attention within learned clusters, joined by summaries of all clusters: O(N) for a given number of clusters.

    Parameters
    ----------
    query, key : array (B, H, N, D), or (H, T, D) with ``offsets``
        float32; float16 and float64 are converted. Any strides with contiguous rows are read in place.
    value : array (B, H, N, E), or (H, T, E)
    surrogate_tokens : array (C, H, D)
        One learned token for each cluster and head.
    gate : array (B, N), or (T,)
        phi: sigmoid(phi) of a token's affinity is its query's, the rest its key's.
    cluster_size : int
        Most tokens that a cluster holds.
    clustering : {"topk", "sa_topk"}
        "topk": each cluster takes the ``cluster_size`` tokens nearest to it, ties to the first; a token may be in
        none, one or several. "sa_topk": tokens choose in descending order of their best affinity, each the nearest
        cluster that has room, so that each is in exactly one. One clustering for all heads.
    attention : {"softmax", "laplace"}
        What makes weights of logits, throughout. "laplace", 0.5 (1 + erf((x - mu) / (sigma sqrt 2))) with mu =
        sqrt(1/2) and sigma = sqrt(1/(4 pi)), weighs each logit by itself: weights need not sum to 1.
    gate_temperature : bool
        Multiply the logits that weigh members in a summary by 1 + log(1 + exp(-phi)), and those that mix clusters by
        1 + log(1 + exp(phi)).
    key_padding_mask : bool array (B, N), optional
        True = padding: such a token is in no cluster and its output is 0.
    offsets : int array (n_sequences + 1,), optional
        A ragged batch packed along the token axis.
    scale : float, optional
        Factor on all logits, 1/sqrt(D) by default (the paper's temperatures are its inverse).
    n_threads : int, optional
        Default: PYCLATTN_NUM_THREADS, else the CPUs this process may use.
    out : float32 array (B, H, N, E), or (H, T, E), optional
        Where the result goes; any strides with contiguous rows. Must not overlap the inputs.

    Returns
    -------
    float32 array (B, H, N, E), or (H, T, E)
        In the memory order of the query. The same bits for any number of threads.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Before any work, naming the argument, what was given and what was expected; also where "sa_topk" has no room
        for all tokens.

    Notes
    -----
    van Engelenhoven, Strisciuglio, Talavera 2024 (arXiv 2402.04239), known here from its abstract and reviews.
    Reconstructed, and so parameters: how the gate enters (``gate``, ``gate_temperature``), one ``scale`` for all logits
    and with "laplace" too, "laplace" without a normalisation, the order in which tokens choose with "sa_topk". A
    cluster without members has no summary and takes no part in the mixing. docs/cast.md has the formulas.

    Examples
    --------
    >>> import numpy as np, pyclattn
    >>> rng = np.random.default_rng(0)
    >>> query, key, value = (rng.standard_normal((1, 2, 300, 16), dtype=np.float32) for _ in range(3))
    >>> surrogates, gate = rng.standard_normal((15, 2, 16)), rng.standard_normal((1, 300))
    >>> pyclattn.cast_attention(query, key, value, surrogates, gate, cluster_size=20).shape
    (1, 2, 300, 16)
    """
    q, k, v = _check.attention_inputs(query, key, value, offsets is not None)
    if not q.shape[:3] == k.shape[:3]:
        raise ShapeError(f"query and key must be of the same heads and tokens, got {q.shape} and {k.shape}")
    recipe, phi = _recipe(q, surrogate_tokens, gate, cluster_size, clustering, attention, scale, offsets)
    warm = _check.flag("gate_temperature", gate_temperature)
    threads = _threads.resolve(n_threads)
    spans = _located(k, offsets, key_padding_mask, recipe)
    lengths = spans.lengths
    n_tokens = q.shape[0] * q.shape[2]
    result = _ragged.output(q, k, v, out, offsets is not None, fill=int(lengths.sum()) < n_tokens)
    if result.size:
        threads = threads if n_tokens * recipe.surrogates.size > SMALL else 1
        gains = np.empty((2, *phi.shape), np.float32) if warm else None
        for tokens in _rounds(spans):
            with _kept(q.shape[1], len(tokens.index) * recipe.surrogates.shape[1]) as logits:
                members = _cluster(q, k, tokens, phi, recipe, threads, logits, gains)
                with scratch((q.shape[1], len(members.tokens), v.shape[3])) as within:
                    _attend(q, k, v, tokens, members, gains, recipe, logits, within, result, threads)
    return result if offsets is None else result[0]


def memberships(
    query: Given,
    key: Given,
    surrogate_tokens: Given,
    gate: Given,
    *,
    cluster_size: int,
    clustering: str = "topk",
    attention: str = "softmax",
    key_padding_mask: Given = None,
    offsets: Given = None,
    scale: float | None = None,
    n_threads: int | None = None,
) -> Bool:
    """Which tokens `cast_attention` puts into which cluster.

    Parameters
    ----------
    query, key, surrogate_tokens, gate, cluster_size, clustering, attention, key_padding_mask, offsets, scale, n_threads
        As of `cast_attention`.

    Returns
    -------
    bool array (B, N, C), or (T, C)

    Examples
    --------
    >>> import numpy as np
    >>> from pyclattn.functional.cast import memberships
    >>> rng = np.random.default_rng(0)
    >>> x, surrogates = rng.standard_normal((1, 2, 300, 16)), rng.standard_normal((15, 2, 16))
    >>> found = memberships(x, x, surrogates, np.zeros((1, 300)), cluster_size=20, clustering="sa_topk")
    >>> found.shape, found.sum(axis=1).max(), found.sum(axis=2).max()
    ((1, 300, 15), np.int64(20), np.int64(1))
    """
    q, k, _ = _check.attention_inputs(query, key, key, offsets is not None)
    if q.shape != k.shape:
        raise ShapeError(f"query and key must have the same shape, got {q.shape} and {k.shape}")
    recipe, phi = _recipe(q, surrogate_tokens, gate, cluster_size, clustering, attention, scale, offsets)
    threads = _threads.resolve(n_threads)
    spans = _located(k, offsets, key_padding_mask, recipe)
    n_clusters = recipe.surrogates.shape[1]
    found = np.zeros((q.shape[0], q.shape[2], n_clusters), bool)
    for tokens in _rounds(spans):
        members = _cluster(q, k, tokens, phi, recipe, threads)
        clusters = np.repeat(np.arange(len(members.offsets) - 1), np.diff(members.offsets))
        found[tokens.spans[clusters // n_clusters, 0], tokens.index[members.tokens], clusters % n_clusters] = True
    return found if offsets is None else found[0]


def working_bytes(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *, n_threads: int, n_clusters: int,
    cluster_size: int, clustering: str = "topk", **_: Given,
) -> int:  # fmt: skip
    """What a call holds at most beside inputs and output, for arrays of these shapes, a batch without padding."""
    (batch, n_heads, length, depth), width = query, value[3]
    n_sequences = min(batch, -(-ROUND // max(1, length)))
    n_tokens, size = n_sequences * length, min(cluster_size, length)
    n_members = n_tokens if clustering == "sa_topk" else n_sequences * n_clusters * size
    cells = min(CELLS, n_tokens * n_clusters)
    logits = n_heads * cells if _is_kept(n_heads, n_tokens * n_clusters) else 0
    if clustering == "sa_topk":
        cells = max(cells, length * n_clusters)
    else:
        cells += 5 * n_members  # scores, tokens, and which of them are there
    kept = 4 * n_heads * width * (n_members + n_sequences * n_clusters) + 8 * (6 * n_members + 4 * n_tokens)
    block = 4 * 128 * (depth + width) + 4 * 48 * (2 * n_clusters + 5 * (depth + width) + 256)
    return kept + 4 * (cells + logits) + 6 * 8 * batch * length + n_threads * block


def _recipe(
    q: Float32, surrogate_tokens: Given, gate: Given, cluster_size: Given, clustering: Given, attention: Given,
    scale: Given, offsets: Given,
) -> tuple[_Recipe, Float32]:  # fmt: skip
    """What concerns the clusters, checked; and the gate (B, N)."""
    surrogates = _check.rows("surrogate_tokens", surrogate_tokens, 3)
    _, n_heads, length, depth = q.shape
    if len(surrogates) == 0 or surrogates.shape[1:] != (n_heads, depth):
        raise ShapeError(
            f"surrogate_tokens must have shape (clusters, {n_heads}, {depth}) with at least 1 cluster, "
            f"got {surrogates.shape}"
        )
    phi = _check.floats("gate", gate, 2 if offsets is None else 1)
    wanted = (q.shape[0], length) if offsets is None else (length,)
    if phi.shape != wanted:
        raise ShapeError(f"gate must have shape {wanted}, one number a token, got {phi.shape}")
    recipe = _Recipe(
        np.ascontiguousarray(surrogates.swapaxes(0, 1)), _check.whole("cluster_size", cluster_size, 1),
        _check.one_of("clustering", clustering, CLUSTERINGS),
        _check.one_of("attention", attention, ATTENTIONS) == "laplace", _check.factor(scale, depth),
    )  # fmt: skip
    return recipe, phi if offsets is None else phi[None]


def _located(k: Float32, offsets: Given, key_padding_mask: Given, recipe: _Recipe) -> _ragged.Spans:
    """The sequences, each of which has a place for all of its tokens where each must have one."""
    _, spans = _ragged.locate(k, k, offsets, None, None, key_padding_mask)
    longest, room = int(spans.lengths.max(initial=0)), recipe.cluster_size * recipe.surrogates.shape[1]
    if recipe.clustering == "sa_topk" and room < longest:
        raise ArgumentError(
            f"cluster_size must be at least {-(-longest // recipe.surrogates.shape[1])} for sa_topk to place "
            f"{longest} tokens in {recipe.surrogates.shape[1]} clusters, got {recipe.cluster_size}"
        )
    return spans


def _rounds(spans: _ragged.Spans) -> Iterator[_ragged.Tokens]:
    """Sequences that have tokens, some at a time, their tokens numbered from 0."""
    there = np.flatnonzero(spans.lengths > 0)
    lengths = spans.lengths[there]
    rounds = np.cumsum(lengths) // ROUND
    for number in dict.fromkeys(rounds.tolist()):
        own = spans.spans[there[rounds == number]]
        if spans.index is None:
            yield _ragged.Spans(own).indexed()
            continue
        index = np.concatenate([spans.index[start:stop] for _, start, stop in own.tolist()])
        ends = _ends(own[:, 2] - own[:, 1])
        yield _ragged.Tokens(np.stack([own[:, 0], ends[:-1], ends[1:]], axis=1), index)


def _cluster(
    q: Float32, k: Float32, tokens: _ragged.Tokens, phi: Float32, recipe: _Recipe, n_threads: int,
    logits: Float32 | None = None, gains: Float32 | None = None,
) -> _Members:  # fmt: skip
    cluster = _topk if recipe.clustering == "topk" else _sa_topk
    return cluster(q, k, tokens, phi, recipe, n_threads, logits, gains)


@contextmanager
def _kept(n_heads: int, cells: int) -> Iterator[Float32 | None]:
    """Room for the logits of queries with ``cells`` affinities, if they are few."""
    if not _is_kept(n_heads, cells):
        yield None
        return
    with scratch((n_heads, cells)) as room:
        yield room


def _is_kept(n_heads: int, cells: int) -> bool:
    """Where affinities are of one window, so that both kernels cut tokens alike."""
    return cells <= CELLS and n_heads * cells <= LOGITS


def _topk(
    q: Float32, k: Float32, tokens: _ragged.Tokens, phi: Float32, recipe: _Recipe, n_threads: int,
    logits: Float32 | None, gains: Float32 | None,
) -> _Members:  # fmt: skip
    """Each cluster's nearest tokens, found over a window of tokens after the other."""
    n_clusters, n_tokens = recipe.surrogates.shape[1], len(tokens.index)
    n_in_all, topk = len(tokens.spans) * n_clusters, min(recipe.cluster_size, int(tokens.lengths.max()))
    scores, best = np.empty((n_in_all, topk), np.float32), np.empty((n_in_all, topk), np.int64)
    counts = np.zeros(n_in_all, np.int64)
    window = min(n_tokens, max(CHUNK, CELLS // n_clusters))
    with scratch((n_clusters, window)) as cells:
        for origin in range(0, n_tokens, window):
            affinity = cells[:, : n_tokens - origin].T
            _affinities(q, k, tokens, phi, recipe, origin, affinity, n_threads, logits, gains)
            is_seen = (tokens.spans[:, 1] < origin + len(affinity)) & (tokens.spans[:, 2] > origin)
            tasks = np.ascontiguousarray(_ragged.per_chunk(is_seen * n_clusters, 1, CLUSTER_CHUNK)[:, ::2])
            launch(
                "memberships.select", n_threads, affinity, tokens.spans, origin, tasks, CLUSTER_CHUNK, scores, best,
                counts,
            )  # fmt: skip
    is_full = counts.min() == topk
    return _Members(best.ravel() if is_full else best[np.arange(topk) < counts[:, None]], _ends(counts))


def _sa_topk(
    q: Float32, k: Float32, tokens: _ragged.Tokens, phi: Float32, recipe: _Recipe, n_threads: int,
    logits: Float32 | None, gains: Float32 | None,
) -> _Members:  # fmt: skip
    """Each token in one cluster, by sequences: a token may need its affinity to any cluster."""
    n_clusters, n_tokens = recipe.surrogates.shape[1], len(tokens.index)
    labels, surest = np.empty(n_tokens, np.int32), np.empty(n_tokens, np.float32)
    members, counts = np.empty(n_tokens, np.int64), np.empty(len(tokens.spans) * n_clusters, np.int64)
    windows = np.cumsum(tokens.lengths) // max(1, CELLS // n_clusters)
    for number in dict.fromkeys(windows.tolist()):
        own = np.flatnonzero(windows == number)
        origin, stop = int(tokens.spans[own[0], 1]), int(tokens.spans[own[-1], 2])
        with scratch((stop - origin, n_clusters)) as affinity:
            _affinities(q, k, tokens, phi, recipe, origin, affinity, n_threads, logits, gains, surest, labels)
            launch(
                "memberships.assign", n_threads, affinity, tokens.spans, origin, recipe.cluster_size, surest,
                own[:, None], labels, members, counts,
            )  # fmt: skip
    return _Members(members, _ends(counts))


def _affinities(
    q: Float32, k: Float32, tokens: _ragged.Tokens, phi: Float32, recipe: _Recipe, origin: int, out: Float32,
    n_threads: int, logits: Float32 | None, gains: Float32 | None, surest: Float32 | None = None,
    labels: Int32 | None = None,
) -> None:  # fmt: skip
    """Of the tokens from ``origin`` on, into ``out`` (n, C); where asked for also the nearest cluster of each token."""
    ends = np.minimum(np.maximum(tokens.spans[:, 1:], origin), origin + len(out))
    tasks = _ragged.per_chunk(ends[:, 1] - ends[:, 0], 1, CHUNK)[:, ::2]
    tasks = np.stack([tasks[:, 0], tasks[:, 1] + ends[tasks[:, 0], 0]], axis=1)
    launch(
        "memberships.affinities", n_threads, q, k, recipe.surrogates, tokens.spans, tokens.index, phi, recipe.factor,
        recipe.is_laplace, tasks, CHUNK, origin, out, surest, labels, logits, gains,
    )  # fmt: skip


def _attend(
    q: Float32, k: Float32, v: Float32, tokens: _ragged.Tokens, members: _Members,
    gains: Float32 | None, recipe: _Recipe, logits: Float32 | None, within: Float32, out: Float32, n_threads: int,
) -> None:  # fmt: skip
    """Attention within the clusters, into ``within`` (H, members, E), their summaries, and the mixing of both."""
    (_, n_heads, _, _), width = q.shape, v.shape[3]
    n_clusters = recipe.surrogates.shape[1]
    summaries = np.zeros((n_heads, len(members.offsets) - 1, width), np.float32)
    rows, batches = tokens.index.take(members.tokens), np.repeat(tokens.spans[:, 0], n_clusters)
    of_query, of_key = (None, None) if gains is None else gains
    attend = (
        "cast.attend_clusters", q, k, v, recipe.surrogates, batches, rows, members.offsets, of_key, recipe.factor,
        recipe.is_laplace, _ragged.per_chunk(np.diff(members.offsets), n_heads, MEMBERS), MEMBERS, within, summaries,
    )  # fmt: skip
    inverted = (*np.empty((2, len(rows)), np.int64), np.empty(len(tokens.index) + 1, np.int64))
    launch_together(n_threads, ("memberships.invert", members.tokens, members.offsets, *inverted), attend)
    tasks = _ragged.per_chunk(tokens.lengths, n_heads, CHUNK)
    tasks = tasks[np.lexsort((tasks[:, 2], tasks[:, 0]))]  # a token's heads one after the other: they share pages
    launch(
        "cast.mix", n_threads, q, recipe.surrogates, tokens.spans, tokens.index, of_query, recipe.factor,
        recipe.is_laplace, members.offsets, *inverted, within, summaries, logits, tasks, CHUNK, out,
    )  # fmt: skip


def _ends(counts: Int64) -> Int64:
    """0 and the running sums."""
    ends = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=ends[1:])
    return ends
