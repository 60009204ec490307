"""What co-clustered attention is prepared with, in NumPy.

A sorted row is [key (D), its own logit (1), value (E)], all heads and sequences cluster by cluster. A centroid is
[mean query times scale times log2 e (D), 1], so that its product with a row is a logit in base 2.
"""

import numpy as np

from pyclattn.arrays import Float32, Float64, Int64
from pyclattn.reference._tasks import drawn

LOG2E = float(np.log2(np.e))
NEVER = float(np.finfo(np.float32).max)
TINY = float(np.finfo(np.float32).tiny)
# Of the mean square: what a distance counts at least.
LEAST_SQUARE = 1e-3


def covariances(
    rows: Float32, spans: Int64, index: Int64, tasks: Int64, out: Float32, counter: Int64
) -> None:  # fmt: skip
    """Covariance of the rows of each sequence and head, (n_sequences, heads, D, D). A task is [sequence, head]."""
    for sequence, head in drawn(tasks, counter):
        batch, start, stop = spans[sequence].tolist()
        x = rows[batch, head, index[start:stop]].astype(np.float64)
        x -= x.mean(axis=0)
        out[sequence, head] = x.T @ x / len(x)


def eigenvectors(matrices: Float64, tasks: Int64, values: Float64, vectors: Float64, counter: Int64) -> None:
    """Eigenvalues of symmetric matrices (N, D, D), the largest first, and eigenvectors as rows. A task is [matrix]."""
    for (matrix,) in drawn(tasks, counter):
        found, columns = np.linalg.eigh(matrices[matrix])
        values[matrix], vectors[matrix] = found[::-1], columns.T[::-1]


def sort_rows(
    key: Float32, value: Float32, bias: Float32 | None, batches: Int64, order: Int64, member_offsets: Int64,
    tasks: Int64, chunk: int, rows: Float32, means: Float32, counter: Int64,
) -> None:  # fmt: skip
    """Rows of keys and values cluster by cluster, and the mean row of each cluster; an empty one's stays as it is.

    A task is [head, first cluster]. ``bias`` (B, H, S), if given, is each key's own logit, in base e.
    """
    depth = key.shape[3]
    for head, first in drawn(tasks, counter):
        for c in range(first, min(first + chunk, len(batches))):
            places = slice(member_offsets[head, c], member_offsets[head, c + 1])
            members, batch = order[head, places], int(batches[c])
            if len(members) == 0:
                continue
            rows[head, places, :depth] = key[batch, head, members]
            rows[head, places, depth] = 0 if bias is None else bias[batch, head, members].astype(np.float64) * LOG2E
            rows[head, places, depth + 1 :] = value[batch, head, members]
            means[head, c] = rows[head, places].astype(np.float64).mean(axis=0)


def moments(
    rows: Float32, member_offsets: Int64, means: Float32, sequences: Int64, axes: Float32, tasks: Int64, chunk: int,
    slopes: Float32, squares: Float32, radii: Float32, counter: Int64,
) -> None:  # fmt: skip
    """How the values of each key cluster change along the axes (n_sequences, heads, rank, D).

    ``slopes`` (H, clusters, rank x E): covariance of the keys' products with the axes, and the values; ``squares``
    (H, clusters, rank): sums of those products' squares, from the mean; ``radii`` (H, T, 2): each row's distance
    to the mean, of the key on the axes and of the value. A task is [head, first cluster].
    """
    depth = axes.shape[3]
    for head, first in drawn(tasks, counter):
        for c in range(first, min(first + chunk, len(sequences))):
            places = slice(member_offsets[head, c], member_offsets[head, c + 1])
            off = rows[head, places].astype(np.float64) - means[head, c]
            on_axes, values = off[:, :depth] @ axes[sequences[c], head].astype(np.float64).T, off[:, depth + 1 :]
            slopes[head, c] = (on_axes.T @ values).ravel() / max(len(off), 1)
            squares[head, c] = np.square(on_axes).sum(axis=0)
            radii[head, places, 0] = np.sqrt(np.square(on_axes).sum(axis=-1))
            radii[head, places, 1] = np.sqrt(np.square(values).sum(axis=-1))


def score_keys(radii: Float32, spans: Int64, tasks: Int64, key_scores: Float32, counter: Int64) -> None:
    """log2 of the error each key makes in the tail: of the product of its two distances (H, T, 2).

    None counts less than a thirtieth of their root mean square; squares are taken relative to that, which numbers of
    any size have. NaN stays NaN. A task is [sequence, head].
    """
    for sequence, head in drawn(tasks, counter):
        own = radii[head, spans[sequence, 1] : spans[sequence, 2]].astype(np.float64)
        if len(own):
            sizes = np.maximum(np.sqrt(np.square(own).mean(axis=0)), TINY)
            logs = 0.5 * np.log2(np.square(own / sizes) + LEAST_SQUARE) + np.log2(sizes)
            key_scores[head, spans[sequence, 1] : spans[sequence, 2]] = logs.sum(axis=-1)


def weigh(
    centroids: Float32, cluster_offsets: Int64, rows: Float32, spans: Int64, tasks: Int64, chunk: int,
    sample: Float32, logs: Float32, counter: Int64,
) -> None:  # fmt: skip
    """Each centroid's logits of an even sample of the sorted keys, and log2 of the sum of 2^logit that it speaks for.

    A task is [sequence, head, first cluster].
    """
    depth, n_samples = centroids.shape[2], sample.shape[2]
    for sequence, head, first in drawn(tasks, counter):
        _, start, stop = spans[sequence].tolist()
        clusters = slice(first, min(first + chunk, int(cluster_offsets[sequence + 1])))
        keys = rows[head, start + sample_places(stop - start, n_samples), :depth].astype(np.float64)
        logits = centroids[head, clusters].astype(np.float64) @ keys.T
        peak = logits.max(axis=-1)
        logs[head, clusters] = np.log2(np.exp2(logits - peak[:, None]).mean(axis=-1) * (stop - start)) + peak
        sample[head, clusters] = logits


def sample_places(n: int, n_samples: int) -> Int64:
    """Evenly spread places among ``n``."""
    return np.arange(n_samples) * n // n_samples


def thresholds(
    sample: Float32, logs: Float32, spreads: Float32, key_scores: Float32, cluster_offsets: Int64,
    member_offsets: Int64, spans: Int64, share: Float32, tasks: Int64, limits: Float32, counter: Int64,
) -> None:  # fmt: skip
    """Each cluster's limit: a row is taken where its logit + key score is above.

    One threshold a sequence, for all its heads, on logit + key score - logs + spreads, the log of the error that a key
    makes in the tail: the least that at most ``share`` of the sampled keys are above, a cluster counting as often as
    it has members. A cluster without members takes nothing. A task is [sequence].
    """
    for (sequence,) in drawn(tasks, counter):
        _, start, stop = spans[sequence].tolist()
        clusters = slice(int(cluster_offsets[sequence]), int(cluster_offsets[sequence + 1]))
        sizes = np.diff(member_offsets[:, clusters.start : clusters.stop + 1], axis=1)
        own = key_scores[:, start + sample_places(stop - start, sample.shape[2])]
        offset = spreads[:, clusters] - logs[:, clusters]
        errors = (sample[:, clusters] + own[:, None]) + offset[..., None]
        ranked = np.argsort(-errors, axis=None, kind="stable")
        above = np.cumsum(np.repeat(sizes, errors.shape[2])[ranked])
        first_too_many = int(np.searchsorted(above, int(float(share[sequence]) * above[-1]), side="right"))
        threshold = errors.ravel()[ranked[first_too_many]] if first_too_many < len(ranked) else np.float32(-NEVER)
        limits[:, clusters] = np.where(sizes > 0, threshold - offset, np.float32(NEVER))
