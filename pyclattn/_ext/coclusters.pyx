"""What co-clustered attention (`tails`) is prepared with: keys sorted by cluster, what each costs, and limits.

A sorted row is [key (D), its own logit (1), value (E)], logits in base 2: a panel whose coordinate D is 1 adds it to
the score.
"""

from libc.math cimport log2, log2f, sqrt
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from pyclattn._ext.isa cimport (
    TILE_KEYS, TILE_MASKED, current, draw_task, free_floats, i64, new_floats, padded, tile_isa, tile_prefetch,
    tile_prefetch_far,
)

cdef double LOG2E = 1.4426950408889634
# The limit of what takes nothing, the least size of distances, and what a distance's square counts at least.
cdef float NEVER = 3.402823466e38
cdef double TINY = 1.1754943508222875e-38, LEAST_SQUARE = 1e-3
cdef enum:
    DIGIT = 11  # bits
    SUMMED = 32  # rows that stay in the first cache


def covariances(
    const float[:, :, :, :] rows, const int64_t[:, ::1] spans, const int64_t[::1] index, const int64_t[:, ::1] tasks,
    float[:, :, :, ::1] out, int64_t[::1] counter,
):
    """Covariance of each sequence and head (see `pyclattn.reference.coclusters`)."""
    cdef:
        const tile_isa *isa
        float *memory
        float *s
        float *o
        float *ones
        float *x
        float *center
        double *mean
        const float *source
        i64 depth = rows.shape[3], stride = rows.strides[2] // 4, most = 0
        i64 lanes, task, sequence, head, first, used, vectors, k, d, n
        int64_t at, start, stop

    with nogil:
        isa = current()
        lanes = isa.lanes
        for task in range(spans.shape[0]):
            most = max(most, spans[task, 2] - spans[task, 1])
        memory = new_floats((TILE_KEYS + depth + 1) * padded(lanes) + 3 * padded(depth) + most * depth)
        if memory == NULL:
            with gil:
                raise MemoryError("no memory for one sample of rows")
        s, o = memory, memory + TILE_KEYS * padded(lanes)
        ones = o + depth * padded(lanes)
        mean = <double *> (ones + padded(lanes))
        center = <float *> mean + 2 * padded(depth)
        x = center + padded(depth)
        for k in range(lanes):
            ones[k] = 1
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0]:
                break
            sequence, head = tasks[task, 0], tasks[task, 1]
            start, stop = spans[sequence, 1], spans[sequence, 2]
            source, n = &rows[spans[sequence, 0], head, 0, 0], stop - start
            for d in range(depth):
                mean[d] = 0
            for at in range(start, stop):
                if at + 8 < stop:
                    tile_prefetch(source + index[at + 8] * stride, depth)
                memcpy(x + (at - start) * depth, source + index[at] * stride, depth * sizeof(float))
            isa.sum_rows(x, depth, NULL, n, depth, mean, NULL)
            for d in range(depth):
                center[d] = <float> (mean[d] / n)
            for k in range(n):
                for d in range(depth):
                    x[k * depth + d] -= center[d]
            first = 0
            while first < depth:  # as many columns at a time as a panel has lanes
                used = min(lanes, depth - first)
                vectors = (used + isa.vector - 1) // isa.vector
                memset(o, 0, depth * lanes * sizeof(float))
                memset(s, 0, TILE_KEYS * lanes * sizeof(float))
                at = 0
                while at < n:
                    for k in range(min(TILE_KEYS, n - at)):
                        memcpy(s + k * lanes, x + (at + k) * depth + first, used * sizeof(float))
                    isa.accumulate(x + at * depth, depth, min(TILE_KEYS, n - at), depth, s, vectors, ones, o)
                    at += TILE_KEYS
                isa.store(o, ones, used, depth, <float> (1.0 / n) if n > 0 else 0, NULL,
                          &out[sequence, head, first, 0], depth, NULL)
                first += used
        free_floats(memory)


def eigenvectors(
    const double[:, :, ::1] matrices, const int64_t[:, ::1] tasks, double[:, ::1] values, double[:, :, ::1] vectors,
    int64_t[::1] counter,
):
    """Eigenvalues of symmetric matrices, the largest first, and eigenvectors (see `pyclattn.reference.coclusters`)."""
    cdef:
        const tile_isa *isa
        double *a
        double *z
        double *work
        i64 size = matrices.shape[1], stride = padded(matrices.shape[1]), task, i
        int64_t matrix

    with nogil:
        isa = current()
        a = <double *> new_floats(2 * (2 * size + 4) * stride)
        if a == NULL:
            with gil:
                raise MemoryError("no memory for one matrix")
        z, work = a + size * stride, a + 2 * size * stride
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0]:
                break
            matrix = tasks[task, 0]
            memset(a, 0, size * stride * sizeof(double))
            for i in range(size):
                memcpy(a + i * stride, &matrices[matrix, i, 0], size * sizeof(double))
            isa.eigen(a, size, stride, z, work, work + stride)
            for i in range(size):
                memcpy(&vectors[matrix, i, 0], z + i * stride, size * sizeof(double))
            memcpy(&values[matrix, 0], work, size * sizeof(double))
        free_floats(a)


def sort_rows(
    const float[:, :, :, :] key, const float[:, :, :, :] value, const float[:, :, :] bias, const int64_t[::1] batches,
    const int64_t[:, ::1] order, const int64_t[:, ::1] member_offsets, const int64_t[:, ::1] tasks, i64 chunk,
    float[:, :, ::1] rows, float[:, :, ::1] means, int64_t[::1] counter,
):
    """Rows of keys and values, cluster by cluster, and their means (see `pyclattn.reference.coclusters`)."""
    cdef:
        const tile_isa *isa
        i64 depth = key.shape[3], width = value.shape[3], size = depth + 1 + width
        i64 k_stride = key.strides[2] // 4, v_stride = value.strides[2] // 4, task, head, first, c, d
        int64_t t, n, row, at, stop, last
        const float *keys
        const float *values
        float *to
        double *total

    with nogil:
        isa = current()
        total = <double *> new_floats(2 * size)
        if total == NULL:
            with gil:
                raise MemoryError("no memory for one row")
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0]:
                break
            head, first = tasks[task, 0], tasks[task, 1]
            for c in range(first, min(first + chunk, batches.shape[0])):
                last = member_offsets[head, c + 1]
                n = last - member_offsets[head, c]
                if n == 0:
                    continue
                keys, values = &key[batches[c], head, 0, 0], &value[batches[c], head, 0, 0]
                memset(total, 0, size * sizeof(double))
                at = member_offsets[head, c]
                while at < last:  # as many rows as stay in the first cache
                    stop = min(at + SUMMED, last)
                    for t in range(at, stop):
                        row = order[head, t]
                        if t + 8 < last:
                            tile_prefetch(keys + order[head, t + 8] * k_stride, depth)
                            tile_prefetch(values + order[head, t + 8] * v_stride, width)
                        to = &rows[head, t, 0]
                        memcpy(to, keys + row * k_stride, depth * sizeof(float))
                        to[depth] = <float> (LOG2E * bias[batches[c], head, row]) if bias is not None else 0
                        memcpy(to + depth + 1, values + row * v_stride, width * sizeof(float))
                    isa.sum_rows(&rows[head, at, 0], size, NULL, stop - at, size, total, NULL)
                    at = stop
                for d in range(size):
                    means[head, c, d] = <float> (total[d] / n)
        free_floats(total)


def moments(
    const float[:, :, ::1] rows, const int64_t[:, ::1] member_offsets, const float[:, :, ::1] means,
    const int64_t[::1] sequences, const float[:, :, :, ::1] axes, const int64_t[:, ::1] tasks, i64 chunk,
    float[:, :, ::1] slopes, float[:, :, ::1] squares, float[:, :, ::1] radii, int64_t[::1] counter,
):
    """Covariance of each key cluster's values with its keys on the axes (see `pyclattn.reference.coclusters`)."""
    cdef:
        const tile_isa *isa
        float *memory
        float *panel
        float *s
        float *o
        float *ones
        float *center
        float *square
        double *sums
        const float *mean
        i64 rank = axes.shape[2], depth = axes.shape[3], size = rows.shape[2], width = size - depth - 1
        i64 lanes, task, head, c, first, start, used, vectors, n, k, i
        int64_t at, stop

    with nogil:
        isa = current()
        lanes = isa.lanes
        memory = new_floats((depth + width + 2 * TILE_KEYS + 5) * padded(lanes) + 2 * TILE_KEYS)
        if memory == NULL:
            with gil:
                raise MemoryError("no memory for one block of moments")
        panel = memory
        o = panel + depth * padded(lanes)
        s = o + width * padded(lanes)
        ones = s + (2 * TILE_KEYS + 1) * padded(lanes)  # behind the scores' peaks
        center, square = ones + padded(lanes), ones + 2 * padded(lanes)
        sums = <double *> (square + padded(lanes))
        for i in range(lanes):
            ones[i] = 1
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0]:
                break
            head, first = tasks[task, 0], tasks[task, 1]
            for c in range(first, min(first + chunk, sequences.shape[0])):
                stop = member_offsets[head, c + 1]
                mean = &means[head, c, 0]
                start = 0
                while start < rank:  # a panel of axes at a time
                    used = min(lanes, rank - start)
                    vectors = (used + isa.vector - 1) // isa.vector
                    isa.load(&axes[sequences[c], head, start, 0], depth, NULL, used, depth, 1.0, panel)
                    isa.score(mean, size, 1, depth, panel, vectors, center, s)
                    memset(o, 0, width * lanes * sizeof(float))
                    memset(square, 0, lanes * sizeof(float))
                    at = member_offsets[head, c]
                    while at < stop:
                        n = min(TILE_KEYS, stop - at)
                        for k in range(n):
                            sums[k] = <double> radii[head, at + k, 0] * radii[head, at + k, 0] if start > 0 else 0
                        k = 0
                        while k < n:  # and rows of the next block, asked for meanwhile
                            for i in range(at + n + k, min(at + n + k + SUMMED, rows.shape[1])):
                                tile_prefetch_far(&rows[head, i, 0], size)
                            isa.score(&rows[head, at + k, 0], size, min(SUMMED, n - k), depth, panel, vectors,
                                      s + k * lanes, s + TILE_KEYS * lanes)
                            k += SUMMED
                        isa.take_off(s, n, vectors, center, square, sums)
                        isa.accumulate(&rows[head, at, depth + 1], size, n, width, s, vectors, ones, o)
                        for k in range(n):
                            radii[head, at + k, 0] = <float> sqrt(sums[k])
                        if start == 0:
                            memset(sums, 0, n * sizeof(double))
                            isa.add_squares(&rows[head, at, depth + 1], size, n, width, mean + depth + 1, sums)
                            for k in range(n):
                                radii[head, at + k, 1] = <float> sqrt(sums[k])
                        at += n
                    memcpy(&squares[head, c, start], square, used * sizeof(float))
                    n = stop - member_offsets[head, c]
                    if width > 0:
                        isa.store(o, ones, used, width, <float> (1.0 / n) if n > 0 else 0, NULL,
                                  &slopes[head, c, start * width], width, NULL)
                    start += used
        free_floats(memory)


def score_keys(
    const float[:, :, ::1] radii, const int64_t[:, ::1] spans, const int64_t[:, ::1] tasks, float[:, ::1] key_scores,
    int64_t[::1] counter,
):
    """log2 of the product of each key's two distances (see `pyclattn.reference.coclusters`)."""
    cdef:
        i64 task, head, k
        int64_t at, start, stop
        double[2] sizes
        double x, y

    with nogil:
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0]:
                break
            head, start, stop = tasks[task, 1], spans[tasks[task, 0], 1], spans[tasks[task, 0], 2]
            for k in range(2):
                sizes[k] = 0
                for at in range(start, stop):
                    sizes[k] += <double> radii[head, at, k] * radii[head, at, k]
                sizes[k] = sqrt(sizes[k] / max(1, stop - start))
                if sizes[k] < TINY:  # not so where it is NaN
                    sizes[k] = TINY
            for at in range(start, stop):
                x, y = radii[head, at, 0] / sizes[0], radii[head, at, 1] / sizes[1]
                # one logarithm for both
                x = (x * x + LEAST_SQUARE) * (y * y + LEAST_SQUARE)
                key_scores[head, at] = <float> (0.5 * log2(x) + log2(sizes[0]) + log2(sizes[1]))


def weigh(
    const float[:, :, ::1] centroids, const int64_t[::1] cluster_offsets, const float[:, :, ::1] rows,
    const int64_t[:, ::1] spans, const int64_t[:, ::1] tasks, i64 chunk, float[:, :, ::1] sample,
    float[:, ::1] logs, int64_t[::1] counter,
):
    """Scores of a sample of the keys, and log2 of the mass they stand for (see `pyclattn.reference.coclusters`)."""
    cdef:
        const tile_isa *isa
        float *memory
        float *panel
        float *gathered
        float *s
        float *peaks
        float *alpha
        float *m
        float *mass
        i64 depth = centroids.shape[2], n_samples = sample.shape[2]
        i64 lanes, task, sequence, head, first, stop, n, k, at, lane, used, vectors
        int64_t start, n_keys

    with nogil:
        isa = current()
        lanes = isa.lanes
        memory = new_floats((depth + 2 * TILE_KEYS + 4) * padded(lanes) + TILE_KEYS * depth)
        if memory == NULL:
            with gil:
                raise MemoryError("no memory for one block of centroids")
        panel = memory
        s = panel + depth * padded(lanes)
        peaks = s + TILE_KEYS * padded(lanes)
        m = peaks + (TILE_KEYS + 1) * padded(lanes)
        mass, alpha = m + padded(lanes), m + 2 * padded(lanes)
        gathered = m + 3 * padded(lanes)
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0]:
                break
            sequence, head, first = tasks[task, 0], tasks[task, 1], tasks[task, 2]
            start, n_keys = spans[sequence, 1], spans[sequence, 2] - spans[sequence, 1]
            stop = min(first + chunk, cluster_offsets[sequence + 1])
            while first < stop:
                used = min(lanes, stop - first)
                vectors = (used + isa.vector - 1) // isa.vector
                isa.load(&centroids[head, first, 0], depth, NULL, used, depth, 1.0, panel)
                for lane in range(lanes):
                    m[lane], mass[lane] = TILE_MASKED, 0
                at = 0
                while at < n_samples:
                    n = min(TILE_KEYS, n_samples - at)
                    for k in range(n):
                        if at + k + 8 < n_samples:
                            tile_prefetch(&rows[head, start + (at + k + 8) * n_keys // n_samples, 0], depth)
                        memcpy(gathered + k * depth, &rows[head, start + (at + k) * n_keys // n_samples, 0],
                               depth * sizeof(float))
                    isa.score(gathered, depth, n, depth, panel, vectors, s, peaks)
                    for lane in range(used):
                        for k in range(n):
                            sample[head, first + lane, at + k] = s[k * lanes + lane]
                    isa.soften(s, n, peaks, vectors, m, mass, alpha)
                    at += n
                for lane in range(used):
                    logs[head, first + lane] = m[lane] + log2f(mass[lane] * <float> n_keys / n_samples)
                first += used
        free_floats(memory)


cdef float of_rank(uint32_t rank) noexcept nogil:
    """The float of this rank, a whole number in the order of the floats."""
    cdef uint32_t bits = rank & <uint32_t> 0x7fffffff if rank >> 31 else ~rank
    cdef float x
    memcpy(&x, &bits, 4)
    return x


cdef int64_t digit_below(const int64_t *weights, int64_t digit, int64_t most, int64_t *above) noexcept nogil:
    """The first digit, from the largest down, whose weight makes what is above more than `most`."""
    while digit > 0 and above[0] + weights[digit] <= most:
        above[0] += weights[digit]
        digit -= 1
    return digit


cdef uint32_t bound_above(
    const tile_isa *isa, const float[:, :, ::1] sample, const float[:, ::1] logs, const float[:, ::1] spreads,
    const float *own, const int64_t[:, ::1] member_offsets, i64 first, i64 last, int64_t most, int64_t *weights,
) noexcept nogil:
    """Rank of the least error that pairs of queries and keys with a weight of at most `most` are above.

    Its digits are found from the first on, each by the weights of all that begins with what is found. What those seen
    so far prove to be too little is not counted."""
    cdef i64 head, c, i, n_samples = sample.shape[2]
    cdef int shift = 32, bits
    cdef uint32_t found = 0, least, span
    cdef int64_t size, above = 0, so_far
    while shift > 0:
        bits = min(DIGIT, shift)
        least, span = found, <uint32_t> ((<uint64_t> 1 << shift) - 1)
        shift -= bits
        memset(weights, 0, (1 << bits) * sizeof(int64_t))
        for head in range(sample.shape[0]):
            for c in range(first, last):
                size = member_offsets[head, c + 1] - member_offsets[head, c]
                isa.weigh_ranks(&sample[head, c, 0], own + head * n_samples, spreads[head, c] - logs[head, c],
                                n_samples, least, span, shift, size, weights + ((least - found) >> shift))
                if c % 16 == 0:
                    so_far = above
                    i = digit_below(weights, (1 << bits) - 1, most, &so_far)
                    span -= found + (<uint32_t> i << shift) - least
                    least = found + (<uint32_t> i << shift)
        found |= <uint32_t> digit_below(weights, (1 << bits) - 1, most, &above) << shift
    return found


def thresholds(
    const float[:, :, ::1] sample, const float[:, ::1] logs, const float[:, ::1] spreads,
    const float[:, ::1] key_scores, const int64_t[::1] cluster_offsets, const int64_t[:, ::1] member_offsets,
    const int64_t[:, ::1] spans, const float[::1] share, const int64_t[:, ::1] tasks, float[:, ::1] limits,
    int64_t[::1] counter,
):
    """Each cluster's limit, from one threshold a sequence (see `pyclattn.reference.coclusters`)."""
    cdef:
        const tile_isa *isa
        float *own
        int64_t *weights
        i64 n_heads = sample.shape[0], n_samples = sample.shape[2], task, sequence, head, first, last, c, i
        int64_t start, n, total, most
        float threshold

    with nogil:
        isa = current()
        weights = <int64_t *> new_floats((2 << DIGIT) + n_heads * n_samples)
        if weights == NULL:
            with gil:
                raise MemoryError("no memory for the scores of sampled keys")
        own = <float *> (weights + (1 << DIGIT))
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0]:
                break
            sequence = tasks[task, 0]
            start, n = spans[sequence, 1], spans[sequence, 2] - spans[sequence, 1]
            first, last = cluster_offsets[sequence], cluster_offsets[sequence + 1]
            total = 0
            for head in range(n_heads):
                total += (member_offsets[head, last] - member_offsets[head, first]) * n_samples
                for i in range(n_samples):
                    own[head * n_samples + i] = key_scores[head, start + i * n // n_samples]
            most = <int64_t> (<double> share[sequence] * <double> total)
            threshold = -NEVER
            if most < total:
                threshold = of_rank(
                    bound_above(isa, sample, logs, spreads, own, member_offsets, first, last, most, weights))
            for head in range(n_heads):
                for c in range(first, last):
                    if member_offsets[head, c + 1] > member_offsets[head, c]:
                        limits[head, c] = threshold - (spreads[head, c] - logs[head, c])
                    else:
                        limits[head, c] = NEVER
        free_floats(weights)
