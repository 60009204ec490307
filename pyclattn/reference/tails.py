"""Co-clustered attention in NumPy: what is taken exactly, what stands for the rest, and the products.

Sorted rows and centroids are those of `pyclattn.reference.coclusters`.
"""

from itertools import pairwise

import numpy as np

from pyclattn.arrays import Float32, Int64
from pyclattn.reference._rounding import to_bfloat16
from pyclattn.reference._tasks import drawn

LOG2E = float(np.log2(np.e))


def attend(
    query: Float32, query_spans: Int64, order: Int64, member_offsets: Int64, centroids: Float32,
    cluster_offsets: Int64, limits: Float32, rows: Float32, key_scores: Float32, key_bounds: Int64,
    key_cluster_offsets: Int64, slopes: Float32, axes: Float32, spreads: Float32, factor: float, tasks: Int64,
    chunk: int, out: Float32, risks: Float32 | None, counter: Int64,
) -> None:  # fmt: skip
    """Each query sees the rows its cluster takes, and of every cluster of keys the rest as one mean row with a slope.

    ``limits`` (2, H, clusters), as of `coclusters.thresholds`: rows above the first are taken; the slope of those above
    the second is their own, that of the others is ``slopes``, of `coclusters.moments`. ``spreads`` (n_sequences, heads,
    rank): mean square of the keys on each axis, within clusters; ``factor`` is scale times log2 e. A task is [sequence,
    head, first query cluster]. ``risks`` (B, H, L, 2), if given, gets the tail's share of each query's softmax, and
    the variance of dq . (key - its cluster's mean), taken along the axes.
    """
    _attend(
        query, query_spans, order, member_offsets, centroids, cluster_offsets, limits, rows, key_scores, key_bounds,
        key_cluster_offsets, slopes, axes, spreads, factor, tasks, chunk, out, risks, counter, False,
    )  # fmt: skip


def attend_bfloat16(
    query: Float32, query_spans: Int64, order: Int64, member_offsets: Int64, centroids: Float32,
    cluster_offsets: Int64, limits: Float32, rows: Float32, key_scores: Float32, key_bounds: Int64,
    key_cluster_offsets: Int64, slopes: Float32, axes: Float32, spreads: Float32, factor: float, tasks: Int64,
    chunk: int, out: Float32, risks: Float32 | None, counter: Int64,
) -> None:  # fmt: skip
    """The same, but with the rows that are taken what is multiplied is rounded to bfloat16: ``factor * query``, key,
    value and the weights 2^(logit - largest logit), whose sum is that of the rounded ones. Own logits are not rounded.
    """
    _attend(
        query, query_spans, order, member_offsets, centroids, cluster_offsets, limits, rows, key_scores, key_bounds,
        key_cluster_offsets, slopes, axes, spreads, factor, tasks, chunk, out, risks, counter, True,
    )  # fmt: skip


def _attend(
    query, query_spans, order, member_offsets, centroids, cluster_offsets, limits, rows, key_scores, key_bounds,
    key_cluster_offsets, slopes, axes, spreads, factor, tasks, chunk, out, risks, counter, is_rounded,
) -> None:  # fmt: skip
    for sequence, head, first in drawn(tasks, counter):
        batch = int(query_spans[sequence, 0])
        for c in range(first, min(first + chunk, int(cluster_offsets[sequence + 1]))):
            members = order[head, member_offsets[head, c] : member_offsets[head, c + 1]]
            if len(members) == 0:
                continue
            own = slice(int(key_cluster_offsets[sequence]), int(key_cluster_offsets[sequence + 1]))
            bounds = key_bounds[head, own.start : own.stop + 1]
            out[batch, head, members], noted = _attend_cluster(
                query[batch, head, members].astype(np.float64) * factor, centroids[head, c].astype(np.float64),
                limits[:, head, c], rows[head, bounds[0] : bounds[-1]], key_scores[head, bounds[0] : bounds[-1]],
                bounds - bounds[0], slopes[head, own], axes[sequence, head].astype(np.float64),
                spreads[sequence, head].astype(np.float64), is_rounded,
            )  # fmt: skip
            if risks is not None:
                risks[batch, head, members] = noted


def _attend_cluster(
    query, centroid, limits, rows, key_scores, bounds, slopes, axes, spreads, is_rounded
):  # fmt: skip
    """Members (n, D) of one cluster, their outputs and risks; ``is_rounded``: the terms of products with rows that are
    taken."""
    depth, width = len(centroid), rows.shape[1] - len(centroid)
    logits = rows[:, :depth].astype(np.float64) @ centroid
    errors = logits.astype(np.float32) + key_scores
    taken = errors > limits[0]
    peak = logits.max()
    weights = np.where(taken, 0.0, np.exp2(logits - peak))
    masses = np.array([weights[a:b].sum() for a, b in pairwise(bounds)])
    left = np.flatnonzero(masses > 0)
    means = np.zeros((len(masses), rows.shape[1]))
    for j in left:
        means[j] = weights[bounds[j] : bounds[j + 1]] @ rows[bounds[j] : bounds[j + 1]] / masses[j]
    listed = np.where(errors > limits[1], weights, 0.0)
    off = rows - np.repeat(means, np.diff(bounds), axis=0)
    slope = (off[:, : depth - 1] * listed[:, None]).T @ off[:, depth:] / max(masses.sum(), 1e-300)
    listed_spreads = listed @ np.square(off[:, : depth - 1]) / max(masses.sum(), 1e-300)
    others = masses - np.array([listed[a:b].sum() for a, b in pairwise(bounds)])
    axes_slope = (others @ slopes.astype(np.float64) / max(masses.sum(), 1e-300)).reshape(-1, width)
    tail, own = means[left], rows[taken].astype(np.float64)
    # the mean row's own logit: at the centroid its score is the log of the mass it stands for
    tail[:, depth - 1] = np.log2(masses[left]) + peak - tail[:, : depth - 1] @ centroid[:-1]
    if len(tail) + len(own) == 0:  # masses that are not numbers
        return np.full((len(query), width), np.nan), np.nan
    keys, values = (_rounded(is_rounded, x) for x in (own[:, : depth - 1], own[:, depth:]))
    near = _rounded(is_rounded, query) @ keys.T + own[:, depth - 1]
    far = query @ tail[:, : depth - 1].T + tail[:, depth - 1]
    top = np.concatenate([far, near], axis=1).max(axis=-1, keepdims=True)
    far, near = np.exp2(far - top), _rounded(is_rounded, np.exp2(near - top))
    total = far.sum(axis=-1) + near.sum(axis=-1)
    share = far.sum(axis=-1) / total
    step = (query - centroid[:-1]) / LOG2E
    on_axes = step @ axes.T
    result = (far @ tail[:, depth:] + near @ values) / total[:, None]
    for u, own, spread, power in ((on_axes, axes_slope, spreads, 1), (step, slope, listed_spreads, 2)):
        damping = 1 + (np.square(u) @ spread) ** power
        result += (share / damping)[:, None] * (u @ own)
    return result, np.stack([share, np.square(on_axes) @ spreads], axis=1)


def _rounded(is_rounded, x):
    """``x`` in float64, or the bfloat16 next to it."""
    return to_bfloat16(x.astype(np.float32)).astype(np.float64) if is_rounded else x
