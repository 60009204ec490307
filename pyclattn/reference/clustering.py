"""Clustering kernels in NumPy: sign hashes, Lloyd's k-means on codes and on rows, sorting by cluster, means."""

import numpy as np

from pyclattn.arrays import Codes, Float32, Float64, Int32, Int64
from pyclattn.reference._tasks import drawn


def hash_rows(
    rows: Float32, spans: Int64, index: Int64, planes: Float32, tasks: Int64, chunk: int, codes: Codes, counter: Int64
) -> None:
    """Bit b of a code is 1 iff row . planes[b, :D] > planes[b, D]. A task is [sequence, head, first token]."""
    normals, thresholds = planes[:, :-1].astype(np.float64), planes[:, -1].astype(np.float64)
    powers = np.uint64(1) << np.arange(len(planes), dtype=np.uint64)
    for sequence, head, first in drawn(tasks, counter):
        batch, _, stop = spans[sequence].tolist()
        tokens = slice(first, min(first + chunk, stop))
        x = rows[batch, head, index[tokens]].astype(np.float64)
        codes[head, tokens] = ((x @ normals.T > thresholds) * powers).sum(axis=-1, dtype=np.uint64)


def _nearest_codes(codes: Codes, centroids: Codes) -> Int32:
    if len(codes) == 0:  # an empty sequence has no clusters either
        return np.empty(0, np.int32)
    distances = np.bitwise_count(codes[:, None] ^ centroids[None, :])
    return np.argmin(distances, axis=-1).astype(np.int32)  # the first of equals: ties go to the lowest cluster


def hamming_lloyd(
    codes: Codes, spans: Int64, cluster_offsets: Int64, n_iterations: int, refill: Codes, tasks: Int64,
    labels: Int32, centroids: Codes, counter: Int64,
) -> None:  # fmt: skip
    """Lloyd's k-means on codes. A task is [sequence, head].

    ``centroids`` holds the starting codes and receives the final ones. Each of the ``n_iterations - 1`` updates sets a
    bit where more than half of the members have it; an empty cluster takes its code from ``refill[update]``.
    """
    bits = np.arange(64, dtype=np.uint64)
    for sequence, head in drawn(tasks, counter):
        _, start, stop = spans[sequence].tolist()
        own = slice(int(cluster_offsets[sequence]), int(cluster_offsets[sequence + 1]))
        x, centers = codes[head, start:stop], centroids[head, own]
        label = _nearest_codes(x, centers)
        for update in range(n_iterations - 1):
            for c in range(len(centers)):
                members = x[label == c]
                if len(members) == 0:
                    centers[c] = refill[update, c]
                    continue
                ones = ((members[:, None] >> bits) & np.uint64(1)).sum(axis=0)
                centers[c] = ((2 * ones > len(members)) * (np.uint64(1) << bits)).sum(dtype=np.uint64)
            label = _nearest_codes(x, centers)
        labels[head, start:stop] = label


def hamming_assign(
    codes: Codes, spans: Int64, cluster_offsets: Int64, centroids: Codes, tasks: Int64, chunk: int,
    labels: Int32, sizes: Int32, bit_counts: Int32, counter: Int64,
) -> None:  # fmt: skip
    """One assignment of ``chunk`` codes a task, and what its update needs.

    A task is [sequence, head, first token, number of the task]; ``sizes[number, c]`` counts the members of cluster c
    among the task's codes and ``bit_counts[number, c, b]`` those with bit b.
    """
    bits = np.arange(64, dtype=np.uint64)
    for sequence, head, first, number in drawn(tasks, counter):
        stop = int(spans[sequence, 2])
        own = slice(int(cluster_offsets[sequence]), int(cluster_offsets[sequence + 1]))
        x = codes[head, first : min(first + chunk, stop)]
        label = _nearest_codes(x, centroids[head, own])
        labels[head, first : first + len(x)] = label
        sizes[number], bit_counts[number] = 0, 0
        np.add.at(sizes[number], label, 1)
        np.add.at(bit_counts[number], label, ((x[:, None] >> bits) & np.uint64(1)).astype(np.int32))


def hamming_update(
    sizes: Int32, bit_counts: Int32, parts: Int64, cluster_offsets: Int64, refill: Codes, tasks: Int64,
    centroids: Codes, counter: Int64,
) -> None:  # fmt: skip
    """Majority codes from the counts of `hamming_assign`.

    A task is [sequence, head]; ``parts[task] = [first, stop]`` are the numbers of its assignment tasks; ``refill[c]``
    is the code of an empty cluster.
    """
    powers = np.uint64(1) << np.arange(64, dtype=np.uint64)
    while counter[0] < len(tasks):
        task = int(counter[0])
        counter[0] += 1
        sequence, head = tasks[task].tolist()
        first, stop = parts[task].tolist()
        start = int(cluster_offsets[sequence])
        for c in range(int(cluster_offsets[sequence + 1]) - start):
            size, ones = sizes[first:stop, c].sum(), bit_counts[first:stop, c].sum(axis=0)
            centroids[head, start + c] = refill[c] if size == 0 else ((2 * ones > size) * powers).sum(dtype=np.uint64)


def nearest_assign(
    rows: Float32, spans: Int64, index: Int64, centroids: Float32, cluster_offsets: Int64, axes: Float32 | None,
    tasks: Int64, chunk: int, labels: Int32, counter: Int64,
) -> None:  # fmt: skip
    """Label each row with its nearest centroid (Euclidean), ties to the lowest.

    With ``axes`` (n_sequences, heads, rank, D) the centroids lie on them, (H, clusters, rank), and so do the rows'
    products with the axes. A task is [sequence, head, first token].
    """
    for sequence, head, first in drawn(tasks, counter):
        batch, _, stop = spans[sequence].tolist()
        own = slice(int(cluster_offsets[sequence]), int(cluster_offsets[sequence + 1]))
        tokens = slice(first, min(first + chunk, stop))
        x, centers = rows[batch, head, index[tokens]].astype(np.float64), centroids[head, own].astype(np.float64)
        if axes is not None:
            x = x @ axes[sequence, head].astype(np.float64).T
        labels[head, tokens] = _nearest(x, centers)


def _nearest(x: Float64, centers: Float64) -> Int64:
    # |x - c|^2 = |x|^2 - 2 (x . c - |c|^2 / 2)
    likeness = x @ centers.T - 0.5 * (centers * centers).sum(axis=-1)
    return np.argmax(np.where(np.isnan(likeness), -np.inf, likeness), axis=-1)


def lloyd_along(
    rows: Float32, spans: Int64, index: Int64, axes: Float32, cluster_offsets: Int64, n_iterations: int, tasks: Int64,
    centroids: Float32, counter: Int64,
) -> None:  # fmt: skip
    """k-means of the rows' products with the axes (n_sequences, heads, rank, D), from rows that are evenly spread.

    ``centroids`` (H, clusters, rank) become the means after the last assignment; an empty cluster keeps its own. A
    task is [sequence, head].
    """
    for sequence, head in drawn(tasks, counter):
        batch, start, stop = spans[sequence].tolist()
        own = slice(int(cluster_offsets[sequence]), int(cluster_offsets[sequence + 1]))
        n_clusters = own.stop - own.start
        if n_clusters == 0:
            continue
        x = rows[batch, head, index[start:stop]].astype(np.float64) @ axes[sequence, head].astype(np.float64).T
        centers = x[np.arange(n_clusters) * len(x) // n_clusters]
        for _ in range(n_iterations):
            labels = _nearest(x, centers)
            for c in np.unique(labels):
                centers[c] = x[labels == c].mean(axis=0)
        centroids[head, own] = centers


def sort_by_label(
    labels: Int32, spans: Int64, index: Int64, cluster_offsets: Int64, tasks: Int64,
    order: Int64, member_offsets: Int64, counter: Int64,
) -> None:  # fmt: skip
    """Rows of each cluster, contiguous and ascending: ``order[head, member_offsets[head, c] : ...[c + 1]]``.

    A task is [sequence, head].
    """
    for sequence, head in drawn(tasks, counter):
        _, start, stop = spans[sequence].tolist()
        first, last = cluster_offsets[sequence : sequence + 2].tolist()
        label = labels[head, start:stop]
        order[head, start:stop] = index[start:stop][np.argsort(label, kind="stable")]
        counts = np.bincount(label, minlength=last - first)
        member_offsets[head, first] = start
        member_offsets[head, first + 1 : last + 1] = start + np.cumsum(counts)


def cluster_means(
    rows: Float32, batches: Int64, order: Int64, member_offsets: Int64, tasks: Int64, chunk: int,
    means: Float32, spreads: Float32 | None, counter: Int64,
) -> None:  # fmt: skip
    """Mean row of each cluster and, if asked for, the mean square distance to it; an empty one's stay as they are.

    A task is [head, first cluster].
    """
    for head, first in drawn(tasks, counter):
        for c in range(first, min(first + chunk, len(batches))):
            members = order[head, member_offsets[head, c] : member_offsets[head, c + 1]]
            if len(members):
                own = rows[int(batches[c]), head, members].astype(np.float64)
                means[head, c] = own.mean(axis=0)
                if spreads is not None:
                    spreads[head, c] = np.square(own - own.mean(axis=0)).sum(axis=-1).mean()
