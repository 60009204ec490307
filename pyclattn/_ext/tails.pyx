"""Co-clustered attention over panels (tile.h): what is taken exactly, what stands for the rest, and the products.

The tail, one mean row a cluster of keys, has the shape of a sorted row (`coclusters`), so that each query sees one list
of rows.
"""

from libc.math cimport exp2f
from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.string cimport memcpy, memset

from pyclattn._ext.isa cimport (
    TILE_KEYS, TILE_MASKED, bfloat16, current, draw_task, i64, padded, tile_isa, tile_prefetch,
)
from pyclattn._ext.tail_buffers cimport SHARED, Buffers, buffers_free, buffers_new
from pyclattn._ext.wanted cimport accumulate_asking, ask, want, want_nothing

# A cluster whose keys are all so far below one that is taken has no tail (2^-90): dividing by less may overflow.
cdef float LEAST_MASS = 8.0e-28
cdef float LN2 = 0.693147180559945
cdef enum:
    AHEAD = 8  # rows asked for beside one tile of a product: 64 at a time held it up


cdef struct Block:
    const float *keys
    const float *values
    const int32_t *index  # which rows
    i64 key_stride, value_stride, n, depth


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
    cdef i64 j, lane, k, axis, row, vectors = (n + w.isa.vector - 1) // w.isa.vector, lanes = w.lanes
    cdef int64_t at, stop
    w.isa.score(axes, w.depth - 1, w.rank, w.depth - 1, w.panel, vectors, w.centers, w.peaks)
    memset(w.lists[0].counts, 0, lanes * sizeof(i64))
    memset(w.lists[1].counts, 0, lanes * sizeof(i64))
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
            w.isa.part(w.s, k, w.peaks, key_scores + at, vectors, w.limits, <int32_t> at, w.lists, w.top, w.mass,
                       w.alpha)
            want_nothing(&w.wanted)
            for row in range(at + k, min(at + k + TILE_KEYS, bounds[n_clusters])):
                want(&w.wanted, rows + row * w.size, w.size)
            accumulate_asking(w.isa, &w.wanted, AHEAD, rows + at * w.size, k, w.size, w.s, vectors, w.alpha, w.o)
            at += k
        w.isa.tail(w.o, w.panel, w.depth - 1, vectors, w.mass, w.top)
        memcpy(w.tops + j * lanes, w.top, lanes * sizeof(float))
        for lane in range(lanes):
            w.mass[lane] = w.mass[lane] if w.mass[lane] > LEAST_MASS else 0
            w.masses[j * lanes + lane] = w.mass[lane]
        for lane in range(n):
            if w.mass[lane] > 0:
                w.peak[lane] = max(w.peak[lane], w.top[lane])
                w.numbers[j * lanes + lane] = <int32_t> w.n_tail[lane]
                w.places[lane] = lane * (n_clusters + 1) + w.n_tail[lane]
                w.n_tail[lane] += 1
            else:
                w.numbers[j * lanes + lane] = -1
                w.places[lane] = lane * (n_clusters + 1) + n_clusters
        w.isa.store(w.o, w.mass, n, w.size, 1.0, NULL, w.tails, w.size, w.places)
    share_masses(w, n_clusters)
    for lane in range(n):
        weigh_listed(w, lane, bounds)
    for axis in range(w.rank):
        memset(w.o, 0, w.width * lanes * sizeof(float))
        at = 0
        while at < n_clusters:
            k = min(TILE_KEYS, n_clusters - at)
            w.isa.accumulate(slopes + (at * w.rank + axis) * w.width, w.rank * w.width, k, w.width,
                             w.masses + at * lanes, vectors, w.ones, w.o)
            at += k
        w.isa.store(w.o, w.total, n, w.width, 1.0, NULL, w.slopes + axis * w.width, w.slope_stride, NULL)


cdef void weigh_listed(Buffers *w, i64 lane, const int64_t *bounds) noexcept nogil:
    """The scores of the rows that the lane lists become their masses, which are taken from their clusters'."""
    cdef:
        i64 at, j = 0
        const int32_t *listed = w.lists[1].rows + lane * w.lists[1].room
        float *scores = w.lists[1].scores + lane * w.lists[1].room
    for at in range(w.lists[1].counts[lane]):
        while bounds[j + 1] <= listed[at]:
            j += 1
        scores[at] = exp2f(min(0.0, max(-100.0, scores[at] - w.peak[lane])))
        w.masses[j * w.lanes + lane] = max(0.0, w.masses[j * w.lanes + lane] - scores[at])


cdef void sum_slope(Buffers *w, i64 lane, const float *rows, const int64_t *bounds, i64 n_clusters) noexcept nogil:
    """Covariance of the keys and values that the lane lists, weighted with its softmax over the tail.

    A row counts by how far it is from its cluster's mean row. The lanes of these products are coordinates of keys."""
    cdef:
        i64 lanes = w.lanes, depth = w.depth - 1, n = w.lists[1].counts[lane], at = 0, j = 0, k, p, used, first
        i64 n_panels = (depth + lanes - 1) // lanes
        const int32_t *listed = w.lists[1].rows + lane * w.lists[1].room
        const float *masses = w.lists[1].scores + lane * w.lists[1].room
        const float *mean
        float share = 1 / w.total[lane]
    memset(w.spreads, 0, depth * sizeof(float))
    memset(w.key_panels, 0, n_panels * TILE_KEYS * padded(lanes) * sizeof(float))
    memset(w.products, 0, n_panels * w.width * padded(lanes) * sizeof(float))
    while at < n:
        k = 0
        while k < TILE_KEYS and at < n:
            if at + 8 < n:
                tile_prefetch(rows + listed[at + 8] * w.size, w.size)
            while bounds[j + 1] <= listed[at]:
                j += 1
            if w.numbers[j * lanes + lane] >= 0:
                mean = w.tails + (lane * (n_clusters + 1) + w.numbers[j * lanes + lane]) * w.size
                w.isa.lean(rows + listed[at] * w.size, mean, depth, w.width, masses[at] * share,
                           w.key_panels + k * lanes, TILE_KEYS * lanes, w.gathered + k * w.width, w.spreads)
                k += 1
            at += 1
        for p in range(n_panels):
            used = min(lanes, depth - p * lanes)
            w.isa.accumulate(w.gathered, w.width, k, w.width, w.key_panels + p * TILE_KEYS * lanes,
                             (used + w.isa.vector - 1) // w.isa.vector, w.ones, w.products + p * w.width * lanes)
    for p in range(n_panels):
        first = p * lanes
        w.isa.store(w.products + p * w.width * lanes, w.ones, min(lanes, depth - first), w.width, 1.0, NULL,
                    w.slope + first * w.width, w.width, NULL)


cdef void step(Buffers *w, const tile_isa *isa, const float *queries, float *o, const Block *b, i64 n) noexcept nogil:
    """`n` members of one panel attend to a block of rows; behind their sums `o` lie their maxima and masses."""
    cdef:
        i64 at = 0
        float *m = o + w.width * padded(w.lanes)
    while at < b.n:
        ask(&w.wanted, AHEAD)
        isa.score_scattered(b.keys, b.key_stride, b.index + at, min(isa.group, b.n - at), b.depth, queries, n,
                            w.s + at * w.lanes, w.peaks + at // isa.group * w.lanes)
        at += isa.group
    isa.soften(w.s, b.n, w.peaks, (n + isa.vector - 1) // isa.vector, m, m + padded(w.lanes), w.alpha)
    at = 0
    while at < w.width:
        ask(&w.wanted, AHEAD)
        isa.accumulate_scattered(b.values + at, b.value_stride, b.index, b.n, min(isa.group, w.width - at), w.s, n,
                                 w.alpha, o + at * w.lanes)
        at += isa.group


cdef Block rows_at(Buffers *w, const float *rows, const int32_t *index, i64 n) noexcept nogil:
    cdef Block b
    b.keys, b.values, b.key_stride, b.value_stride, b.n, b.depth = rows, rows + w.depth, w.size, w.size, n, w.depth
    b.index = index
    return b


cdef Block taken_at(Buffers *w, const float *rows, const int32_t *taken, i64 n) noexcept nogil:
    """`n` rows that are taken, where they lie; for pairs packed side by side."""
    cdef:
        Block b
        i64 k, depth = w.depth - 1, stride = 2 * w.n_words + w.width
        float *to = w.gathered
        const float *row
        uint32_t bits
    if w.n_words == 0:
        return rows_at(w, rows, taken, n)
    for k in range(n):
        row = rows + taken[k] * w.size
        memcpy(to, row, depth * sizeof(float))
        to[depth] = 0  # where the depth is odd
        memcpy(&bits, row + depth, sizeof(float))
        bits &= 0xffff0000u  # the own logit's upper half is a bfloat16, the rest is nearly one
        memcpy(to + 2 * w.n_words - 2, &bits, sizeof(float))
        to[2 * w.n_words - 1] = row[depth] - to[2 * w.n_words - 2]
        memcpy(to + 2 * w.n_words, row + w.depth, w.width * sizeof(float))
        to += stride
    w.taken.pack_rows(w.gathered, stride, NULL, n, 2 * w.n_words, w.keys)
    w.taken.pack_columns(w.gathered + 2 * w.n_words, stride, NULL, n, w.width, w.values)
    b.keys, b.values, b.key_stride, b.value_stride = w.keys, w.values, w.n_words, w.width
    b.index, b.n, b.depth = w.in_order, n, 2 * w.n_words
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


cdef void note_risks(Buffers *w, const float *spreads, const float *m, const int64_t *members, i64 n,
                     float *risks) noexcept nogil:
    """Of each member of a panel: the tail's share of its softmax, and by what variance its logits there are off."""
    cdef:
        i64 i, k
        size_t row = padded(w.lanes)
        float x, variance
    for i in range(n):
        variance = 0
        for k in range(w.rank):
            x = (w.u[k * w.lanes + i] - w.on_axes[k]) * LN2
            variance += x * (x * spreads[k])
        risks[2 * members[i]] = m[3 * row + i] * exp2f(min(0.0, max(-100.0, m[2 * row + i] - m[i]))) / m[row + i]
        risks[2 * members[i] + 1] = variance


cdef void attend_lane(Buffers *w, i64 lane, const float *rows, const float *query, i64 q_stride,
                      const int64_t *members, i64 n_members, float factor, const float *axes, const float *spreads,
                      const float *tail, i64 n_after, float *out, i64 o_stride, float *risks) noexcept nogil:
    """The members of the cluster in this lane: its tail first, then its rows, then the slopes.

    Members of other clusters follow in order, up to `n_after` from the first of these."""
    cdef:
        Block b
        i64 first = 0, n_panels, i, n, k, vectors, at, last, n_rows = w.lists[0].counts[lane], lanes = w.lanes
        size_t at_o = w.depth * padded(lanes), at_m = at_o + w.width * padded(lanes)
        size_t at_taken = at_m + 4 * padded(lanes) if w.n_words else 0
        const int32_t *taken = w.lists[0].rows + lane * w.lists[0].room
        float *member
        float *o
        float *m
        float *tail_m
        float *tail_mass
    for k in range(w.rank):
        w.on_axes[k] = w.centers[k * lanes + lane]
    for k in range(w.depth - 1):
        w.center[k] = w.panel[k * lanes + lane]
    while first < n_members:
        n_panels = min(SHARED, (n_members - first + lanes - 1) // lanes)
        last = min(n_members, first + n_panels * lanes)
        want_nothing(&w.wanted)
        for k in range(min(TILE_KEYS, n_rows)):
            want(&w.wanted, rows + taken[k] * w.size, w.size)
        for i in range(n_panels):
            member = w.members + i * w.member_size
            m = member + at_m
            n = min(lanes, n_members - first - i * lanes)
            member_begin(w, member, query, q_stride, members + first + i * lanes, n, factor)
            at = 0
            while at < w.n_tail[lane]:
                b = rows_at(w, tail + at * w.size, w.in_order, min(TILE_KEYS, w.n_tail[lane] - at))
                step(w, w.isa, member, member + at_o, &b, n)
                at += b.n
            memcpy(m + 2 * padded(lanes), m, 2 * padded(lanes) * sizeof(float))  # what the tail came to
        at = 0
        while at < n_rows:
            b = taken_at(w, rows, taken + at, min(TILE_KEYS, n_rows - at))
            want_nothing(&w.wanted)
            for k in range(at + b.n, min(at + b.n + TILE_KEYS, n_rows)):
                want(&w.wanted, rows + taken[k] * w.size, w.size)
            if at + b.n == n_rows:
                for k in range(first, last):
                    want(&w.wanted, out + members[k] * o_stride, w.width)
                for k in range(last, min(last + lanes, n_after)):
                    want(&w.wanted, query + members[k] * q_stride, w.depth - 1)
            for i in range(n_panels):
                member = w.members + i * w.member_size
                k = min(lanes, n_members - first - i * lanes)
                step(w, w.taken, member + at_taken, member + at_o, &b, k)
            at += b.n
        for i in range(n_panels):
            member = w.members + i * w.member_size
            o, m = member + at_o, member + at_m
            n = min(lanes, n_members - first - i * lanes)
            vectors = (n + w.isa.vector - 1) // w.isa.vector
            tail_m, tail_mass = m + 2 * padded(lanes), m + 3 * padded(lanes)
            w.isa.score(axes, w.depth - 1, w.rank, w.depth - 1, member, vectors, w.u, w.peaks)
            if risks != NULL:
                note_risks(w, spreads, m, members + first + i * lanes, n, risks)
            w.isa.tilt(w.u, w.rank, w.on_axes, spreads, vectors, tail_m, tail_mass, m, False)
            w.isa.accumulate(w.slopes + lane * w.slope_stride, w.width, w.rank, w.width, w.u, vectors, w.ones, o)
            if w.lists[1].counts[lane] > 0:
                memcpy(w.off, member, (w.depth - 1) * lanes * sizeof(float))
                w.isa.tilt(w.off, w.depth - 1, w.center, w.spreads, vectors, tail_m, tail_mass, m, True)
                w.isa.accumulate(w.slope, w.width, w.depth - 1, w.width, w.off, vectors, w.ones, o)
            w.isa.store(o, m + padded(lanes), n, w.width, 1.0, NULL, out, o_stride, members + first + i * lanes)
        first += n_panels * lanes


def attend(
    const float[:, :, :, :] query, const int64_t[:, ::1] query_spans, const int64_t[:, ::1] order,
    const int64_t[:, ::1] member_offsets, const float[:, :, ::1] centroids, const int64_t[::1] cluster_offsets,
    const float[:, :, ::1] limits, const float[:, :, ::1] rows, const float[:, ::1] key_scores,
    const int64_t[:, ::1] key_bounds, const int64_t[::1] key_cluster_offsets, const float[:, :, ::1] slopes,
    const float[:, :, :, ::1] axes, const float[:, :, ::1] spreads, double factor, const int64_t[:, ::1] tasks,
    i64 chunk, float[:, :, :, :] out, float[:, :, :, ::1] risks, int64_t[::1] counter,
):
    """Co-clustered attention of `chunk` query clusters a task (see `pyclattn.reference.tails`)."""
    attend_with(current(), query, query_spans, order, member_offsets, centroids, cluster_offsets, limits, rows,
                key_scores, key_bounds, key_cluster_offsets, slopes, axes, spreads, factor, tasks, chunk, out, risks,
                counter)


def attend_bfloat16(
    const float[:, :, :, :] query, const int64_t[:, ::1] query_spans, const int64_t[:, ::1] order,
    const int64_t[:, ::1] member_offsets, const float[:, :, ::1] centroids, const int64_t[::1] cluster_offsets,
    const float[:, :, ::1] limits, const float[:, :, ::1] rows, const float[:, ::1] key_scores,
    const int64_t[:, ::1] key_bounds, const int64_t[::1] key_cluster_offsets, const float[:, :, ::1] slopes,
    const float[:, :, :, ::1] axes, const float[:, :, ::1] spreads, double factor, const int64_t[:, ::1] tasks,
    i64 chunk, float[:, :, :, :] out, float[:, :, :, ::1] risks, int64_t[::1] counter,
):
    """The same with products of bfloat16 for the rows that are taken."""
    attend_with(bfloat16(), query, query_spans, order, member_offsets, centroids, cluster_offsets, limits, rows,
                key_scores, key_bounds, key_cluster_offsets, slopes, axes, spreads, factor, tasks, chunk, out, risks,
                counter)


cdef int attend_with(
    const tile_isa *taken,
    const float[:, :, :, :] query, const int64_t[:, ::1] query_spans, const int64_t[:, ::1] order,
    const int64_t[:, ::1] member_offsets, const float[:, :, ::1] centroids, const int64_t[::1] cluster_offsets,
    const float[:, :, ::1] limits, const float[:, :, ::1] rows, const float[:, ::1] key_scores,
    const int64_t[:, ::1] key_bounds, const int64_t[::1] key_cluster_offsets, const float[:, :, ::1] slopes,
    const float[:, :, :, ::1] axes, const float[:, :, ::1] spreads, double factor, const int64_t[:, ::1] tasks,
    i64 chunk, float[:, :, :, :] out, float[:, :, :, ::1] risks, int64_t[::1] counter,
) except -1:
    cdef:
        Buffers w
        i64 q_stride = query.strides[2] // 4, o_stride = out.strides[2] // 4
        i64 task, sequence, head, batch, first, c, n, n_key_clusters, lane, stop
        i64 most_clusters = 0, most_keys = 0, i
        int64_t members, last
        const int64_t *bounds
        bint has_risks = risks is not None

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
                for i in range(2):
                    for lane in range(w.lanes):
                        w.limits[i * w.lanes + lane] = -TILE_MASKED  # a lane not in use takes nothing
                    memcpy(w.limits + i * w.lanes, &limits[i, head, first], n * sizeof(float))
                bounds = &key_bounds[head, key_cluster_offsets[sequence]]
                divide_keys(&w, &rows[head, 0, 0], &key_scores[head, 0], bounds, n_key_clusters,
                            &slopes[head, key_cluster_offsets[sequence], 0], &axes[sequence, head, 0, 0], n)
                for lane in range(n):
                    members = member_offsets[head, first + lane]
                    if w.lists[1].counts[lane] > 0:
                        sum_slope(&w, lane, &rows[head, 0, 0], bounds, n_key_clusters)
                    last = member_offsets[head, cluster_offsets[sequence + 1]]
                    attend_lane(&w, lane, &rows[head, 0, 0], &query[batch, head, 0, 0], q_stride,
                                &order[head, members], member_offsets[head, first + lane + 1] - members,
                                <float> factor, &axes[sequence, head, 0, 0], &spreads[sequence, head, 0],
                                w.tails + lane * (n_key_clusters + 1) * w.size, last - members,
                                &out[batch, head, 0, 0], o_stride,
                                &risks[batch, head, 0, 0] if has_risks else NULL)
                first += n
        buffers_free(&w)
