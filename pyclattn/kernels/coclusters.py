"""The scores of keys and the threshold of co-clustered attention (meaning: `pyclattn.reference.coclusters`)."""

import numpy as np

from pyclattn.kernels._jit import draw, inline, jit

NEVER = np.finfo(np.float32).max
TINY = np.float64(np.finfo(np.float32).tiny)
LEAST_SQUARE = 1e-3


@jit("(f4[:,:,::1], i8[:,::1], i8[:,::1], f4[:,::1], i8[::1])")
def score_keys(radii, spans, tasks, key_scores, counter):
    """log2 of the product of each key's two distances, none less than a share of their root mean square."""
    while True:
        task = draw(counter)
        if task >= len(tasks):
            break
        sequence, head = tasks[task, 0], tasks[task, 1]
        start, stop = spans[sequence, 1], spans[sequence, 2]
        first, second = np.float64(0), np.float64(0)
        for i in range(start, stop):
            first += np.float64(radii[head, i, 0]) ** 2
            second += np.float64(radii[head, i, 1]) ** 2
        first, second = np.sqrt(first / max(stop - start, 1)), np.sqrt(second / max(stop - start, 1))
        if first < TINY:  # not so where it is NaN
            first = TINY
        if second < TINY:
            second = TINY
        sizes = np.log2(first) + np.log2(second)
        for i in range(start, stop):
            x, y = radii[head, i, 0] / first, radii[head, i, 1] / second
            product = (x * x + LEAST_SQUARE) * (y * y + LEAST_SQUARE)  # one logarithm for both
            key_scores[head, i] = np.float32(0.5 * np.log2(product) + sizes)


@inline
def _weight_above(ordered, sizes, bound):
    """How many (query, key) pairs are above the bound."""
    total = np.int64(0)
    for c in range(len(sizes)):
        count = np.int32(0)
        for i in range(ordered.shape[1]):
            count += np.int32(ordered[c, i] > bound)
        total += np.int64(count) * sizes[c]
    return total


@jit(
    "(f4[:,:,::1], f4[:,::1], f4[:,::1], f4[:,::1], i8[::1], i8[:,::1], i8[:,::1], f4[::1], i8[:,::1], f4[:,::1],"
    " i8[::1])"
)
def thresholds(
    sample, logs, spreads, key_scores, cluster_offsets, member_offsets, spans, share, tasks, limits, counter
):
    """Each cluster's limit, from one threshold a sequence; found bit by bit, nothing is sorted."""
    n_heads, _, n_samples = sample.shape
    while True:
        task = draw(counter)
        if task >= len(tasks):
            break
        sequence = tasks[task, 0]
        start, n = spans[sequence, 1], spans[sequence, 2] - spans[sequence, 1]
        first = cluster_offsets[sequence]
        n_clusters = cluster_offsets[sequence + 1] - first
        sizes = np.empty(n_heads * n_clusters, np.int64)
        errors = np.empty((n_heads * n_clusters, n_samples), np.float32)
        own = np.empty(n_samples, np.float32)
        for head in range(n_heads):
            for i in range(n_samples):
                own[i] = key_scores[head, start + i * n // n_samples]
            for c in range(n_clusters):
                offset = spreads[head, first + c] - logs[head, first + c]
                sizes[head * n_clusters + c] = member_offsets[head, first + c + 1] - member_offsets[head, first + c]
                for i in range(n_samples):
                    errors[head * n_clusters + c, i] = (sample[head, first + c, i] + own[i]) + offset
        ordered = errors.view(np.int32)  # whole numbers in the order of the floats
        for c in range(len(sizes)):
            for i in range(n_samples):
                ordered[c, i] ^= (ordered[c, i] >> np.int32(31)) & np.int32(0x7FFFFFFF)
        most = np.int64(np.float64(share[sequence]) * np.float64(sizes.sum() * n_samples))
        low, high = np.int64(-(1 << 31)), np.int64((1 << 31) - 1)
        while low < high:  # the least bound with at most that many above
            middle = (low + high) >> 1
            if _weight_above(ordered, sizes, np.int32(middle)) <= most:
                high = middle
            else:
                low = middle + 1
        bits = np.empty(1, np.int32)
        bits[0] = np.int32(low)
        bits[0] ^= (bits[0] >> np.int32(31)) & np.int32(0x7FFFFFFF)
        threshold = bits.view(np.float32)[0]
        if most >= sizes.sum() * n_samples:
            threshold = -NEVER
        for head in range(n_heads):
            for c in range(n_clusters):
                offset = spreads[head, first + c] - logs[head, first + c]
                limits[head, first + c] = threshold - offset if sizes[head * n_clusters + c] > 0 else NEVER
