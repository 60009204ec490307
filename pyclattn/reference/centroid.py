"""Kernels of centroid attention in NumPy."""

import numpy as np

from pyclattn.arrays import Float32, Float64, Int64
from pyclattn.reference._tasks import drawn, rows_of


def _softmax(logits: Float64, axis: int) -> Float64:
    weights = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return weights / weights.sum(axis=axis, keepdims=True)


def gather_inputs(
    query: Float32, query_spans: Int64, query_index: Int64 | None, key: Float32, value: Float32, key_spans: Int64,
    key_index: Int64 | None, scale: float, tasks: Int64, chunk: int, values: Float32, masses: Float32 | None,
    counter: Int64,
) -> None:  # fmt: skip
    """What ``chunk`` inputs give to each centroid: every input parts 1 among the centroids by their softmax.

    A task is [sequence, head, first input]. Written at [part, batch, head, centroid], part = first // chunk: the
    values weighed, and the sum of the weights where ``masses`` is given. Other places are left alone.
    """
    group = query.shape[1] // key.shape[1]
    for sequence, head, first in drawn(tasks, counter):
        batch, centroids = rows_of(query_spans, query_index, sequence)
        _, inputs = rows_of(key_spans, key_index, sequence)
        if len(centroids) == 0:
            continue
        inputs = inputs[first : first + chunk]
        q = query[batch, head, centroids].astype(np.float64)
        k = key[batch, head // group, inputs].astype(np.float64)
        v = value[batch, head // group, inputs].astype(np.float64)
        weights = _softmax((q @ k.T) * scale, axis=0)
        values[first // chunk, batch, head, centroids] = weights @ v
        if masses is not None:
            masses[first // chunk, batch, head, centroids] = weights.sum(axis=1)


def weigh_pairs(
    query: Float32, key: Float32, neighbors: Int64, is_by_centroid: bool, scale: float, tasks: Int64, weights: Float32,
    counter: Int64,
) -> None:  # fmt: skip
    """Softmax of pairs of a centroid and one of its neighbours (-1: none) over the centroids that hold the same input,
    or ``is_by_centroid`` over the inputs of the same centroid.

    A task is [batch, head]. The weight of neighbour k of centroid j is written to ``weights[batch, head, j, k]``; 0
    where there is none.
    """
    group = query.shape[1] // key.shape[1]
    for batch, head in drawn(tasks, counter):
        centroids, places = np.nonzero(neighbors[batch] >= 0)
        inputs = neighbors[batch, centroids, places]
        q, k = query[batch, head, centroids].astype(np.float64), key[batch, head // group, inputs].astype(np.float64)
        logits, owner = (q * k).sum(axis=1) * scale, centroids if is_by_centroid else inputs
        peaks = np.full(max(query.shape[2], key.shape[2]), -np.inf)
        np.maximum.at(peaks, owner, logits)
        shares = np.exp(logits - peaks[owner])
        weights[batch, head] = 0
        weights[batch, head, centroids, places] = shares / np.bincount(owner, shares)[owner]


def gather_pairs(
    value: Float32, neighbors: Int64, weights: Float32, is_divided: bool, tasks: Int64, chunk: int, out: Float32,
    counter: Int64,
) -> None:  # fmt: skip
    """The values of each centroid's neighbours, weighed, and divided by the sum of the weights if so asked.

    A task is [batch, head, first centroid]. A neighbour of weight 0 is never read.
    """
    group = out.shape[1] // value.shape[1]
    for batch, head, first in drawn(tasks, counter):
        for j in range(first, min(first + chunk, out.shape[2])):
            w = weights[batch, head, j].astype(np.float64)
            seen = w != 0
            total = w[seen] @ value[batch, head // group, neighbors[batch, j, seen]].astype(np.float64)
            mass = w.sum()
            out[batch, head, j] = total / mass if is_divided and mass != 0 else total


def find_repeated(neighbors: Int64, n_inputs: int, tasks: Int64, repeated: Int64, counter: Int64) -> None:
    """The first pair, counted over a batch entry's (M, K), whose input the centroid has already; -1 without one.

    A task is [batch]. Neighbours are below ``n_inputs``; -1 is none, and may be repeated.
    """
    for (batch,) in drawn(tasks, counter):
        order = neighbors[batch].argsort(axis=1, kind="stable")
        rows = np.take_along_axis(neighbors[batch], order, axis=1)
        centroids, places = np.nonzero((rows[:, 1:] == rows[:, :-1]) & (rows[:, 1:] >= 0))
        again = centroids * neighbors.shape[2] + order[centroids, places + 1]
        repeated[batch] = again.min() if len(again) else -1
