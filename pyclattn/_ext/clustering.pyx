"""Clustering kernels: sign codes, nearest centroids, k-means along axes, sorting by cluster, means."""

from libc.math cimport sqrt
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from pyclattn._ext.isa cimport (
    TILE_KEYS, TILE_MASKED, current, draw_task, free_floats, i64, new_floats, padded, tile_isa,
    tile_prefetch_far,
)


cdef uint64_t exact_code(const float *row, const float *planes, i64 n_bits, i64 depth) noexcept nogil:
    """The code in float64."""
    cdef uint64_t code = 0
    cdef double dot
    cdef i64 b, d
    for b in range(n_bits):
        dot = 0
        for d in range(depth):
            dot += <double> row[d] * planes[b * (depth + 1) + d]
        if dot > planes[b * (depth + 1) + depth]:
            code |= <uint64_t> 1 << b
    return code


def hash_rows(
    const float[:, :, :, :] rows, const int64_t[:, ::1] spans, const int64_t[::1] index, const float[:, ::1] planes,
    const int64_t[:, ::1] tasks, i64 chunk, uint64_t[:, ::1] codes, int64_t[::1] counter,
):
    """Bit b of a code is 1 iff row . planes[b, :D] > planes[b, D] (see `pyclattn.reference.clustering`).

    Products are taken in float32; a row with a product too near its threshold to be sure of is done again in float64.
    """
    cdef:
        const tile_isa *isa
        float *memory
        float *panel
        float *s
        float *peaks
        float *thresholds
        uint64_t *lane_codes
        uint32_t *unsure
        const float *source
        i64 depth = rows.shape[3], stride = rows.strides[2] // 4, n_bits = planes.shape[0]
        i64 task, sequence, head, batch, n, vectors, i, d, b, lanes
        int64_t at, stop
        double norm, rounding, longest = 0, farthest = 0

    with nogil:
        isa = current()
        lanes = isa.lanes
        memory = new_floats((depth + 2 * 64 + 1 + 3) * padded(lanes) + 64)
        if memory == NULL:
            with gil:
                raise MemoryError("no memory for one block of hashing")
        panel = memory
        s = panel + depth * padded(lanes)
        peaks = s + 64 * padded(lanes)
        lane_codes = <uint64_t *> (peaks + 65 * padded(lanes))
        unsure = <uint32_t *> (lane_codes + padded(lanes))
        thresholds = <float *> unsure + padded(lanes)
        for b in range(n_bits):
            thresholds[b] = planes[b, depth]
            norm = 0
            for d in range(depth):
                norm += <double> planes[b, d] * planes[b, d]
            longest = max(longest, norm)
            farthest = max(farthest, abs(<double> planes[b, depth]))
        longest = sqrt(longest)
        # a sum of `depth` products is off by less than depth x 2^-24 |row| |plane|, its difference to the threshold by
        # 2^-24 of either; twice that, and (a + b)^2 <= 2 a^2 + 2 b^2
        rounding = 1.2e-7 * (depth + 2)
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0]:
                break
            sequence, head, at = tasks[task, 0], tasks[task, 1], tasks[task, 2]
            batch, stop = spans[sequence, 0], min(spans[sequence, 2], at + chunk)
            source = &rows[batch, head, 0, 0]
            while at < stop:
                n = min(lanes, stop - at)
                vectors = (n + isa.vector - 1) // isa.vector
                isa.load(source, stride, &index[at], n, depth, 1.0, panel)
                isa.score(&planes[0, 0], depth + 1, n_bits, depth, panel, vectors, s, peaks)
                isa.sign(s, n_bits, panel, depth, vectors, thresholds, <float> (2 * (rounding * longest) ** 2),
                         <float> (2 * (1.2e-7 * farthest) ** 2), lane_codes, unsure)
                for i in range(n):
                    if unsure[i]:
                        lane_codes[i] = exact_code(source + index[at + i] * stride, &planes[0, 0], n_bits, depth)
                    codes[head, at + i] = lane_codes[i]
                at += n
        free_floats(memory)


cdef void halve_norms(const float *centers, i64 n, i64 rank, float *half_norms) noexcept nogil:
    """Half the square length of each centroid."""
    cdef i64 c, d
    cdef double norm
    for c in range(n):
        norm = 0
        for d in range(rank):
            norm += <double> centers[c * rank + d] * centers[c * rank + d]
        half_norms[c] = <float> (0.5 * norm)


cdef void label_panel(const tile_isa *isa, const float *panel, i64 vectors, const float *centers,
                      const float *half_norms, i64 n_clusters, i64 rank, float *best, int32_t *labels) noexcept nogil:
    """The nearest centroid of each lane."""
    cdef i64 i
    for i in range(isa.lanes):
        best[i], labels[i] = 2 * TILE_MASKED, 0
    isa.assign(centers, rank, n_clusters, rank, panel, vectors, half_norms, best, labels)


def nearest_assign(
    const float[:, :, :, :] rows, const int64_t[:, ::1] spans, const int64_t[::1] index,
    const float[:, :, ::1] centroids, const int64_t[::1] cluster_offsets, const float[:, :, :, ::1] axes,
    const int64_t[:, ::1] tasks, i64 chunk, int32_t[:, ::1] labels, int64_t[::1] counter,
):
    """Label each row with its nearest centroid, along the axes if given (see `pyclattn.reference.clustering`)."""
    cdef:
        const tile_isa *isa
        float *memory
        float *panel
        float *shadow  # the rows on the axes
        float *s
        float *best
        int32_t *lane_labels
        float *half_norms
        float *place
        const float *centers
        i64 depth = rows.shape[3], stride = rows.strides[2] // 4, rank = centroids.shape[2]
        i64 task, sequence, head, batch, n, vectors, i, lanes, first, n_clusters
        int64_t at, stop
        i64 most = 0

    with nogil:
        isa = current()
        lanes = isa.lanes
        for i in range(cluster_offsets.shape[0] - 1):
            most = max(most, cluster_offsets[i + 1] - cluster_offsets[i])
        memory = new_floats((depth + rank + 2 * TILE_KEYS + 3) * padded(lanes) + padded(most))
        if memory == NULL:
            with gil:
                raise MemoryError("no memory for one block of k-means")
        panel = memory
        shadow = panel + depth * padded(lanes)
        s = shadow + rank * padded(lanes)
        best = s + (2 * TILE_KEYS + 1) * padded(lanes)
        lane_labels = <int32_t *> (best + padded(lanes))
        half_norms = <float *> lane_labels + padded(lanes)
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0]:
                break
            sequence, head, at = tasks[task, 0], tasks[task, 1], tasks[task, 2]
            batch, stop = spans[sequence, 0], min(spans[sequence, 2], at + chunk)
            first = cluster_offsets[sequence]
            n_clusters = cluster_offsets[sequence + 1] - first
            centers = &centroids[head, first, 0] if n_clusters > 0 else NULL
            halve_norms(centers, n_clusters, rank, half_norms)
            while at < stop:
                n = min(lanes, stop - at)
                vectors = (n + isa.vector - 1) // isa.vector
                isa.load(&rows[batch, head, 0, 0], stride, &index[at], n, depth, 1.0, panel)
                for i in range(min(lanes, stop - at - n)):
                    tile_prefetch_far(&rows[batch, head, 0, 0] + index[at + n + i] * stride, depth)
                place = panel
                if axes is not None:
                    isa.score(&axes[sequence, head, 0, 0], depth, rank, depth, panel, vectors, shadow, s)
                    place = shadow
                label_panel(isa, place, vectors, centers, half_norms, n_clusters, rank, best, lane_labels)
                for i in range(n):
                    labels[head, at + i] = lane_labels[i]
                at += n
        free_floats(memory)


def lloyd_along(
    const float[:, :, :, :] rows, const int64_t[:, ::1] spans, const int64_t[::1] index,
    const float[:, :, :, ::1] axes, const int64_t[::1] cluster_offsets, i64 n_iterations,
    const int64_t[:, ::1] tasks, float[:, :, ::1] centroids, int64_t[::1] counter,
):
    """k-means along the axes (see `pyclattn.reference.clustering`)."""
    cdef:
        const tile_isa *isa
        float *memory
        float *panel
        float *shadows       # [panels][rank][lanes]: the rows on the axes
        float *points        # [rows][rank]: the same, row by row
        float *s
        float *best
        int32_t *lane_labels
        float *half_norms
        float *ones
        float *centers
        const float *row
        double *totals       # [clusters][rank]
        int64_t *counts
        i64 depth = rows.shape[3], stride = rows.strides[2] // 4, rank = axes.shape[2]
        i64 task, sequence, head, batch, n, vectors, i, c, d, lanes, first, n_clusters, _turn
        i64 most = 0, most_rows = 0
        int64_t start, n_rows, at

    with nogil:
        isa = current()
        lanes = isa.lanes
        for i in range(cluster_offsets.shape[0] - 1):
            most = max(most, cluster_offsets[i + 1] - cluster_offsets[i])
            most_rows = max(most_rows, spans[i, 2] - spans[i, 1])
        memory = new_floats((depth + 2 * TILE_KEYS + 4) * padded(lanes) + 2 * (most_rows + lanes) * rank
                            + padded(most) + 2 * padded(most) + 2 * padded(most * rank))
        if memory == NULL:
            with gil:
                raise MemoryError("no memory for one sample of k-means")
        panel = memory
        s = panel + depth * padded(lanes)
        best = s + (2 * TILE_KEYS + 1) * padded(lanes)
        lane_labels = <int32_t *> (best + padded(lanes))
        ones = <float *> lane_labels + padded(lanes)
        half_norms = ones + padded(lanes)
        counts = <int64_t *> (half_norms + padded(most))
        totals = <double *> (counts + padded(most))
        shadows = <float *> (totals + padded(most * rank))
        points = shadows + (most_rows + lanes) * rank
        for i in range(lanes):
            ones[i] = 1
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0]:
                break
            sequence, head = tasks[task, 0], tasks[task, 1]
            batch, start = spans[sequence, 0], spans[sequence, 1]
            n_rows = spans[sequence, 2] - start
            first = cluster_offsets[sequence]
            n_clusters = cluster_offsets[sequence + 1] - first
            if n_clusters == 0:
                continue
            at = 0
            while at < n_rows:
                n = min(lanes, n_rows - at)
                vectors = (n + isa.vector - 1) // isa.vector
                isa.load(&rows[batch, head, 0, 0], stride, &index[start + at], n, depth, 1.0, panel)
                for i in range(at + n, min(at + n + lanes, n_rows)):
                    tile_prefetch_far(&rows[batch, head, 0, 0] + index[start + i] * stride, depth)
                isa.score(&axes[sequence, head, 0, 0], depth, rank, depth, panel, vectors, shadows + at * rank, s)
                isa.store(shadows + at * rank, ones, n, rank, 1.0, NULL, points + at * rank, rank, NULL)
                at += lanes
            centers = &centroids[head, first, 0]
            for c in range(n_clusters):
                memcpy(centers + c * rank, points + c * n_rows // n_clusters * rank, rank * sizeof(float))
            for _turn in range(n_iterations):
                halve_norms(centers, n_clusters, rank, half_norms)
                memset(totals, 0, n_clusters * rank * sizeof(double))
                memset(counts, 0, n_clusters * sizeof(int64_t))
                at = 0
                while at < n_rows:
                    n = min(lanes, n_rows - at)
                    vectors = (n + isa.vector - 1) // isa.vector
                    label_panel(isa, shadows + at * rank, vectors, centers, half_norms, n_clusters, rank, best,
                                lane_labels)
                    for i in range(n):
                        c, row = lane_labels[i], points + (at + i) * rank
                        counts[c] += 1
                        for d in range(rank):
                            totals[c * rank + d] += row[d]
                    at += lanes
                for c in range(n_clusters):
                    if counts[c] > 0:
                        for d in range(rank):
                            centers[c * rank + d] = <float> (totals[c * rank + d] / counts[c])
        free_floats(memory)


def sort_by_label(
    const int32_t[:, ::1] labels, const int64_t[:, ::1] spans, const int64_t[::1] index,
    const int64_t[::1] cluster_offsets, const int64_t[:, ::1] tasks, int64_t[:, ::1] order,
    int64_t[:, ::1] member_offsets, int64_t[::1] counter,
):
    """Counting sort of a sequence's rows by cluster (see `pyclattn.reference.clustering`)."""
    cdef:
        i64 task, sequence, head, first, n_clusters, c, most = 0
        int64_t t, place
        int64_t *places  # the next one of each cluster

    with nogil:
        for c in range(cluster_offsets.shape[0] - 1):
            most = max(most, cluster_offsets[c + 1] - cluster_offsets[c])
        places = <int64_t *> new_floats(2 * (most + 1))
        if places == NULL:
            with gil:
                raise MemoryError("no memory for one place a cluster")
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0]:
                break
            sequence, head = tasks[task, 0], tasks[task, 1]
            first = cluster_offsets[sequence]
            n_clusters = cluster_offsets[sequence + 1] - first
            memset(places, 0, (n_clusters + 1) * sizeof(int64_t))
            for t in range(spans[sequence, 1], spans[sequence, 2]):
                places[labels[head, t] + 1] += 1
            places[0] = spans[sequence, 1]
            for c in range(n_clusters):
                places[c + 1] += places[c]
            for c in range(n_clusters + 1):
                member_offsets[head, first + c] = places[c]
            for t in range(spans[sequence, 1], spans[sequence, 2]):
                place = places[labels[head, t]]
                places[labels[head, t]] = place + 1
                order[head, place] = index[t]
        free_floats(places)


def cluster_means(
    const float[:, :, :, :] rows, const int64_t[::1] batches, const int64_t[:, ::1] order,
    const int64_t[:, ::1] member_offsets, const int64_t[:, ::1] tasks, i64 chunk, float[:, :, ::1] means,
    float[:, ::1] spreads, int64_t[::1] counter,
):
    """Mean row and mean square distance to it, summed in float64 (see `pyclattn.reference.clustering`)."""
    cdef:
        const tile_isa *isa
        i64 depth = rows.shape[3], stride = rows.strides[2] // 4, task, head, first, c, d
        int64_t at, n
        double *total
        double *squares
        double spread

    with nogil:
        isa = current()
        total = <double *> new_floats(4 * depth)
        if total == NULL:
            with gil:
                raise MemoryError("no memory for one row")
        squares = total + depth
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0]:
                break
            head, first = tasks[task, 0], tasks[task, 1]
            for c in range(first, min(first + chunk, batches.shape[0])):
                at = member_offsets[head, c]
                n = member_offsets[head, c + 1] - at
                if n == 0:
                    continue
                for d in range(2 * depth):
                    total[d] = 0
                isa.sum_rows(&rows[batches[c], head, 0, 0], stride, &order[head, at], n, depth, total,
                             squares if spreads is not None else NULL)
                for d in range(depth):
                    means[head, c, d] = <float> (total[d] / n)
                if spreads is not None:
                    spread = 0
                    for d in range(depth):
                        spread += squares[d] / n - (total[d] / n) * (total[d] / n)
                    spreads[head, c] = <float> max(0.0, spread)
        free_floats(total)
