"""Attention kernels in NumPy: exact, at the centroids, and of each cluster's members to its selected keys."""

from collections.abc import Iterator

import numpy as np

from pyclattn.arrays import Bool, Float32, Float64, Int64
from pyclattn.reference._rounding import to_bfloat16
from pyclattn.reference._tasks import drawn, rows_of

LOG2E = float(np.log2(np.e))
HUGE = 1e38  # a bias beyond this, plus or minus, counts as this: it decides alone


def _softmax(logits: Float64, visible: Bool | None) -> Float64:
    """Softmax over the last axis of what is visible; a row that sees nothing is all zeros."""
    if visible is None:
        visible = np.ones(logits.shape, bool)
    peak = np.max(logits, axis=-1, keepdims=True, where=visible, initial=-np.inf)
    peak = np.where(visible.any(axis=-1, keepdims=True), peak, 0.0)
    weights = np.zeros_like(logits)
    np.exp(logits - peak, out=weights, where=visible)
    total = weights.sum(axis=-1, keepdims=True)
    return weights / np.where(visible.any(axis=-1, keepdims=True), total, 1.0)


def _weigh(weights: Float64, value: Float64) -> Float64:
    """weights @ value, where a weight of zero never touches its row (0 x NaN stays out of reach)."""
    out = weights @ np.where(np.isfinite(value), value, 0.0)
    for row in np.flatnonzero(~np.isfinite(value).all(axis=-1)):
        touched = weights[:, row] != 0
        out[touched] += weights[touched, row, None] * np.where(np.isfinite(value[row]), 0.0, value[row])
    return out


def attend(
    query: Float32, query_spans: Int64, key: Float32, value: Float32, key_spans: Int64, key_index: Int64 | None,
    allowed: Bool | None, bias: Float32 | None, is_causal: bool, scale: float,
    tasks: Int64, chunk: int, out: Float32, counter: Int64,
) -> None:  # fmt: skip
    """Exact attention of ``chunk`` queries a task; a task is [sequence, head, first query]."""
    for batch, head, rows, q, k, v, visible, added in _cases(
        query, query_spans, key, value, key_spans, key_index, allowed, bias, is_causal, tasks, chunk, counter
    ):
        logits = (q.astype(np.float64) @ k.astype(np.float64).T) * scale + added
        out[batch, head, rows] = _weigh(_softmax(logits, visible), v.astype(np.float64))


def attend_bfloat16(
    query: Float32, query_spans: Int64, key: Float32, value: Float32, key_spans: Int64, key_index: Int64 | None,
    allowed: Bool | None, bias: Float32 | None, is_causal: bool, scale: float,
    tasks: Int64, chunk: int, out: Float32, counter: Int64,
) -> None:  # fmt: skip
    """The same, but what is multiplied is rounded to bfloat16: ``scale * log2(e) * query``, key, value, and the weights
    2^(logit - largest), whose rounded sum divides what they weigh.

    Fast owners may take the largest logit so far for the largest.
    """
    for batch, head, rows, q, k, v, visible, added in _cases(
        query, query_spans, key, value, key_spans, key_index, allowed, bias, is_causal, tasks, chunk, counter
    ):
        scaled = to_bfloat16(q * np.float32(scale * LOG2E)).astype(np.float64)
        logits = scaled @ to_bfloat16(k).astype(np.float64).T + LOG2E * added
        seen = np.ones(logits.shape, bool) if visible is None else visible
        peak = np.max(logits, axis=-1, keepdims=True, where=seen, initial=-np.inf)
        weights = np.zeros_like(logits)
        np.exp2(logits - np.where(np.isneginf(peak), 0, peak), out=weights, where=seen)
        weights = to_bfloat16(weights.astype(np.float32)).astype(np.float64)
        total = weights.sum(axis=-1, keepdims=True)
        weights /= np.where(seen.any(axis=-1, keepdims=True), total, 1.0)
        out[batch, head, rows] = _weigh(weights, to_bfloat16(v).astype(np.float64))


def _cases(
    query: Float32, query_spans: Int64, key: Float32, value: Float32, key_spans: Int64, key_index: Int64 | None,
    allowed: Bool | None, bias: Float32 | None, is_causal: bool, tasks: Int64, chunk: int, counter: Int64,
) -> Iterator[tuple]:  # fmt: skip
    """Of each task: batch entry, head and rows of the queries, queries, keys, values, what is visible, added logits."""
    group = query.shape[1] // key.shape[1]
    for sequence, head, first in drawn(tasks, counter):
        batch, start, stop = query_spans[sequence].tolist()
        rows = slice(start + first, min(start + first + chunk, stop))
        key_batch, keys = rows_of(key_spans, key_index, sequence)
        q = query[batch, head, rows]
        k, v = key[key_batch, head // group, keys], value[key_batch, head // group, keys]
        positions = np.arange(len(k)) if key_index is None else keys
        visible, logits = None, np.float64(0)
        if bias is not None:
            added = bias[batch, head, rows][:, positions].astype(np.float64)
            visible = added != -np.inf
            logits = np.where(visible, np.clip(added, -HUGE, HUGE), 0.0)
        if allowed is not None:
            visible = allowed[batch, head, rows][:, positions].astype(bool)
        if is_causal:
            past = positions[None, :] <= np.arange(first, first + len(q))[:, None]
            visible = past if visible is None else visible & past
        yield batch, head, rows, q, k, v, visible, logits


def attend_centroids(
    centroids: Float32, cluster_offsets: Int64, key: Float32, value: Float32, key_spans: Int64,
    key_index: Int64 | None, topk: int, scale: float, tasks: Int64, chunk: int, split: int,
    peaks: Float32, masses: Float32, values: Float32, top_scores: Float32, top_keys: Int64, counter: Int64,
) -> None:  # fmt: skip
    """Attention of ``chunk`` centroids to ``split`` keys, not yet divided by its mass, and the topk keys among them.

    A task is [sequence, head, first cluster, part]; part ``p`` is the keys ``p * split : (p + 1) * split``. Written at
    [part, head, cluster], in logits of base 2 (scale * dot * log2 e): the largest logit, the sum of
    2^(logit - largest) (0 where there is no key), the values weighed with it, and the ``topk`` largest logits with
    their rows, in any order, ties to the lowest row, empty places -inf and -1.
    """
    group = centroids.shape[0] // key.shape[1]
    for sequence, head, first, part in drawn(tasks, counter):
        batch, numbers = rows_of(key_spans, key_index, sequence)
        numbers = numbers[part * split : (part + 1) * split]
        clusters = slice(first, min(first + chunk, int(cluster_offsets[sequence + 1])))
        k = key[batch, head // group, numbers].astype(np.float64)
        v = value[batch, head // group, numbers].astype(np.float64)
        logits = (centroids[head, clusters].astype(np.float64) @ k.T) * (scale * LOG2E)
        peak = np.max(logits, axis=-1, initial=-np.inf)
        weights = np.exp2(logits - np.where(np.isfinite(peak), peak, 0.0)[:, None])
        peaks[part, head, clusters] = peak
        masses[part, head, clusters] = weights.sum(axis=-1)
        values[part, head, clusters] = weights @ v
        # lexsort's last key is the first to sort by: by logit, then by row
        scores = logits.astype(np.float32)  # equal keys have equal scores, whatever order their products were summed in
        best = np.stack([np.lexsort((numbers, -row))[:topk] for row in scores])
        found = best.shape[1]
        top_scores[part, head, clusters, :found] = np.take_along_axis(scores, best, axis=-1)
        top_keys[part, head, clusters, :found] = numbers[best]
        top_scores[part, head, clusters, found:] = -np.inf
        top_keys[part, head, clusters, found:] = -1


def merge_partials(
    peaks: Float32, masses: Float32, values: Float32, top_scores: Float32, top_keys: Int64,
    tasks: Int64, chunk: int, centroid_values: Float32, selected: Int64, weights: Float32, counter: Int64,
) -> None:  # fmt: skip
    """Join the parts of `attend_centroids`: the centroid's output, its ``topk`` keys and their softmax weights.

    A task is [head, first cluster]. ``selected`` is in ascending order of the rows, empty places (-1, weight 0) last.
    """
    topk = selected.shape[-1]
    for head, first in drawn(tasks, counter):
        for c in range(first, min(first + chunk, centroid_values.shape[1])):
            filled = masses[:, head, c] != 0
            if not filled.any():  # no key at all
                centroid_values[head, c], selected[head, c], weights[head, c] = 0, -1, 0
                continue
            peak = peaks[filled, head, c].max()
            factor = np.exp2(peaks[filled, head, c].astype(np.float64) - peak)
            mass = factor @ masses[filled, head, c]
            centroid_values[head, c] = factor @ values[filled, head, c] / mass
            scores, rows = top_scores[:, head, c].ravel(), top_keys[:, head, c].ravel()
            scores, rows = scores[rows >= 0].astype(np.float64), rows[rows >= 0]
            best = np.lexsort((rows, -scores))[:topk]
            best = best[np.argsort(rows[best])]
            selected[head, c], weights[head, c] = -1, 0
            selected[head, c, : len(best)] = rows[best]
            weights[head, c, : len(best)] = np.exp2(scores[best] - peak) / mass


def attend_members(
    query: Float32, key: Float32, value: Float32, batches: Int64, shifts: Int64, order: Int64, member_offsets: Int64,
    selected: Int64, weights: Float32, centroid_values: Float32, is_causal: bool, scale: float,
    tasks: Int64, chunk: int, out: Float32, counter: Int64,
) -> None:  # fmt: skip
    """The improved part: each member attends to its cluster's selected keys with its own query.

    A task is [head, first cluster]. Query row i of a causal sequence sees the key rows up to i + ``shifts[cluster]``.
    """
    group = query.shape[1] // key.shape[1]
    for head, first in drawn(tasks, counter):
        for c in range(first, min(first + chunk, len(batches))):
            members = order[head, member_offsets[head, c] : member_offsets[head, c + 1]]
            chosen = selected[head, c] >= 0
            keys, batch = selected[head, c][chosen], int(batches[c])
            if len(members) == 0:
                continue
            q = query[batch, head, members].astype(np.float64)
            k = key[batch, head // group, keys].astype(np.float64)
            v = value[batch, head // group, keys].astype(np.float64)
            logits = (q @ k.T) * scale
            if is_causal:
                visible = keys[None, :] <= (members + shifts[c])[:, None]
                out[batch, head, members] = _weigh(_softmax(logits, visible), v)
                continue
            w = weights[head, c][chosen].astype(np.float64)
            rest = centroid_values[head, c] - w @ v
            out[batch, head, members] = w.sum() * (_softmax(logits, None) @ v) + rest


def spread_members(
    batches: Int64, order: Int64, member_offsets: Int64, centroid_values: Float32,
    tasks: Int64, chunk: int, out: Float32, counter: Int64,
) -> None:  # fmt: skip
    """Each member gets its centroid's output. A task is [head, first cluster]."""
    for head, first in drawn(tasks, counter):
        for c in range(first, min(first + chunk, len(batches))):
            members = order[head, member_offsets[head, c] : member_offsets[head, c + 1]]
            out[int(batches[c]), head, members] = centroid_values[head, c]
