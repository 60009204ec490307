"""Kernels of CAST in NumPy: affinities, the two clusterings, attention within clusters, mixing of summaries.

Clusters are numbered through all sequences: cluster c of sequence s is ``s * n_clusters + c``, the same in all heads.
Members are kept as `arrays.py` keeps tokens: those of cluster g are ``member_offsets[g]:member_offsets[g + 1]``.
"""

from collections.abc import Iterator
from math import erfc

import numpy as np

from pyclattn.arrays import Float32, Float64, Int32, Int64
from pyclattn.reference._tasks import drawn, rows_of
from pyclattn.reference.attention import LOG2E, _softmax, _weigh

# Below every affinity, which are sums of shares: the affinity of a token with a NaN.
LEAST = -1.0
# Tokens whose logits are kept side by side: whole panels of every instruction set.
KEPT = 48
MEAN, DEVIATION = 0.5**0.5, (0.25 / np.pi) ** 0.5


def _laplace(logits: Float64) -> Float64:
    """The normal distribution function about MEAN, exact far out too: 1 + erf(x) = erfc(-x)."""
    scaled = (MEAN - logits) / (DEVIATION * 2**0.5)
    return 0.5 * np.vectorize(erfc, otypes=[np.float64])(scaled)


def _unit(is_laplace: bool) -> float:
    return 1.0 if is_laplace else LOG2E


def _blocks(logits: Float32, tokens: slice, n_clusters: int) -> Iterator[tuple[Float32, slice]]:
    """Where the logits of a task's tokens are kept: views (C, n), and which of the tokens they are of."""
    for t in range(tokens.start, tokens.stop, KEPT):
        stop = min(t + KEPT, tokens.stop)
        own = logits[t * n_clusters : stop * n_clusters].reshape(n_clusters, -1)
        yield own, slice(t - tokens.start, stop - tokens.start)


def _weights(logits: Float64, is_laplace: bool) -> Float64:
    return _laplace(logits) if is_laplace else _softmax(logits, None)


def affinities(
    query: Float32, key: Float32, surrogates: Float32, spans: Int64, index: Int64, shares: Float32, scale: float,
    is_laplace: bool, tasks: Int64, chunk: int, origin: int, out: Float32, surest: Float32 | None,
    labels: Int32 | None, logits: Float32 | None, counter: Int64,
) -> None:  # fmt: skip
    """How near ``chunk`` tokens are to each cluster, summed over heads; a task is [sequence, first token].

    ``surrogates`` (H, C, D); ``shares`` (B, N) of the query's part. Token t is row ``t - origin`` of ``out`` (n, C).
    NaN becomes LEAST. Where they are given, ``labels`` and ``surest`` (tokens,) get each token's nearest cluster, the
    first of several, and its affinity.

    ``logits`` (H, tokens x C), where given, keep those of the queries for `mix`, to base 2 but with "laplace": from t C
    on the (C, n) of n tokens from t on, KEPT at a time from each task's first.
    """
    for sequence, first in drawn(tasks, counter):
        batch, _, stop = spans[sequence].tolist()
        tokens = slice(first, min(first + chunk, stop, origin + len(out)))
        rows = index[tokens]
        share = shares[batch, rows].astype(np.float64)[:, None]
        total = np.zeros((len(rows), surrogates.shape[1]))
        for head, own in enumerate(surrogates.astype(np.float64)):
            of_head = query[batch, head, rows].astype(np.float64) @ own.T * scale
            if logits is not None:
                for block, at in _blocks(logits[head], tokens, len(own)):
                    block[...] = of_head[at].T * _unit(is_laplace)
            of_query = _weights(of_head, is_laplace)
            of_key = _weights(key[batch, head, rows].astype(np.float64) @ own.T * scale, is_laplace)
            total += share * of_query + (1 - share) * of_key
        found = out[tokens.start - origin : tokens.stop - origin]
        found[...] = np.where(total >= 0, total, LEAST)
        if labels is not None and surest is not None:
            labels[tokens], surest[tokens] = found.argmax(axis=1), found.max(axis=1)


def select(
    affinity: Float32, spans: Int64, origin: int, tasks: Int64, chunk: int, scores: Float32, tokens: Int64,
    counts: Int64, counter: Int64,
) -> None:  # fmt: skip
    """Top-K: the nearest tokens of ``chunk`` clusters, ties to the first; a task is [sequence, first cluster].

    ``affinity`` (n, C) is of the tokens from ``origin`` on. Each cluster's best so far, ``counts`` (clusters,) many of
    them in ``scores`` and ``tokens`` (clusters, topk), become the best with these: in ascending order of the tokens.
    """
    n_clusters, topk = affinity.shape[1], scores.shape[1]
    for sequence, first in drawn(tasks, counter):
        _, start, stop = spans[sequence].tolist()
        own = np.arange(max(start, origin), min(stop, origin + len(affinity)))
        for c in range(first, min(first + chunk, n_clusters)):
            g = sequence * n_clusters + c
            candidates = np.concatenate([tokens[g, : counts[g]], own])
            values = np.concatenate([scores[g, : counts[g]], affinity[own - origin, c]])
            best = np.sort(np.lexsort((candidates, -values))[:topk])
            counts[g] = len(best)
            tokens[g, : len(best)], scores[g, : len(best)] = candidates[best], values[best]


def assign(
    affinity: Float32, spans: Int64, origin: int, capacity: int, surest: Float32, tasks: Int64, labels: Int32,
    counter: Int64,
) -> None:  # fmt: skip
    """SA Top-K: tokens in descending order of their best affinity, each to its best cluster that has room.

    A task is [sequence]; ``affinity`` (n, C) is of the tokens from ``origin`` on. ``surest`` and ``labels`` are of all
    tokens, as `affinities` gives them; labels become those of the clusters taken. Ties go to the first token, and to
    the first cluster.
    """
    n_clusters = affinity.shape[1]
    for (sequence,) in drawn(tasks, counter):
        _, start, stop = spans[sequence].tolist()
        own = affinity[start - origin : stop - origin]
        sizes = np.zeros(n_clusters, np.int64)
        for t in np.lexsort((np.arange(len(own)), -surest[start:stop])):
            labels[start + t] = np.argmax(np.where(sizes < capacity, own[t], -np.inf))
            sizes[labels[start + t]] += 1


def attend_clusters(
    query: Float32, key: Float32, value: Float32, surrogates: Float32, batches: Int64, rows: Int64,
    member_offsets: Int64, gains: Float32 | None, scale: float, is_laplace: bool, tasks: Int64, chunk: int,
    within: Float32, summaries: Float32, counter: Int64,
) -> None:  # fmt: skip
    """Attention of ``chunk`` members to all members of their cluster, and the cluster's summary.

    A task is [cluster, head, first member]; that of the first member writes the summary. ``rows`` of all members;
    ``batches`` of the clusters; ``gains`` (B, N) of a key's logit in the summary. ``within`` (H, members, E),
    ``summaries`` (H, clusters, E).
    """
    n_clusters = surrogates.shape[1]
    for cluster, head, first in drawn(tasks, counter):
        start, stop = member_offsets[cluster : cluster + 2].tolist()
        batch, own = int(batches[cluster]), rows[start:stop]
        k = key[batch, head, own].astype(np.float64)
        v = value[batch, head, own].astype(np.float64)
        asking = slice(start + first, min(start + first + chunk, stop))
        q = query[batch, head, rows[asking]].astype(np.float64)
        within[head, asking] = _weigh(_weights(q @ k.T * scale, is_laplace), v)
        if first == 0:
            logits = k @ surrogates[head, cluster % n_clusters].astype(np.float64) * scale
            if gains is not None:
                logits *= gains[batch, own]
            summaries[head, cluster] = _weigh(_weights(logits[None], is_laplace), v)[0]


def mix(
    query: Float32, surrogates: Float32, spans: Int64, index: Int64, gains: Float32 | None, scale: float,
    is_laplace: bool, member_offsets: Int64, member_clusters: Int64, places: Int64, place_offsets: Int64,
    within: Float32, summaries: Float32, logits: Float32 | None, tasks: Int64, chunk: int, out: Float32,
    counter: Int64,
) -> None:  # fmt: skip
    """What ``chunk`` tokens get: from a cluster they are in, attention within; from the others, summaries.

    A task is [sequence, head, first token]. Token t is the members ``places[place_offsets[t]:place_offsets[t + 1]]``,
    which are in ``member_clusters``. ``gains`` (B, N) of a query's logits. A cluster without members takes no part.
    ``logits`` are those that `affinities` kept, of tasks that begin at multiples of KEPT of the sequence's tokens.
    """
    n_clusters = surrogates.shape[1]
    for sequence, head, first in drawn(tasks, counter):
        batch, own = rows_of(spans, index, sequence)
        start = int(spans[sequence, 1])
        q = query[batch, head, own[first : first + chunk]].astype(np.float64)
        clusters = np.arange(sequence * n_clusters, (sequence + 1) * n_clusters)
        filled = np.diff(member_offsets)[clusters] > 0
        of_clusters = q @ surrogates[head].astype(np.float64).T * scale
        if logits is None:  # rounded as they are kept, so that keeping them changes no bit
            of_clusters = (of_clusters * _unit(is_laplace)).astype(np.float32).astype(np.float64)
        else:
            for block, at in _blocks(logits[head], slice(start + first, start + first + len(q)), n_clusters):
                of_clusters[at] = block.T
        of_clusters /= _unit(is_laplace)
        if gains is not None:
            of_clusters *= gains[batch, own[first : first + chunk], None]
        weights = np.zeros((len(q), n_clusters))
        weights[:, filled] = _weights(of_clusters[:, filled], is_laplace)
        for i in range(len(q)):
            of_summaries, t = weights[i].copy(), start + first + i
            added = np.zeros(out.shape[3])
            for place in places[place_offsets[t] : place_offsets[t + 1]]:
                c = member_clusters[place] - sequence * n_clusters
                added += weights[i, c] * within[head, place]
                of_summaries[c] = 0
            taking = clusters[of_summaries != 0]
            given = of_summaries[of_summaries != 0] @ summaries[head, taking].astype(np.float64)
            out[batch, head, index[t]] = added + given
