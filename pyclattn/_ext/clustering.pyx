"""Clustering kernels that read the caller's rows: sign codes, nearest centroids, means."""

from libc.math cimport sqrt
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free

from pyclattn._ext.isa cimport TILE_KEYS, TILE_MASKED, current, draw_task, new_floats, padded, tile_isa, tile_prefetch


cdef uint64_t exact_code(const float *row, const float *planes, long n_bits, long depth) noexcept nogil:
    """The code in float64."""
    cdef uint64_t code = 0
    cdef double dot
    cdef long b, d
    for b in range(n_bits):
        dot = 0
        for d in range(depth):
            dot += <double> row[d] * planes[b * (depth + 1) + d]
        if dot > planes[b * (depth + 1) + depth]:
            code |= <uint64_t> 1 << b
    return code


def hash_rows(
    const float[:, :, :, :] rows, const int64_t[:, ::1] spans, const int64_t[::1] index, const float[:, ::1] planes,
    const int64_t[:, ::1] tasks, long chunk, uint64_t[:, ::1] codes, int64_t[::1] counter,
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
        long depth = rows.shape[3], stride = rows.strides[2] // 4, n_bits = planes.shape[0]
        long task, sequence, head, batch, n, vectors, i, d, b, lanes
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
        free(memory)


def nearest_assign(
    const float[:, :, :, :] rows, const int64_t[:, ::1] spans, const int64_t[::1] index,
    const float[:, :, ::1] centroids, const int64_t[::1] cluster_offsets, const float[:, :, :, ::1] axes,
    const int64_t[:, ::1] tasks, long chunk, int32_t[:, ::1] labels, int64_t[::1] counter,
):
    """Label each row with its nearest centroid, along the axes if given (see `pyclattn.reference.clustering`)."""
    cdef:
        const tile_isa *isa
        float *memory
        float *panel
        float *s
        float *peaks
        float *best
        int32_t *lane_labels
        float *half_norms
        float *shadows       # the centroids on the axes
        float *shadow_panel  # the rows
        float *ones
        float *place
        const float *centers
        long depth = rows.shape[3], stride = rows.strides[2] // 4, rank = depth if axes is None else axes.shape[2]
        long task, sequence, head, batch, n, vectors, i, c, d, lanes, first, n_clusters, done
        int64_t at, stop
        double norm
        long most = 0

    with nogil:
        isa = current()
        lanes = isa.lanes
        for i in range(cluster_offsets.shape[0] - 1):
            most = max(most, cluster_offsets[i + 1] - cluster_offsets[i])
        memory = new_floats((depth + rank + 2 * TILE_KEYS + 1 + 3) * padded(lanes) + padded(most) + most * rank)
        if memory == NULL:
            with gil:
                raise MemoryError("no memory for one block of k-means")
        panel = memory
        s = panel + depth * padded(lanes)
        peaks = s + TILE_KEYS * padded(lanes)
        best = peaks + (TILE_KEYS + 1) * padded(lanes)
        lane_labels = <int32_t *> (best + padded(lanes))
        ones = <float *> lane_labels + padded(lanes)
        half_norms = ones + padded(lanes)
        shadow_panel = half_norms + padded(most)
        shadows = shadow_panel + rank * padded(lanes)
        for i in range(lanes):
            ones[i] = 1
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0]:
                break
            sequence, head, at = tasks[task, 0], tasks[task, 1], tasks[task, 2]
            batch, stop = spans[sequence, 0], min(spans[sequence, 2], at + chunk)
            first = cluster_offsets[sequence]
            n_clusters = cluster_offsets[sequence + 1] - first
            centers = &centroids[head, first, 0] if n_clusters > 0 else NULL
            if axes is not None:
                c = 0
                while c < n_clusters:
                    n = min(lanes, n_clusters - c)
                    isa.load(centers + c * depth, depth, NULL, n, depth, 1.0, panel)
                    isa.score(&axes[sequence, head, 0, 0], depth, rank, depth, panel,
                              (n + isa.vector - 1) // isa.vector, shadow_panel, peaks)
                    isa.store(shadow_panel, ones, n, rank, 1.0, NULL, shadows + c * rank, rank, NULL)
                    c += n
                centers = shadows
            for c in range(n_clusters):
                norm = 0
                for d in range(rank):
                    norm += <double> centers[c * rank + d] * centers[c * rank + d]
                half_norms[c] = <float> (0.5 * norm)
            while at < stop:
                n = min(lanes, stop - at)
                vectors = (n + isa.vector - 1) // isa.vector
                isa.load(&rows[batch, head, 0, 0], stride, &index[at], n, depth, 1.0, panel)
                place = panel
                if axes is not None:
                    isa.score(&axes[sequence, head, 0, 0], depth, rank, depth, panel, vectors, shadow_panel, peaks)
                    place = shadow_panel
                for i in range(lanes):
                    best[i], lane_labels[i] = 2 * TILE_MASKED, 0
                done = 0
                while done < n_clusters:
                    c = min(TILE_KEYS, n_clusters - done)
                    isa.score(centers + done * rank, rank, c, rank, place, vectors, s, peaks)
                    isa.nearest(s, c, vectors, half_norms + done, <int32_t> done, best, lane_labels)
                    done += c
                for i in range(n):
                    labels[head, at + i] = lane_labels[i]
                at += n
        free(memory)


def cluster_means(
    const float[:, :, :, :] rows, const int64_t[::1] batches, const int64_t[:, ::1] order,
    const int64_t[:, ::1] member_offsets, const int64_t[:, ::1] tasks, long chunk, float[:, :, ::1] means,
    float[:, ::1] spreads, int64_t[::1] counter,
):
    """Mean row and mean square distance to it, summed in float64 (see `pyclattn.reference.clustering`)."""
    cdef:
        long depth = rows.shape[3], stride = rows.strides[2] // 4, task, head, first, c, d
        int64_t t, n
        const float *source
        const float *row
        double *total
        double *squares
        double spread

    with nogil:
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
                n = member_offsets[head, c + 1] - member_offsets[head, c]
                if n == 0:
                    continue
                source = &rows[batches[c], head, 0, 0]
                for d in range(2 * depth):
                    total[d] = 0
                for t in range(member_offsets[head, c], member_offsets[head, c + 1]):
                    row = source + order[head, t] * stride
                    if t + 8 < member_offsets[head, c + 1]:
                        tile_prefetch(source + order[head, t + 8] * stride, depth)
                    for d in range(depth):
                        total[d] += row[d]
                    if spreads is not None:
                        for d in range(depth):
                            squares[d] += <double> row[d] * row[d]
                for d in range(depth):
                    means[head, c, d] = <float> (total[d] / n)
                if spreads is not None:
                    spread = 0
                    for d in range(depth):
                        spread += squares[d] / n - (total[d] / n) * (total[d] / n)
                    spreads[head, c] = <float> max(0.0, spread)
        free(total)
