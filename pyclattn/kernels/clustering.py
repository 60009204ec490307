"""Lloyd's k-means on sign codes (meaning: `pyclattn.reference.clustering`)."""

import numpy as np

from pyclattn.kernels._jit import draw, inline, jit, popcount


@inline
def _assign(codes, centroids, labels):
    """labels[i] = the centroid nearest to codes[i] in Hamming distance, ties to the lowest."""
    for i in range(len(codes)):
        code = codes[i]
        best = np.int64(1 << 62)
        for c in range(len(centroids)):  # distance and number in one, so that the minimum is a plain reduction
            best = min(best, (popcount(code ^ centroids[c]) << 32) | c)
        labels[i] = np.int32(best & 0xFFFFFFFF)


@inline
def _count(codes, labels, sizes, bit_counts):
    """Members of each cluster, and those with each bit."""
    sizes[:] = 0
    bit_counts[:] = 0
    for i in range(len(codes)):
        code, c = codes[i], labels[i]
        sizes[c] += 1
        row = bit_counts[c]
        for b in range(64):
            row[b] += np.int32((code >> np.uint64(b)) & np.uint64(1))


@inline
def _majority(size, ones):
    """Bits that more than half of the members have."""
    code = np.uint64(0)
    for b in range(64):
        if 2 * ones[b] > size:
            code |= np.uint64(1) << np.uint64(b)
    return code


@jit("(u8[:,::1], i8[:,::1], i8[::1], i8, u8[:,::1], i8[:,::1], i4[:,::1], u8[:,::1], i8[::1])")
def hamming_lloyd(codes, spans, cluster_offsets, n_iterations, refill, tasks, labels, centroids, counter):
    """Lloyd's k-means on codes, a sequence and head a task."""
    sizes = np.empty(refill.shape[1], np.int32)
    bit_counts = np.empty((refill.shape[1], 64), np.int32)
    while True:
        task = draw(counter)
        if task >= len(tasks):
            break
        sequence, head = tasks[task, 0], tasks[task, 1]
        start, stop = spans[sequence, 1], spans[sequence, 2]
        centers = centroids[head, cluster_offsets[sequence] : cluster_offsets[sequence + 1]]
        x, label = codes[head, start:stop], labels[head, start:stop]
        _assign(x, centers, label)
        for update in range(n_iterations - 1):
            _count(x, label, sizes, bit_counts)
            for c in range(len(centers)):
                centers[c] = refill[update, c] if sizes[c] == 0 else _majority(sizes[c], bit_counts[c])
            _assign(x, centers, label)


@jit("(u8[:,::1], i8[:,::1], i8[::1], u8[:,::1], i8[:,::1], i8, i4[:,::1], i4[:,::1], i4[:,:,::1], i8[::1])")
def hamming_assign(codes, spans, cluster_offsets, centroids, tasks, chunk, labels, sizes, bit_counts, counter):
    """One assignment of ``chunk`` codes a task, and what its update needs."""
    while True:
        task = draw(counter)
        if task >= len(tasks):
            break
        sequence, head, first, number = tasks[task, 0], tasks[task, 1], tasks[task, 2], tasks[task, 3]
        stop = min(first + chunk, spans[sequence, 2])
        x, label = codes[head, first:stop], labels[head, first:stop]
        _assign(x, centroids[head, cluster_offsets[sequence] : cluster_offsets[sequence + 1]], label)
        _count(x, label, sizes[number], bit_counts[number])


@jit("(i4[:,::1], i4[:,:,::1], i8[:,::1], i8[::1], u8[::1], i8[:,::1], u8[:,::1], i8[::1])")
def hamming_update(sizes, bit_counts, parts, cluster_offsets, refill, tasks, centroids, counter):
    """Majority codes from the counts of `hamming_assign`."""
    ones = np.empty(64, np.int64)
    while True:
        task = draw(counter)
        if task >= len(tasks):
            break
        sequence, head = tasks[task, 0], tasks[task, 1]
        start = cluster_offsets[sequence]
        for c in range(cluster_offsets[sequence + 1] - start):
            size = np.int64(0)
            ones[:] = 0
            for part in range(parts[task, 0], parts[task, 1]):
                size += sizes[part, c]
                for b in range(64):
                    ones[b] += bit_counts[part, c, b]
            centroids[head, start + c] = refill[c] if size == 0 else _majority(size, ones)
