"""Kernels of CAST over panels (tile.h): attention within clusters, and the mixing.

Each `def` owns the buffers of one thread and draws tasks; their meaning stands in `pyclattn.reference.cast`.
"""

from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

from pyclattn._ext.isa cimport (
    TILE_KEYS, TILE_MASKED, current, draw_task, free_floats, i64, new_floats, padded, tile_all_finite, tile_isa,
    tile_prefetch,
)
from pyclattn._ext.wanted cimport (
    ASKED, ASKED_IN_ORDER, Kept, Wanted, accumulate_asking, kept_at, score_asking, want, want_nothing,
)

cdef double LOG2E = 1.4426950408889634


cdef struct Work:
    const tile_isa *isa
    Wanted wanted
    float *memory
    float *panels   # queries [D], output [E], and four rows of lanes; one after the other
    float *s
    float *peaks
    float *keys     # a block of members, side by side
    float *values
    i64 lanes, depth, width
    size_t panel_size


cdef bint work_new(Work *w, i64 depth, i64 width, i64 n_panels, i64 n_scores, i64 n_packed) noexcept nogil:
    cdef size_t lane_size
    w.isa = current()
    w.lanes, w.depth, w.width = w.isa.lanes, depth, width
    want_nothing(&w.wanted)
    lane_size = padded(w.lanes)
    w.panel_size = (depth + width + 3) * lane_size
    w.memory = new_floats(n_panels * w.panel_size + (2 * n_scores + 1) * lane_size
                          + padded(n_packed * depth) + padded(n_packed * width))
    if w.memory == NULL:
        return False
    w.panels = w.memory
    w.s = w.panels + n_panels * w.panel_size
    w.peaks = w.s + n_scores * lane_size
    w.keys = w.peaks + (n_scores + 1) * lane_size
    w.values = w.keys + padded(n_packed * depth)
    return True


cdef struct Panel:
    float *queries
    float *o
    float *m
    float *mass
    float *alpha


cdef Panel panel_at(Work *w, i64 number) noexcept nogil:
    cdef Panel p
    p.queries = w.panels + number * w.panel_size
    p.o = p.queries + w.depth * w.lanes
    p.m = p.o + w.width * w.lanes
    p.mass, p.alpha = p.m + w.lanes, p.m + 2 * w.lanes
    return p


cdef void panel_begin(Work *w, Panel p, const float *rows, i64 stride, const int64_t *index, i64 n, float factor,
                      bint is_laplace) noexcept nogil:
    w.isa.load(rows, stride, index, n, w.depth, factor, p.queries)
    panel_clear(w, p, is_laplace)


cdef void panel_clear(Work *w, Panel p, bint is_laplace) noexcept nogil:
    cdef i64 i
    memset(p.o, 0, w.width * w.lanes * sizeof(float))
    for i in range(w.lanes):
        p.m[i], p.mass[i], p.alpha[i] = TILE_MASKED, 1 if is_laplace else 0, 1


cdef void panel_step(Work *w, Panel p, i64 n, i64 vectors, bint is_laplace) noexcept nogil:
    """One block of members."""
    score_asking(w.isa, &w.wanted, w.keys, n, w.depth, p.queries, vectors, w.s, w.peaks)
    if is_laplace:
        w.isa.laplace(w.s, n, vectors)
    else:
        w.isa.soften(w.s, n, w.peaks, vectors, p.m, p.mass, p.alpha)
    accumulate_asking(w.isa, &w.wanted, ASKED, w.values, n, w.width, w.s, vectors, p.alpha, p.o)


cdef void summarise(Work *w, Panel p, const float *surrogate, float factor, const float *gains, i64 n,
                    bint is_laplace) noexcept nogil:
    """One block of members into a cluster's summary, p.o, in the first lane: one query fills no panel."""
    cdef i64 k, i
    cdef float x
    cdef float logits[TILE_KEYS]
    w.isa.dots(w.keys, w.depth, n, w.depth, surrogate, logits)
    for k in range(n):
        x = factor * logits[k] * gains[k]
        for i in range(w.isa.vector):
            w.s[k * w.lanes + i] = x
    if is_laplace:
        w.isa.laplace(w.s, n, 1)
    else:
        w.isa.soften_masked(w.s, n, 1, p.m, p.mass, p.alpha)
    w.isa.add_rows(w.values, w.width, n, w.width, w.s, w.lanes, p.alpha[0], p.o)


def attend_clusters(
    const float[:, :, :, :] query, const float[:, :, :, :] key, const float[:, :, :, :] value,
    const float[:, :, ::1] surrogates, const int64_t[::1] batches, const int64_t[::1] rows,
    const int64_t[::1] member_offsets, const float[:, ::1] gains, double scale, bint is_laplace,
    const int64_t[:, ::1] tasks, i64 chunk, float[:, :, ::1] within, float[:, :, ::1] summaries,
    int64_t[::1] counter,
):
    """Attention of `chunk` members to all of their cluster, and its summary."""
    cdef:
        Work w
        Panel p, summary
        i64 depth = query.shape[3], width = value.shape[3], n_clusters = surrogates.shape[1]
        i64 q_stride = query.strides[2] // 4, k_stride = key.strides[2] // 4, v_stride = value.strides[2] // 4
        i64 task, upcoming, cluster, head, n_queries, n_panels, n, i, k, used
        int64_t first, at, stop, row
        const float *keys
        const float *values
        float factor = <float> (scale if is_laplace else scale * LOG2E)
        float own_gains[TILE_KEYS]

    with nogil:
        n_panels = (chunk + current().lanes - 1) // current().lanes
        if not work_new(&w, depth, width, n_panels + 1, TILE_KEYS, TILE_KEYS):
            with gil:
                raise MemoryError("no memory for one block of attention")
        upcoming = draw_task(&counter[0])
        while upcoming < tasks.shape[0]:
            task, upcoming = upcoming, draw_task(&counter[0])
            want_nothing(&w.wanted)
            if upcoming < tasks.shape[0]:
                cluster, head = tasks[upcoming, 0], tasks[upcoming, 1]
                for at in range(member_offsets[cluster], member_offsets[cluster + 1]):
                    want(&w.wanted, &query[batches[cluster], head, rows[at], 0], depth)
                    want(&w.wanted, &key[batches[cluster], head, rows[at], 0], depth)
                    want(&w.wanted, &value[batches[cluster], head, rows[at], 0], width)
            cluster, head = tasks[task, 0], tasks[task, 1]
            at, stop = member_offsets[cluster], member_offsets[cluster + 1]
            first = at + tasks[task, 2]
            n_queries = min(chunk, stop - first)
            n_panels = (n_queries + w.lanes - 1) // w.lanes
            for i in range(n_queries):  # what is written at the end
                want(&w.wanted, &within[head, first + i, 0], width)
            keys, values = &key[batches[cluster], head, 0, 0], &value[batches[cluster], head, 0, 0]
            for i in range(n_panels):
                panel_begin(&w, panel_at(&w, i), &query[batches[cluster], head, 0, 0], q_stride,
                            &rows[first + i * w.lanes], min(w.lanes, n_queries - i * w.lanes), factor, is_laplace)
            summary = panel_at(&w, n_panels)
            if first == at:
                panel_clear(&w, summary, is_laplace)
            while at < stop:
                n = min(TILE_KEYS, stop - at)
                for k in range(n):
                    row = rows[at + k]
                    if at + k + 8 < stop:
                        tile_prefetch(keys + rows[at + k + 8] * k_stride, depth)
                        tile_prefetch(values + rows[at + k + 8] * v_stride, width)
                    memcpy(w.keys + k * depth, keys + row * k_stride, depth * sizeof(float))
                    memcpy(w.values + k * width, values + row * v_stride, width * sizeof(float))
                    own_gains[k] = gains[batches[cluster], row] if gains is not None else 1
                for i in range(n_panels):
                    used = min(w.lanes, n_queries - i * w.lanes)
                    panel_step(&w, panel_at(&w, i), n, (used + w.isa.vector - 1) // w.isa.vector, is_laplace)
                if tasks[task, 2] == 0:
                    summarise(&w, summary, &surrogates[head, cluster % n_clusters, 0], factor, own_gains, n, is_laplace)
                at += n
            for i in range(n_panels if width > 0 else 0):
                p = panel_at(&w, i)
                w.isa.store(p.o, p.mass, min(w.lanes, n_queries - i * w.lanes), width, 1.0, NULL,
                            &within[head, first + i * w.lanes, 0], width, NULL)
            for i in range(width if tasks[task, 2] == 0 else 0):
                summaries[head, cluster, i] = summary.o[i] / summary.mass[0] if summary.mass[0] != 0 else 0
        free_floats(w.memory)


cdef void accumulate_seen(Work *w, Panel p, const float *summaries, i64 n_clusters, i64 n) noexcept nogil:
    """Summaries that are not finite must not meet weights of zero, 0 x inf: only where there is a weight."""
    cdef i64 c, i, e
    for c in range(n_clusters):
        for i in range(n):
            if w.s[c * w.lanes + i] != 0:
                for e in range(w.width):
                    p.o[e * w.lanes + i] += w.s[c * w.lanes + i] * summaries[c * w.width + e]


cdef void weigh_clusters(Work *w, Panel p, const float *logits, i64 stride, const float *gains, i64 n_clusters,
                         const int64_t *offsets, i64 n, bint is_laplace) noexcept nogil:
    """Weights of the clusters of one sequence, 0 for one without members."""
    cdef i64 c, i, vectors = (n + w.isa.vector - 1) // w.isa.vector
    cdef bint has_empty = False
    w.isa.temper(logits, stride, n_clusters, n, gains, w.s, w.peaks)
    if is_laplace:
        w.isa.laplace(w.s, n_clusters, vectors)
    for c in range(n_clusters):
        if offsets[c] == offsets[c + 1]:
            has_empty = True
            for i in range(w.lanes):
                w.s[c * w.lanes + i] = 0 if is_laplace else TILE_MASKED
    if is_laplace:
        return
    if has_empty:
        w.isa.soften_masked(w.s, n_clusters, vectors, p.m, p.mass, p.alpha)
    else:
        w.isa.soften(w.s, n_clusters, w.peaks, vectors, p.m, p.mass, p.alpha)


cdef void want_logits(Work *w, const float[:, ::1] logits, i64 head, i64 n_clusters, int64_t start, int64_t at,
                      int64_t stop) noexcept nogil:
    """The kept logits of one panel."""
    cdef Kept kept = kept_at(start, at, stop)
    cdef i64 c
    for c in range(n_clusters):
        want(&w.wanted, &logits[head, kept.start * n_clusters + at - kept.start] + c * kept.width,
             min(w.lanes, stop - at))


def mix(
    const float[:, :, :, :] query, const float[:, :, ::1] surrogates, const int64_t[:, ::1] spans,
    const int64_t[::1] index, const float[:, ::1] gains, double scale, bint is_laplace,
    const int64_t[::1] member_offsets, const int64_t[::1] places, const int64_t[::1] place_clusters,
    const int64_t[::1] place_offsets, const float[:, :, ::1] within, const float[:, :, ::1] summaries,
    const float[:, ::1] logits, const int64_t[:, ::1] tasks, i64 chunk, float[:, :, :, :] out, int64_t[::1] counter,
):
    """What `chunk` tokens get from the clusters they are in and from the summaries of the others."""
    cdef:
        Work w
        Panel p
        float *own_gains
        float *weights
        float *row
        const float *own
        i64 depth = query.shape[3], width = out.shape[3], n_clusters = surrogates.shape[1]
        i64 q_stride = query.strides[2] // 4, o_stride = out.strides[2] // 4
        i64 task, upcoming, sequence, head, batch, n, i, d, e, vectors, first_cluster, place, at
        const float *own_logits
        Kept kept
        i64 stride
        int64_t t, start, stop, later
        float x
        bint is_finite

    with nogil:
        if not work_new(&w, depth, width, 1, n_clusters, 0):
            with gil:
                raise MemoryError("no memory for one panel of tokens")
        own_gains = new_floats((n_clusters + 1) * padded(w.lanes))
        weights = own_gains + padded(w.lanes)  # of the tokens' memberships: at most every cluster
        if own_gains == NULL:
            free_floats(w.memory)
            with gil:
                raise MemoryError("no memory for one panel of weights")
        p = panel_at(&w, 0)
        upcoming = draw_task(&counter[0])
        while upcoming < tasks.shape[0] and width > 0:
            task, upcoming = upcoming, draw_task(&counter[0])
            sequence, head = tasks[task, 0], tasks[task, 1]
            batch, start = spans[sequence, 0], spans[sequence, 1] + tasks[task, 2]
            t = start
            stop = min(t + chunk, spans[sequence, 2])
            first_cluster = sequence * n_clusters
            is_finite = tile_all_finite(&summaries[head, first_cluster, 0], width, 1, n_clusters, width)
            while t < stop:
                n = min(w.lanes, stop - t)
                vectors = (n + w.isa.vector - 1) // w.isa.vector
                for i in range(w.lanes):
                    own_gains[i] = gains[batch, index[t + i]] if gains is not None and i < n else 1
                want_nothing(&w.wanted)
                for i in range(n):  # what is read and written at the end, while the tile computes
                    want(&w.wanted, &out[batch, head, index[t + i], 0], width)
                    for place in range(place_offsets[t + i], place_offsets[t + i + 1]):
                        want(&w.wanted, &within[head, places[place], 0], width)
                if logits is None:
                    for i in range(n, min(n + w.lanes, stop - t)):
                        want(&w.wanted, &query[batch, head, index[t + i], 0], depth)
                    panel_begin(&w, p, &query[batch, head, 0, 0], q_stride, &index[t], n,
                                <float> (scale if is_laplace else scale * LOG2E), is_laplace)
                    score_asking(w.isa, &w.wanted, &surrogates[head, 0, 0], n_clusters, depth, p.queries, vectors, w.s,
                                 w.peaks)
                    own_logits, stride = w.s, w.lanes
                else:
                    panel_clear(&w, p, is_laplace)
                    kept = kept_at(start, t, stop)
                    own_logits, stride = &logits[head, kept.start * n_clusters + t - kept.start], kept.width
                    if t + n < stop:
                        want_logits(&w, logits, head, n_clusters, start, t + n, stop)
                    elif upcoming < tasks.shape[0]:
                        later = spans[tasks[upcoming, 0], 1] + tasks[upcoming, 2]
                        want_logits(&w, logits, tasks[upcoming, 1], n_clusters, later, later,
                                    min(later + chunk, spans[tasks[upcoming, 0], 2]))
                weigh_clusters(&w, p, own_logits, stride, own_gains, n_clusters, &member_offsets[first_cluster], n,
                               is_laplace)
                at = 0
                for i in range(n):  # a member's weight is taken from the summary
                    for place in range(place_offsets[t + i], place_offsets[t + i + 1]):
                        d = (place_clusters[place] - first_cluster) * w.lanes + i
                        weights[at] = w.s[d] / p.mass[i]
                        w.s[d] = 0
                        at += 1
                if is_finite:
                    accumulate_asking(w.isa, &w.wanted, ASKED_IN_ORDER, &summaries[head, first_cluster, 0], n_clusters,
                                      width, w.s, vectors, p.alpha, p.o)
                else:
                    accumulate_seen(&w, p, &summaries[head, first_cluster, 0], n_clusters, n)
                w.isa.store(p.o, p.mass, n, width, 1.0, NULL, &out[batch, head, 0, 0], o_stride, &index[t])
                at = 0
                for i in range(n):
                    row = &out[batch, head, index[t + i], 0]
                    for place in range(place_offsets[t + i], place_offsets[t + i + 1]):
                        own, x = &within[head, places[place], 0], weights[at]
                        for e in range(width):
                            row[e] += x * own[e]
                        at += 1
                t += n
        free_floats(w.memory)
        free_floats(own_gains)
