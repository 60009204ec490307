"""Joining what each part of a long key sequence gave to a centroid (meaning: `pyclattn.reference.attention`)."""

import numpy as np

from pyclattn.kernels._jit import draw, inline, jit


@inline
def _best(scores, rows, topk):
    """Places of the topk largest scores, ties to the lowest row, in ascending order of the rows."""
    if len(rows) <= topk:
        return np.argsort(rows)
    least = np.partition(-scores, topk - 1)[topk - 1]
    n_ties = topk  # of the scores that equal the least, as many as are left after the larger ones
    for i in range(len(rows)):
        if -scores[i] < least:
            n_ties -= 1
    ties = np.sort(rows[-scores == least])
    kept = np.empty(topk, np.int64)
    n = 0
    for i in range(len(rows)):
        if -scores[i] < least or (-scores[i] == least and rows[i] <= ties[n_ties - 1]):
            kept[n] = i
            n += 1
    return kept[np.argsort(rows[kept])]


@jit(
    "(f4[:,:,::1], f4[:,:,::1], f4[:,:,:,::1], f4[:,:,:,::1], i8[:,:,:,::1], i8[:,::1], i8,"
    " f4[:,:,::1], i8[:,:,::1], f4[:,:,::1], i8[::1])"
)
def merge_partials(
    peaks, masses, values, top_scores, top_keys, tasks, chunk, centroid_values, selected, weights, counter
):
    """The centroid's output, its topk keys and their softmax weights, ``chunk`` clusters a task."""
    n_parts, _, n_clusters, width = values.shape
    topk = selected.shape[2]
    scores, rows = np.empty(n_parts * topk, np.float32), np.empty(n_parts * topk, np.int64)
    total = np.empty(width, np.float64)
    while True:
        task = draw(counter)
        if task >= len(tasks):
            break
        head, first = tasks[task, 0], tasks[task, 1]
        for c in range(first, min(first + chunk, n_clusters)):
            peak, n = np.float32(-np.inf), 0
            for part in range(n_parts):
                if masses[part, head, c] != 0:
                    peak = max(peak, peaks[part, head, c])
                for t in range(topk):
                    if top_keys[part, head, c, t] >= 0:
                        scores[n], rows[n] = top_scores[part, head, c, t], top_keys[part, head, c, t]
                        n += 1
            mass, total[:] = 0.0, 0.0
            for part in range(n_parts):
                if masses[part, head, c] != 0:
                    factor = np.exp2(np.float64(peaks[part, head, c]) - peak)
                    mass += factor * masses[part, head, c]
                    for e in range(width):
                        total[e] += factor * values[part, head, c, e]
            for e in range(width):
                centroid_values[head, c, e] = total[e] / mass if mass != 0 else 0.0
            chosen = _best(scores[:n], rows[:n], topk)
            selected[head, c], weights[head, c] = -1, 0
            for t in range(len(chosen)):
                selected[head, c, t] = rows[chosen[t]]
                weights[head, c, t] = np.exp2(np.float64(scores[chosen[t]]) - peak) / mass
