"""Kernels of co-clustered attention over panels (tile.h): keys sorted by cluster, their moments, and the attention.

A sorted row is [key (D), its own logit (1), value (E)], logits in base 2: a panel whose coordinate D is 1 adds it to
the score. The tail, one mean row a cluster of keys, has the same shape, so that each query sees one list of rows.
"""

from libc.math cimport exp2f, log2, log2f, sqrt
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from pyclattn._ext.isa cimport (
    TILE_KEYS, TILE_MASKED, bfloat16, current, draw_task, free_floats, i64, new_floats, padded, tile_isa, tile_lists,
    tile_prefetch,
)

cdef double LOG2E = 1.4426950408889634
# A cluster whose keys are all so far below one that is taken has no tail (2^-90): dividing by less may overflow.
cdef float LEAST_MASS = 8.0e-28
# The limit of what takes nothing, the least size of distances, and what a distance's square counts at least.
cdef float NEVER = 3.402823466e38
cdef double TINY = 1.1754943508222875e-38, LEAST_SQUARE = 1e-3
# Panels of one cluster's members that share a gathered block of rows.
cdef enum:
    SHARED = 4
    HALF = 1 << 16  # numbers that half of a float's bits can be


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
        memory = new_floats((TILE_KEYS + depth + 1) * padded(lanes) + 2 * padded(depth) + most * depth)
        if memory == NULL:
            with gil:
                raise MemoryError("no memory for one sample of rows")
        s, o = memory, memory + TILE_KEYS * padded(lanes)
        ones = o + depth * padded(lanes)
        mean = <double *> (ones + padded(lanes))
        x = <float *> mean + 2 * padded(depth)
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
                for d in range(depth):
                    mean[d] += x[(at - start) * depth + d]
            for k in range(n):
                for d in range(depth):
                    x[k * depth + d] -= <float> (mean[d] / n)
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


def sort_rows(
    const float[:, :, :, :] key, const float[:, :, :, :] value, const float[:, :, :] bias, const int64_t[::1] batches,
    const int64_t[:, ::1] order, const int64_t[:, ::1] member_offsets, const int64_t[:, ::1] tasks, i64 chunk,
    float[:, :, ::1] rows, float[:, :, ::1] means, int64_t[::1] counter,
):
    """Rows of keys and values, cluster by cluster, and their means (see `pyclattn.reference.coclusters`)."""
    cdef:
        i64 depth = key.shape[3], width = value.shape[3], size = depth + 1 + width
        i64 k_stride = key.strides[2] // 4, v_stride = value.strides[2] // 4, task, head, first, c, d
        int64_t t, n, row, last
        const float *keys
        const float *values
        float *to
        double *total

    with nogil:
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
                for t in range(member_offsets[head, c], last):
                    row = order[head, t]
                    if t + 8 < last:
                        tile_prefetch(keys + order[head, t + 8] * k_stride, depth)
                        tile_prefetch(values + order[head, t + 8] * v_stride, width)
                    to = &rows[head, t, 0]
                    memcpy(to, keys + row * k_stride, depth * sizeof(float))
                    to[depth] = <float> (LOG2E * bias[batches[c], head, row]) if bias is not None else 0
                    memcpy(to + depth + 1, values + row * v_stride, width * sizeof(float))
                    for d in range(size):
                        total[d] += to[d]
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
        const float *row
        const float *mean
        i64 rank = axes.shape[2], depth = axes.shape[3], size = rows.shape[2], width = size - depth - 1
        i64 lanes, task, head, c, first, start, used, vectors, n, k, i, d
        int64_t at, stop
        double total
        float x

    with nogil:
        isa = current()
        lanes = isa.lanes
        memory = new_floats((depth + width + 2 * TILE_KEYS + 4) * padded(lanes))
        if memory == NULL:
            with gil:
                raise MemoryError("no memory for one block of moments")
        panel = memory
        o = panel + depth * padded(lanes)
        s = o + width * padded(lanes)
        ones = s + (2 * TILE_KEYS + 1) * padded(lanes)  # behind the scores' peaks
        center = ones + padded(lanes)
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
                for at in range(member_offsets[head, c], stop):
                    row = &rows[head, at, 0]
                    total = 0
                    for d in range(depth + 1, size):
                        x = row[d] - mean[d]
                        total += <double> x * x
                    radii[head, at, 0], radii[head, at, 1] = 0, <float> sqrt(total)
                start = 0
                while start < rank:  # a panel of axes at a time
                    used = min(lanes, rank - start)
                    vectors = (used + isa.vector - 1) // isa.vector
                    isa.load(&axes[sequences[c], head, start, 0], depth, NULL, used, depth, 1.0, panel)
                    isa.score(mean, size, 1, depth, panel, vectors, center, s)
                    memset(o, 0, width * lanes * sizeof(float))
                    for i in range(used):
                        squares[head, c, start + i] = 0
                    at = member_offsets[head, c]
                    while at < stop:
                        n = min(TILE_KEYS, stop - at)
                        isa.score(&rows[head, at, 0], size, n, depth, panel, vectors, s, s + TILE_KEYS * lanes)
                        for k in range(n):
                            total = 0
                            for i in range(used):
                                x = s[k * lanes + i] - center[i]
                                s[k * lanes + i] = x
                                squares[head, c, start + i] += x * x
                                total += <double> x * x
                            x = radii[head, at + k, 0]
                            radii[head, at + k, 0] = <float> sqrt(<double> x * x + total)
                        isa.accumulate(&rows[head, at, depth + 1], size, n, width, s, vectors, ones, o)
                        at += n
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


cdef struct Block:
    const float *keys
    const float *values
    i64 key_stride, value_stride, n, depth


cdef uint32_t rank_of(float x) noexcept nogil:
    """A whole number in the order of the floats."""
    cdef uint32_t bits
    memcpy(&bits, &x, 4)
    return bits ^ (<uint32_t> -<int32_t> (bits >> 31) | <uint32_t> 0x80000000)


cdef float of_rank(uint32_t rank) noexcept nogil:
    """The float of this rank."""
    cdef uint32_t bits = rank & <uint32_t> 0x7fffffff if rank >> 31 else ~rank
    cdef float x
    memcpy(&x, &bits, 4)
    return x


cdef uint32_t bound_above(
    const float[:, :, ::1] sample, const float[:, ::1] logs, const float[:, ::1] spreads, const float *own,
    const int64_t[:, ::1] member_offsets, i64 first, i64 last, int64_t most, int64_t *weights,
    uint32_t *ranks,
) noexcept nogil:
    """Rank of the least error that pairs of queries and keys with a weight of at most `most` are above.

    Its upper half is found first, then its lower, by the weights of all that begins with what is found."""
    cdef i64 head, c, i, digit, n_samples = sample.shape[2]
    cdef int shift = 32
    cdef uint32_t found = 0
    cdef int64_t size, above = 0
    cdef float offset
    while shift > 0:
        shift -= 16
        memset(weights, 0, HALF * sizeof(int64_t))
        for head in range(sample.shape[0]):
            for c in range(first, last):
                size = member_offsets[head, c + 1] - member_offsets[head, c]
                offset = spreads[head, c] - logs[head, c]
                for i in range(n_samples):
                    ranks[i] = rank_of((sample[head, c, i] + own[head * n_samples + i]) + offset)
                for i in range(n_samples):
                    if <uint64_t> ranks[i] >> (shift + 16) == <uint64_t> found >> (shift + 16):
                        weights[(ranks[i] >> shift) & (HALF - 1)] += size
        digit = HALF - 1
        while digit > 0 and above + weights[digit] <= most:
            above += weights[digit]
            digit -= 1
        found |= <uint32_t> digit << shift
    return found


def thresholds(
    const float[:, :, ::1] sample, const float[:, ::1] logs, const float[:, ::1] spreads,
    const float[:, ::1] key_scores, const int64_t[::1] cluster_offsets, const int64_t[:, ::1] member_offsets,
    const int64_t[:, ::1] spans, const float[::1] share, const int64_t[:, ::1] tasks, float[:, ::1] limits,
    int64_t[::1] counter,
):
    """Each cluster's limit, from one threshold a sequence (see `pyclattn.reference.coclusters`)."""
    cdef:
        float *own
        uint32_t *ranks
        int64_t *weights
        i64 n_heads = sample.shape[0], n_samples = sample.shape[2], task, sequence, head, first, last, c, i
        int64_t start, n, total, most
        float threshold

    with nogil:
        weights = <int64_t *> new_floats(2 * HALF + (n_heads + 1) * n_samples)
        if weights == NULL:
            with gil:
                raise MemoryError("no memory for the scores of sampled keys")
        own = <float *> (weights + HALF)
        ranks = <uint32_t *> own + n_heads * n_samples
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
                    bound_above(sample, logs, spreads, own, member_offsets, first, last, most, weights, ranks))
            for head in range(n_heads):
                for c in range(first, last):
                    if member_offsets[head, c + 1] > member_offsets[head, c]:
                        limits[head, c] = threshold - (spreads[head, c] - logs[head, c])
                    else:
                        limits[head, c] = NEVER
        free_floats(weights)


cdef struct Buffers:
    const tile_isa *isa
    const tile_isa *taken  # of the rows that are taken exactly: the same, or products of bfloat16
    i64 lanes, depth, width, size, rank  # depth counts the own logit: D + 1
    # of a panel of centroids
    float *panel        # [depth][lanes]
    float *o            # [size][lanes]
    float *limits       # [lanes], as the five below
    float *top          # largest score of one cluster of keys
    float *mass         # sum of 2^(score - top)
    float *peak         # largest score of all keys
    float *total        # their sum
    float *ones
    float *tops         # [key clusters][lanes]
    float *masses       # [key clusters][lanes]
    float *bend         # [rank * width][lanes]
    float *slopes       # [lanes][rank][width]
    float *tails        # [lanes][key clusters + 1][size]; the last row of a lane is for what nobody reads
    float *centers      # [rank][lanes]: the centroids on the axes
    int64_t *places     # [lanes]
    i64 *n_tail        # [lanes]
    tile_lists lists
    # of a cluster's members
    float *members      # SHARED of [depth][lanes], [width][lanes], 4 x [lanes], and for pairs [n_words][lanes]
    size_t member_size
    i64 n_words        # of a packed query or key: the coordinates, and two halves of the own logit
    float *s
    float *peaks
    float *alpha
    float *u            # [rank][lanes]
    float *gathered     # [TILE_KEYS][size], for pairs [TILE_KEYS][2 * n_words + width]
    float *keys         # for pairs: [TILE_KEYS][n_words]
    float *values       # for pairs: [TILE_KEYS / 2][width]
    float *center       # [rank]
    float *memory


cdef float *cut(float **place, size_t n_floats) noexcept nogil:
    """The next piece of a buffer."""
    cdef float *piece = place[0]
    place[0] += padded(n_floats)
    return piece


cdef size_t lay_out(Buffers *w, float *memory, i64 n_clusters) noexcept nogil:
    """Cut the memory into buffers; the floats that takes."""
    cdef size_t lanes = padded(w.lanes)
    cdef float *place = memory
    w.panel = cut(&place, w.depth * lanes)
    w.o = cut(&place, w.size * lanes)
    w.limits, w.top, w.mass = cut(&place, lanes), cut(&place, lanes), cut(&place, lanes)
    w.peak, w.total, w.ones = cut(&place, lanes), cut(&place, lanes), cut(&place, lanes)
    w.tops, w.masses = cut(&place, n_clusters * lanes), cut(&place, n_clusters * lanes)
    w.bend = cut(&place, w.rank * w.width * lanes)
    w.slopes = cut(&place, lanes * w.rank * w.width)
    w.tails = cut(&place, lanes * (n_clusters + 1) * w.size)
    w.centers = cut(&place, w.rank * lanes)
    w.places, w.n_tail = <int64_t *> cut(&place, 2 * lanes), <i64 *> cut(&place, 2 * lanes)
    w.lists.counts = <i64 *> cut(&place, 2 * lanes)
    w.members = cut(&place, SHARED * w.member_size)
    w.s, w.peaks = cut(&place, TILE_KEYS * lanes), cut(&place, (TILE_KEYS + 1) * lanes)
    w.alpha, w.u = cut(&place, lanes), cut(&place, w.rank * lanes)
    w.gathered, w.center = cut(&place, TILE_KEYS * (2 * w.n_words + w.size)), cut(&place, w.rank)
    w.keys, w.values = cut(&place, TILE_KEYS * w.n_words), cut(&place, TILE_KEYS * w.width if w.n_words else 0)
    return place - memory


cdef bint buffers_new(Buffers *w, const tile_isa *taken, i64 depth, i64 size, i64 rank, i64 n_clusters,
                      i64 n_keys) noexcept nogil:
    """Buffers for one thread, with room for the longest sequence; False where memory is out."""
    cdef i64 i
    w.isa, w.taken = current(), taken
    w.lanes, w.depth, w.size, w.rank, w.width = w.isa.lanes, depth, size, rank, size - depth
    w.n_words = depth // 2 + 1 if taken.pair > 1 else 0
    w.member_size = (depth + w.width + 4 + w.n_words) * padded(w.lanes)
    w.memory = new_floats(lay_out(w, NULL, n_clusters))
    w.lists.room = padded(n_keys)
    w.lists.rows = <int32_t *> new_floats(w.lanes * w.lists.room)  # pages that are not touched cost nothing
    if w.memory == NULL or w.lists.rows == NULL:
        free_floats(w.memory)
        free_floats(w.lists.rows)
        return False
    lay_out(w, w.memory, n_clusters)
    for i in range(w.lanes):
        w.ones[i] = 1
    return True


cdef void share_masses(Buffers *w, i64 n_clusters) noexcept nogil:
    """The clusters' masses beneath one maximum, and their sum."""
    cdef i64 j, lane
    memset(w.total, 0, w.lanes * sizeof(float))
    for j in range(n_clusters):
        for lane in range(w.lanes):
            w.masses[j * w.lanes + lane] *= exp2f(min(0.0, max(-100.0, w.tops[j * w.lanes + lane] - w.peak[lane])))
            w.total[lane] += w.masses[j * w.lanes + lane]


cdef void divide_keys(Buffers *w, const float *rows, const float *key_scores, const int64_t *bounds, i64 n_clusters,
                      const float *slopes, const float *axes, i64 n) noexcept nogil:
    """For each of `n` centroids of the panel: the rows it takes, and of the others a mean row a cluster and a slope."""
    cdef i64 j, lane, k, vectors = (n + w.isa.vector - 1) // w.isa.vector, lanes = w.lanes
    cdef int64_t at, stop
    w.isa.score(axes, w.depth - 1, w.rank, w.depth - 1, w.panel, vectors, w.centers, w.peaks)
    memset(w.lists.counts, 0, lanes * sizeof(i64))
    memset(w.n_tail, 0, lanes * sizeof(i64))
    for lane in range(lanes):
        w.peak[lane] = TILE_MASKED
    for j in range(n_clusters):
        memset(w.o, 0, w.size * lanes * sizeof(float))
        for lane in range(lanes):
            w.top[lane], w.mass[lane] = TILE_MASKED, 0
        at, stop = bounds[j], bounds[j + 1]
        while at < stop:
            k = min(TILE_KEYS, stop - at)
            w.isa.score(rows + at * w.size, w.size, k, w.depth, w.panel, vectors, w.s, w.peaks)
            w.isa.part(w.s, k, w.peaks, key_scores + at, vectors, w.limits, <int32_t> at, &w.lists, w.top, w.mass,
                       w.alpha)
            w.isa.accumulate(rows + at * w.size, w.size, k, w.size, w.s, vectors, w.alpha, w.o)
            at += k
        w.isa.tail(w.o, w.panel, w.depth - 1, vectors, w.mass, w.top)
        memcpy(w.tops + j * lanes, w.top, lanes * sizeof(float))
        for lane in range(lanes):
            w.mass[lane] = w.mass[lane] if w.mass[lane] > LEAST_MASS else 0
            w.masses[j * lanes + lane] = w.mass[lane]
        for lane in range(n):
            if w.mass[lane] > 0:
                w.peak[lane] = max(w.peak[lane], w.top[lane])
                w.places[lane] = lane * (n_clusters + 1) + w.n_tail[lane]
                w.n_tail[lane] += 1
            else:
                w.places[lane] = lane * (n_clusters + 1) + n_clusters
        w.isa.store(w.o, w.mass, n, w.size, 1.0, NULL, w.tails, w.size, w.places)
    share_masses(w, n_clusters)
    memset(w.bend, 0, w.rank * w.width * lanes * sizeof(float))
    at = 0
    while at < n_clusters:
        k = min(TILE_KEYS, n_clusters - at)
        w.isa.accumulate(slopes + at * w.rank * w.width, w.rank * w.width, k, w.rank * w.width,
                         w.masses + at * lanes, vectors, w.ones, w.bend)
        at += k
    w.isa.store(w.bend, w.total, n, w.rank * w.width, 1.0, NULL, w.slopes, w.rank * w.width, NULL)


cdef void step(Buffers *w, const tile_isa *isa, const float *queries, float *o, const Block *b,
               i64 vectors) noexcept nogil:
    """Members of one panel attend to a block of rows; behind their sums `o` lie their maxima and masses."""
    cdef float *m = o + w.width * padded(w.lanes)
    isa.score(b.keys, b.key_stride, b.n, b.depth, queries, vectors, w.s, w.peaks)
    isa.soften(w.s, b.n, w.peaks, vectors, m, m + padded(w.lanes), w.alpha)
    isa.accumulate(b.values, b.value_stride, b.n, w.width, w.s, vectors, w.alpha, o)


cdef Block rows_at(Buffers *w, const float *rows, i64 n) noexcept nogil:
    cdef Block b
    b.keys, b.values, b.key_stride, b.value_stride, b.n, b.depth = rows, rows + w.depth, w.size, w.size, n, w.depth
    return b


cdef Block gather(Buffers *w, const float *rows, const int32_t *taken, i64 n, i64 n_ahead) noexcept nogil:
    """`n` rows side by side, as the table takes them; `n_ahead` of the list are left."""
    cdef:
        Block b
        i64 k, depth = w.depth - 1, stride = w.size
        float *to = w.gathered
        const float *row
        uint32_t bits
    if w.n_words > 0:
        stride = 2 * w.n_words + w.width
    for k in range(n):
        if k + 8 < n_ahead:
            tile_prefetch(rows + taken[k + 8] * w.size, w.size)
        row = rows + taken[k] * w.size
        if w.n_words == 0:
            memcpy(to, row, w.size * sizeof(float))
        else:
            memcpy(to, row, depth * sizeof(float))
            to[depth] = 0  # where the depth is odd
            memcpy(&bits, row + depth, sizeof(float))
            bits &= 0xffff0000u  # the own logit's upper half is a bfloat16, the rest is nearly one
            memcpy(to + 2 * w.n_words - 2, &bits, sizeof(float))
            to[2 * w.n_words - 1] = row[depth] - to[2 * w.n_words - 2]
            memcpy(to + 2 * w.n_words, row + w.depth, w.width * sizeof(float))
        to += stride
    if w.n_words == 0:
        return rows_at(w, w.gathered, n)
    w.taken.pack_rows(w.gathered, stride, NULL, n, 2 * w.n_words, w.keys)
    w.taken.pack_columns(w.gathered + 2 * w.n_words, stride, NULL, n, w.width, w.values)
    b.keys, b.values, b.key_stride, b.value_stride = w.keys, w.values, w.n_words, w.width
    b.n, b.depth = n, 2 * w.n_words
    return b


cdef void member_begin(Buffers *w, float *member, const float *query, i64 q_stride, const int64_t *members, i64 n,
                       float factor) noexcept nogil:
    """Load a panel of members, whose own logits count as they are, and clear their sums."""
    cdef:
        i64 lanes = w.lanes, i
        float *o = member + w.depth * padded(lanes)
        float *m = o + w.width * padded(lanes)
        float *words = m + 4 * padded(lanes)
        uint32_t ones = 0x3f803f80u
    w.isa.load(query, q_stride, members, n, w.depth - 1, factor, member)
    for i in range(lanes):
        member[(w.depth - 1) * lanes + i] = 1
        m[i], m[padded(lanes) + i] = TILE_MASKED, 0
    memset(o, 0, w.width * lanes * sizeof(float))
    if w.n_words > 0:
        w.taken.pack_columns(member, lanes, NULL, w.depth - 1, lanes, words)
        for i in range(lanes):
            memcpy(words + (w.n_words - 1) * lanes + i, &ones, sizeof(float))


cdef void attend_lane(Buffers *w, i64 lane, const float *rows, const float *query, i64 q_stride,
                      const int64_t *members, i64 n_members, float factor, const float *axes, const float *spreads,
                      const float *tail, float *out, i64 o_stride) noexcept nogil:
    """The members of the cluster in this lane: its tail first, then its rows, then the slopes."""
    cdef:
        Block b
        i64 first = 0, n_panels, i, n, k, vectors, at, n_rows = w.lists.counts[lane], lanes = w.lanes
        size_t at_o = w.depth * padded(lanes), at_m = at_o + w.width * padded(lanes)
        size_t at_taken = at_m + 4 * padded(lanes) if w.n_words else 0
        const int32_t *taken = w.lists.rows + lane * w.lists.room
        float *member
        float *o
        float *m
    for k in range(w.rank):
        w.center[k] = w.centers[k * lanes + lane]
    while first < n_members:
        n_panels = min(SHARED, (n_members - first + lanes - 1) // lanes)
        for i in range(n_panels):
            member = w.members + i * w.member_size
            m = member + at_m
            n = min(lanes, n_members - first - i * lanes)
            member_begin(w, member, query, q_stride, members + first + i * lanes, n, factor)
            at = 0
            while at < w.n_tail[lane]:
                b = rows_at(w, tail + at * w.size, min(TILE_KEYS, w.n_tail[lane] - at))
                step(w, w.isa, member, member + at_o, &b, (n + w.isa.vector - 1) // w.isa.vector)
                at += b.n
            memcpy(m + 2 * padded(lanes), m, 2 * padded(lanes) * sizeof(float))  # what the tail came to
        at = 0
        while at < n_rows:
            b = gather(w, rows, taken + at, min(TILE_KEYS, n_rows - at), n_rows - at)
            for i in range(n_panels):
                member = w.members + i * w.member_size
                k = min(lanes, n_members - first - i * lanes)
                step(w, w.taken, member + at_taken, member + at_o, &b, (k + w.isa.vector - 1) // w.isa.vector)
            at += b.n
        for i in range(n_panels):
            member = w.members + i * w.member_size
            o, m = member + at_o, member + at_m
            n = min(lanes, n_members - first - i * lanes)
            vectors = (n + w.isa.vector - 1) // w.isa.vector
            w.isa.score(axes, w.depth - 1, w.rank, w.depth - 1, member, vectors, w.u, w.peaks)
            w.isa.tilt(w.u, w.rank, w.center, spreads, vectors, m + 2 * padded(lanes), m + 3 * padded(lanes), m)
            w.isa.accumulate(w.slopes + lane * w.rank * w.width, w.width, w.rank, w.width, w.u, vectors, w.ones, o)
            w.isa.store(o, m + padded(lanes), n, w.width, 1.0, NULL, out, o_stride, members + first + i * lanes)
        first += n_panels * lanes


def attend(
    const float[:, :, :, :] query, const int64_t[:, ::1] query_spans, const int64_t[:, ::1] order,
    const int64_t[:, ::1] member_offsets, const float[:, :, ::1] centroids, const int64_t[::1] cluster_offsets,
    const float[:, ::1] limits, const float[:, :, ::1] rows, const float[:, ::1] key_scores,
    const int64_t[:, ::1] key_bounds, const int64_t[::1] key_cluster_offsets, const float[:, :, ::1] slopes,
    const float[:, :, :, ::1] axes, const float[:, :, ::1] spreads, double factor, const int64_t[:, ::1] tasks,
    i64 chunk, float[:, :, :, :] out, int64_t[::1] counter,
):
    """Co-clustered attention of `chunk` query clusters a task (see `pyclattn.reference.coclusters`)."""
    attend_with(current(), query, query_spans, order, member_offsets, centroids, cluster_offsets, limits, rows,
                key_scores, key_bounds, key_cluster_offsets, slopes, axes, spreads, factor, tasks, chunk, out, counter)


def attend_bfloat16(
    const float[:, :, :, :] query, const int64_t[:, ::1] query_spans, const int64_t[:, ::1] order,
    const int64_t[:, ::1] member_offsets, const float[:, :, ::1] centroids, const int64_t[::1] cluster_offsets,
    const float[:, ::1] limits, const float[:, :, ::1] rows, const float[:, ::1] key_scores,
    const int64_t[:, ::1] key_bounds, const int64_t[::1] key_cluster_offsets, const float[:, :, ::1] slopes,
    const float[:, :, :, ::1] axes, const float[:, :, ::1] spreads, double factor, const int64_t[:, ::1] tasks,
    i64 chunk, float[:, :, :, :] out, int64_t[::1] counter,
):
    """The same with products of bfloat16 for the rows that are taken."""
    attend_with(bfloat16(), query, query_spans, order, member_offsets, centroids, cluster_offsets, limits, rows,
                key_scores, key_bounds, key_cluster_offsets, slopes, axes, spreads, factor, tasks, chunk, out, counter)


cdef int attend_with(
    const tile_isa *taken,
    const float[:, :, :, :] query, const int64_t[:, ::1] query_spans, const int64_t[:, ::1] order,
    const int64_t[:, ::1] member_offsets, const float[:, :, ::1] centroids, const int64_t[::1] cluster_offsets,
    const float[:, ::1] limits, const float[:, :, ::1] rows, const float[:, ::1] key_scores,
    const int64_t[:, ::1] key_bounds, const int64_t[::1] key_cluster_offsets, const float[:, :, ::1] slopes,
    const float[:, :, :, ::1] axes, const float[:, :, ::1] spreads, double factor, const int64_t[:, ::1] tasks,
    i64 chunk, float[:, :, :, :] out, int64_t[::1] counter,
) except -1:
    cdef:
        Buffers w
        i64 q_stride = query.strides[2] // 4, o_stride = out.strides[2] // 4
        i64 task, sequence, head, batch, first, c, n, n_key_clusters, lane, stop
        i64 most_clusters = 0, most_keys = 0
        int64_t members

    with nogil:
        for sequence in range(key_cluster_offsets.shape[0] - 1):
            c, n = key_cluster_offsets[sequence], key_cluster_offsets[sequence + 1]
            most_clusters = max(most_clusters, n - c)
            most_keys = max(most_keys, key_bounds[0, n] - key_bounds[0, c])
        if not buffers_new(&w, taken, centroids.shape[2], rows.shape[2], axes.shape[2], most_clusters, most_keys):
            with gil:
                raise MemoryError("no memory for one block of co-clustered attention")
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0] or w.width == 0:
                break
            sequence, head, first = tasks[task, 0], tasks[task, 1], tasks[task, 2]
            batch, stop = query_spans[sequence, 0], min(first + chunk, cluster_offsets[sequence + 1])
            n_key_clusters = key_cluster_offsets[sequence + 1] - key_cluster_offsets[sequence]
            while first < stop:
                n = min(w.lanes, stop - first)
                w.isa.load(&centroids[head, first, 0], w.depth, NULL, n, w.depth, 1.0, w.panel)
                for lane in range(w.lanes):
                    w.limits[lane] = -TILE_MASKED  # a lane not in use takes nothing
                memcpy(w.limits, &limits[head, first], n * sizeof(float))
                divide_keys(&w, &rows[head, 0, 0], &key_scores[head, 0],
                            &key_bounds[head, key_cluster_offsets[sequence]], n_key_clusters,
                            &slopes[head, key_cluster_offsets[sequence], 0], &axes[sequence, head, 0, 0], n)
                for lane in range(n):
                    members = member_offsets[head, first + lane]
                    attend_lane(&w, lane, &rows[head, 0, 0], &query[batch, head, 0, 0], q_stride,
                                &order[head, members], member_offsets[head, first + lane + 1] - members,
                                <float> factor, &axes[sequence, head, 0, 0], &spreads[sequence, head, 0],
                                w.tails + lane * (n_key_clusters + 1) * w.size, &out[batch, head, 0, 0], o_stride)
                first += n
        free_floats(w.memory)
        free_floats(w.lists.rows)
