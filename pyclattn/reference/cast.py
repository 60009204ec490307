"""Kernels of CAST in NumPy: attention within clusters, and mixing of their summaries.

Clusters are numbered as in `memberships`. Members are kept as `arrays.py` keeps tokens: those of cluster g are
``member_offsets[g]:member_offsets[g + 1]``.
"""

import numpy as np

from pyclattn.arrays import Float32, Int64
from pyclattn.reference._tasks import drawn, rows_of
from pyclattn.reference.attention import _weigh
from pyclattn.reference.memberships import _blocks, _unit, _weights


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
    is_laplace: bool, member_offsets: Int64, places: Int64, place_clusters: Int64, place_offsets: Int64,
    within: Float32, summaries: Float32, logits: Float32 | None, tasks: Int64, chunk: int, out: Float32,
    counter: Int64,
) -> None:  # fmt: skip
    """What ``chunk`` tokens get: from a cluster they are in, attention within; from the others, summaries.

    A task is [sequence, head, first token]. Which members a token is, `memberships.invert` tells. ``gains`` (B, N) of a
    query's logits. A cluster without members takes no part.
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
            for place in range(place_offsets[t], place_offsets[t + 1]):
                c = place_clusters[place] - sequence * n_clusters
                added += weights[i, c] * within[head, places[place]]
                of_summaries[c] = 0
            taking = clusters[of_summaries != 0]
            given = of_summaries[of_summaries != 0] @ summaries[head, taking].astype(np.float64)
            out[batch, head, index[t]] = added + given
