"""Kernels of CAST's memberships in NumPy: affinities of tokens to clusters, and the two clusterings.

Clusters are numbered through all sequences: cluster c of sequence s is ``s * n_clusters + c``, the same in all heads.
"""

from collections.abc import Iterator
from math import erfc

import numpy as np

from pyclattn.arrays import PANEL, Float32, Float64, Int32, Int64
from pyclattn.reference._tasks import drawn
from pyclattn.reference.attention import LOG2E, _softmax

# Below every affinity, which are sums of shares: the affinity of a token with a NaN.
LEAST = -1.0
# Tokens whose logits are kept side by side: a panel.
KEPT = PANEL
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
    query: Float32, key: Float32, surrogates: Float32, spans: Int64, index: Int64, gate: Float32, scale: float,
    is_laplace: bool, tasks: Int64, chunk: int, origin: int, out: Float32, surest: Float32 | None,
    labels: Int32 | None, logits: Float32 | None, gains: Float32 | None, counter: Int64,
) -> None:  # fmt: skip
    """How near ``chunk`` tokens are to each cluster, summed over heads; a task is [sequence, first token].

    ``surrogates`` (H, C, D); sigmoid(``gate``), (B, N), is the query's part. Token t is row ``t - origin`` of ``out``
    (n, C). NaN becomes LEAST. Where they are given, ``labels`` and ``surest`` (tokens,) get each token's nearest
    cluster, the first of several, and its affinity.

    ``logits`` (H, tokens x C), where given, keep those of the queries for `mix`, to base 2 but with "laplace": from t C
    on the (C, n) of n tokens from t on, KEPT at a time from each task's first. ``gains`` (2, B, N), where given, get
    1 + log(1 + exp(gate)), of a query's logits, and 1 + log(1 + exp(-gate)), of a key's.
    """
    for sequence, first in drawn(tasks, counter):
        batch, _, stop = spans[sequence].tolist()
        tokens = slice(first, min(first + chunk, stop, origin + len(out)))
        rows = index[tokens]
        phi = gate[batch, rows].astype(np.float64)
        share = np.exp(-np.logaddexp(0, -phi))[:, None]
        if gains is not None:
            gains[:, batch, rows] = 1 + np.logaddexp(0, phi), 1 + np.logaddexp(0, -phi)
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
    tokens: Int64, counts: Int64, counter: Int64,
) -> None:  # fmt: skip
    """SA Top-K: tokens in descending order of their best affinity, each to its best cluster that has room.

    A task is [sequence]; ``affinity`` (n, C) is of the tokens from ``origin`` on. ``surest`` and ``labels`` are of all
    tokens, as `affinities` gives them; labels become those of the clusters taken, ``tokens`` (tokens,) their
    members, one cluster after the other, ``counts`` (clusters,) how many. Ties go to the first token, and to the first
    cluster.
    """
    n_clusters = affinity.shape[1]
    for (sequence,) in drawn(tasks, counter):
        _, start, stop = spans[sequence].tolist()
        own = affinity[start - origin : stop - origin]
        sizes = np.zeros(n_clusters, np.int64)
        for t in np.lexsort((np.arange(len(own)), -surest[start:stop])):
            labels[start + t] = np.argmax(np.where(sizes < capacity, own[t], -np.inf))
            sizes[labels[start + t]] += 1
        tokens[start:stop] = start + np.argsort(labels[start:stop], kind="stable")
        counts[sequence * n_clusters : (sequence + 1) * n_clusters] = sizes


def invert(
    tokens: Int64, member_offsets: Int64, places: Int64, place_clusters: Int64, place_offsets: Int64, counter: Int64
) -> None:
    """Which members each token is: ``places[place_offsets[t]:place_offsets[t + 1]]``, in ``place_clusters``.

    Of cluster g there are the ``tokens[member_offsets[g]:member_offsets[g + 1]]``. There is one task.
    """
    for _ in drawn(np.zeros((1, 1), np.int64), counter):
        places[:] = np.argsort(tokens, kind="stable")
        clusters = np.repeat(np.arange(len(member_offsets) - 1), np.diff(member_offsets))
        place_clusters[:] = clusters[places]
        place_offsets[0] = 0
        np.cumsum(np.bincount(tokens, minlength=len(place_offsets) - 1), out=place_offsets[1:])
