"""Kernels of CAST over panels (tile.h): affinities, the two clusterings, attention within clusters, and the mixing.

Each `def` owns the buffers of one thread and draws tasks; their meaning stands in `pyclattn.reference.cast`.
"""

from libc.math cimport INFINITY
from libc.stdint cimport INT32_MAX, int32_t, int64_t
from libc.string cimport memcpy, memset

from pyclattn._ext.isa cimport (
    TILE_KEYS, TILE_MASKED, best_at, best_size, current, draw_task, free_floats, i64, new_floats, padded,
    tile_all_finite, tile_best, tile_fence, tile_isa, tile_prefetch, tile_prefetch_far,
)

cdef double LOG2E = 1.4426950408889634
cdef enum:
    WANTED = 512  # rows remembered: query, key and value of 128 members, and more
    ASKED = 16  # rows asked for at a time: of 64 features they are 64 lines, about what a core has under way at most
    KEPT = 48  # tokens whose logits are kept side by side: whole panels of every instruction set
    BLOCK = 32  # scores between two such times: whole groups of every instruction set
# Below every affinity: that of a token with a NaN.
cdef float LEAST = -1.0


# Rows at random places that come next: asked for, a few at a time, while the tile computes.
cdef struct Wanted:
    const float *rows[WANTED]
    i64 widths[WANTED]
    i64 n, asked


cdef void want_nothing(Wanted *w) noexcept nogil:
    w.n = w.asked = 0


cdef void want(Wanted *w, const float *row, i64 width) noexcept nogil:
    if w.n < WANTED:
        w.rows[w.n], w.widths[w.n] = row, width
        w.n += 1


cdef void ask(Wanted *w, i64 n) noexcept nogil:
    cdef i64 i
    for i in range(w.asked, min(w.n, w.asked + n)):
        tile_prefetch_far(w.rows[i], w.widths[i])
    w.asked = min(w.n, w.asked + n)


cdef void score_asking(const tile_isa *isa, Wanted *wanted, const float *keys, i64 n, i64 depth, const float *panel,
                       i64 vectors, float *s, float *peaks) noexcept nogil:
    """Scores of n keys side by side, and rows that come next."""
    cdef i64 at = 0
    while at < n:
        ask(wanted, ASKED)
        isa.score(keys + at * depth, depth, min(BLOCK, n - at), depth, panel, vectors, s + at * isa.lanes,
                  peaks + at // isa.group * isa.lanes)
        at += BLOCK


cdef void weigh(const tile_isa *isa, float *s, const float *peaks, i64 n, i64 vectors, bint is_laplace, float *m,
                float *mass, float *alpha) noexcept nogil:
    """Scores of one block that is all there is become weights, not yet divided by their mass."""
    cdef i64 i
    for i in range(isa.lanes):
        m[i], mass[i] = TILE_MASKED, 1 if is_laplace else 0
    if is_laplace:
        isa.laplace(s, n, vectors)
    else:
        isa.soften(s, n, peaks, vectors, m, mass, alpha)


cdef struct Kept:
    int64_t start
    i64 width


cdef Kept kept_at(int64_t start, int64_t at, int64_t stop) noexcept nogil:
    """Of the tokens from `start` on that are kept side by side, those around one."""
    cdef Kept kept
    kept.start = start + (at - start) // KEPT * KEPT
    kept.width = min(KEPT, stop - kept.start)
    return kept


def affinities(
    const float[:, :, :, :] query, const float[:, :, :, :] key, const float[:, :, ::1] surrogates,
    const int64_t[:, ::1] spans, const int64_t[::1] index, const float[:, ::1] shares, double scale, bint is_laplace,
    const int64_t[:, ::1] tasks, i64 chunk, i64 origin, float[:, :] out, float[::1] surest, int32_t[::1] labels,
    float[:, ::1] logits, int64_t[::1] counter,
):
    """How near `chunk` tokens are to each cluster, and where asked for the nearest."""
    cdef:
        const tile_isa *isa
        Wanted wanted
        Kept kept
        float *memory
        float *panel
        float *s
        float *total
        float *peaks
        float *factor
        float *m
        float *mass
        float *alpha
        float *ones
        float *zeros
        float *most
        int32_t *nearest
        const float *rows
        i64 n_heads = surrogates.shape[0], n_clusters = surrogates.shape[1], depth = surrogates.shape[2]
        i64 strides[2]
        i64 lanes, task, batch, head, side, n, i, c, vectors, row_step = out.strides[0] // 4
        int64_t at, start, stop
        float x, share
        bint is_by_token = out.strides[1] == 4

    strides[0], strides[1] = query.strides[2] // 4, key.strides[2] // 4
    with nogil:
        isa = current()
        lanes = isa.lanes
        memory = new_floats((depth + 3 * n_clusters + 10) * padded(lanes) + padded(n_clusters))
        if memory == NULL:
            with gil:
                raise MemoryError("no memory for one panel of affinities")
        panel = memory
        s = panel + depth * padded(lanes)
        total = s + n_clusters * padded(lanes)
        peaks = total + n_clusters * padded(lanes)
        factor = peaks + (n_clusters + 1) * padded(lanes)
        m, mass, alpha = factor + padded(lanes), factor + 2 * padded(lanes), factor + 3 * padded(lanes)
        ones = factor + 4 * padded(lanes)
        most, nearest = factor + 5 * padded(lanes), <int32_t *> (factor + 6 * padded(lanes))
        zeros = factor + 7 * padded(lanes)
        memset(zeros, 0, n_clusters * sizeof(float))
        for i in range(lanes):
            ones[i] = 1
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0]:
                break
            batch, start = spans[tasks[task, 0], 0], tasks[task, 1]
            at = start
            stop = min(min(at + chunk, spans[tasks[task, 0], 2]), origin + out.shape[0])
            while at < stop:
                n = min(lanes, stop - at)
                vectors = (n + isa.vector - 1) // isa.vector
                memset(total, 0, n_clusters * lanes * sizeof(float))
                for head in range(n_heads):
                    for side in range(2):
                        rows = &query[batch, head, 0, 0] if side == 0 else &key[batch, head, 0, 0]
                        want_nothing(&wanted)
                        for i in range(n, min(n + lanes, stop - at)):  # of the next panel
                            want(&wanted, rows + index[at + i] * strides[side], depth)
                        isa.load(rows, strides[side], &index[at], n, depth,
                                 <float> (scale if is_laplace else scale * LOG2E), panel)
                        score_asking(isa, &wanted, &surrogates[head, 0, 0], n_clusters, depth, panel, vectors, s,
                                     peaks)
                        if side == 0 and logits is not None:
                            kept = kept_at(start, at, stop)
                            isa.keep(s, n_clusters, n, &logits[head, kept.start * n_clusters + at - kept.start],
                                     kept.width)
                        weigh(isa, s, peaks, n_clusters, vectors, is_laplace, m, mass, alpha)
                        for i in range(lanes):
                            share = shares[batch, index[at + i]] if i < n else 0
                            factor[i] = (share if side == 0 else 1 - share) / mass[i]
                        isa.add_shares(s, n_clusters, vectors, factor, total)
                for c in range(n_clusters):
                    for i in range(n):
                        x = total[c * lanes + i]
                        total[c * lanes + i] = x if x >= 0 else LEAST
                if labels is not None:
                    for i in range(lanes):
                        most[i] = 2 * LEAST
                    isa.nearest(total, n_clusters, vectors, zeros, 0, most, nearest)
                    memcpy(&surest[at], most, n * sizeof(float))
                    memcpy(&labels[at], nearest, n * sizeof(int32_t))
                if is_by_token:
                    isa.store(total, ones, n, n_clusters, 1.0, NULL, &out[at - origin, 0], row_step, NULL)
                else:
                    for c in range(n_clusters):
                        memcpy(&out[at - origin, c], total + c * lanes, n * sizeof(float))
                at += n
        tile_fence()
        free_floats(memory)


def select(
    const float[:, :] affinity, const int64_t[:, ::1] spans, i64 origin, const int64_t[:, ::1] tasks, i64 chunk,
    float[:, ::1] scores, int64_t[:, ::1] tokens, int64_t[::1] counts, int64_t[::1] counter,
):
    """The nearest tokens of `chunk` clusters; those of a cluster lie side by side."""
    cdef:
        const tile_isa *isa
        float *memory
        tile_best best
        const float *values
        float threshold
        i64 n_clusters = affinity.shape[1], topk = scores.shape[1], task, sequence, c, g
        i64 count
        int64_t start, stop, t

    with nogil:
        isa = current()
        memory = new_floats(best_size(1, topk))
        if memory == NULL:
            with gil:
                raise MemoryError("no memory for one list of tokens")
        best_at(&best, memory, 1, topk)
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0]:
                break
            sequence = tasks[task, 0]
            start, stop = max(spans[sequence, 1], origin), min(spans[sequence, 2], origin + affinity.shape[0])
            for c in range(tasks[task, 1], min(tasks[task, 1] + chunk, n_clusters)):
                g = sequence * n_clusters + c
                values = &affinity[0, c]
                count = counts[g]
                memcpy(best.scores, &scores[g, 0], count * sizeof(float))
                memcpy(best.rows, &tokens[g, 0], count * sizeof(int64_t))
                threshold = -INFINITY
                if count == topk:
                    threshold = INFINITY
                    for t in range(count):
                        threshold = min(threshold, best.scores[t])
                for t in range(start, stop):
                    if values[t - origin] > threshold:
                        best.scores[count], best.rows[count] = values[t - origin], t
                        count += 1
                        if count == best.room:
                            best.counts[0] = count
                            isa.cut(&best, 0)
                            count, threshold = best.counts[0], best.threshold[0]
                best.counts[0] = count
                isa.cut(&best, 0)
                count = best.counts[0]
                memcpy(&scores[g, 0], best.scores, count * sizeof(float))
                memcpy(&tokens[g, 0], best.rows, count * sizeof(int64_t))
                counts[g] = count
        free_floats(memory)


cdef void sort_tokens(int64_t *keys, int64_t *spare, i64 n) noexcept nogil:
    """Into `spare`, ascending by the upper 31 bits, equal ones in their order: three passes of counting 11 bits."""
    cdef i64 counts[2048]
    cdef i64 i, before, shift, digit, total
    cdef int64_t *other
    for shift in range(32, 65, 11):
        memset(counts, 0, sizeof(counts))
        for i in range(n):
            counts[(keys[i] >> shift) & 2047] += 1
        total = 0
        for digit in range(2048):
            before = counts[digit]
            counts[digit] = total
            total += before
        for i in range(n):
            digit = (keys[i] >> shift) & 2047
            spare[counts[digit]] = keys[i]
            counts[digit] += 1
        other = keys
        keys, spare = spare, other


cdef i64 best_open(const float *row, i64 n_clusters, const int64_t *sizes, i64 capacity) noexcept nogil:
    cdef i64 c, best = -1
    for c in range(n_clusters):
        if sizes[c] < capacity and (best < 0 or row[c] > row[best]):
            best = c
    return best


def assign(
    const float[:, ::1] affinity, const int64_t[:, ::1] spans, i64 origin, i64 capacity, const float[::1] surest,
    const int64_t[:, ::1] tasks, int32_t[::1] labels, int64_t[::1] counter,
):
    """Tokens to clusters, the surest first; `labels` come as those of their nearest."""
    cdef:
        float *memory
        int64_t *keys
        int64_t *sorted_keys
        int64_t *sizes
        i64 n_clusters = affinity.shape[1], task
        int64_t most = 0, start, stop, t, i
        int32_t bits

    with nogil:
        for task in range(tasks.shape[0]):
            most = max(most, spans[tasks[task, 0], 2] - spans[tasks[task, 0], 1])
        memory = new_floats(2 * (2 * most + n_clusters))
        if memory == NULL:
            with gil:
                raise MemoryError("no memory for one order of tokens")
        keys = <int64_t *> memory
        sorted_keys = keys + most
        sizes = sorted_keys + most
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0]:
                break
            start, stop = spans[tasks[task, 0], 1], spans[tasks[task, 0], 2]
            memset(sizes, 0, n_clusters * sizeof(int64_t))
            for t in range(start, stop):
                # ascending: the largest affinity first (bits of floats >= 0 are ordered as they are), then the token
                memcpy(&bits, &surest[t], sizeof(float))
                if not surest[t] >= 0:
                    bits = 0
                keys[t - start] = (<int64_t> (INT32_MAX - bits) << 32) | (t - start)
            sort_tokens(keys, sorted_keys, stop - start)
            for i in range(stop - start):
                t = start + (sorted_keys[i] & <int64_t> 0xFFFFFFFF)
                if sizes[labels[t]] >= capacity:
                    labels[t] = <int32_t> best_open(&affinity[t - origin, 0], n_clusters, sizes, capacity)
                sizes[labels[t]] += 1
        free_floats(memory)


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


cdef void panel_step(Work *w, Panel p, i64 n, i64 vectors, const float *gains, bint is_laplace) noexcept nogil:
    """One block of members; `gains` multiply their scores."""
    cdef i64 k, i
    score_asking(w.isa, &w.wanted, w.keys, n, w.depth, p.queries, vectors, w.s, w.peaks)
    if gains != NULL:
        for k in range(n):
            for i in range(vectors * w.isa.vector):
                w.s[k * w.lanes + i] *= gains[k]
    if is_laplace:
        w.isa.laplace(w.s, n, vectors)
    elif gains != NULL:  # whose peaks are not known
        w.isa.soften_masked(w.s, n, vectors, p.m, p.mass, p.alpha)
    else:
        w.isa.soften(w.s, n, w.peaks, vectors, p.m, p.mass, p.alpha)
    ask(&w.wanted, ASKED)
    w.isa.accumulate(w.values, w.width, n, w.width, w.s, vectors, p.alpha, p.o)


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
        Panel p
        i64 depth = query.shape[3], width = value.shape[3], n_clusters = surrogates.shape[1]
        i64 q_stride = query.strides[2] // 4, k_stride = key.strides[2] // 4, v_stride = value.strides[2] // 4
        i64 task, upcoming, cluster, head, n_queries, n_panels, n, i, k, used
        int64_t first, at, stop, row
        const float *keys
        const float *values
        float factor = <float> (scale if is_laplace else scale * LOG2E)
        float own_gains[128]  # TILE_KEYS

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
            keys, values = &key[batches[cluster], head, 0, 0], &value[batches[cluster], head, 0, 0]
            for i in range(n_panels):
                panel_begin(&w, panel_at(&w, i), &query[batches[cluster], head, 0, 0], q_stride,
                            &rows[first + i * w.lanes], min(w.lanes, n_queries - i * w.lanes), factor, is_laplace)
            if first == at:  # the cluster's own token is one more query
                panel_begin(&w, panel_at(&w, n_panels), &surrogates[head, cluster % n_clusters, 0], depth, NULL, 1,
                            factor, is_laplace)
            while at < stop:
                n = min(TILE_KEYS, stop - at)
                for k in range(n):
                    row = rows[at + k]
                    if at + k + 8 < stop:
                        tile_prefetch(keys + rows[at + k + 8] * k_stride, depth)
                        tile_prefetch(values + rows[at + k + 8] * v_stride, width)
                    memcpy(w.keys + k * depth, keys + row * k_stride, depth * sizeof(float))
                    memcpy(w.values + k * width, values + row * v_stride, width * sizeof(float))
                    if gains is not None:
                        own_gains[k] = gains[batches[cluster], row]
                for i in range(n_panels):
                    used = min(w.lanes, n_queries - i * w.lanes)
                    panel_step(&w, panel_at(&w, i), n, (used + w.isa.vector - 1) // w.isa.vector, NULL, is_laplace)
                if tasks[task, 2] == 0:
                    panel_step(&w, panel_at(&w, n_panels), n, 1, own_gains if gains is not None else NULL, is_laplace)
                at += n
            for i in range(n_panels if width > 0 else 0):
                p = panel_at(&w, i)
                w.isa.store(p.o, p.mass, min(w.lanes, n_queries - i * w.lanes), width, 1.0, NULL,
                            &within[head, first + i * w.lanes, 0], width, NULL)
            if tasks[task, 2] == 0 and width > 0:
                p = panel_at(&w, n_panels)
                w.isa.store(p.o, p.mass, 1, width, 1.0, NULL, &summaries[head, cluster, 0], width, NULL)
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


def mix(
    const float[:, :, :, :] query, const float[:, :, ::1] surrogates, const int64_t[:, ::1] spans,
    const int64_t[::1] index, const float[:, ::1] gains, double scale, bint is_laplace,
    const int64_t[::1] member_offsets, const int64_t[::1] member_clusters, const int64_t[::1] places,
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
        i64 task, sequence, head, batch, n, i, d, e, vectors, first_cluster, place, at
        const float *own_logits
        Kept kept
        i64 stride
        int64_t t, start, stop
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
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0] or width == 0:
                break
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
                        kept = kept_at(start, t + n, stop)
                        for i in range(n_clusters):
                            want(&w.wanted, &logits[head, kept.start * n_clusters + t + n - kept.start]
                                 + i * kept.width, min(w.lanes, stop - t - n))
                weigh_clusters(&w, p, own_logits, stride, own_gains, n_clusters, &member_offsets[first_cluster], n,
                               is_laplace)
                at = 0
                for i in range(n):  # a member's weight is taken from the summary
                    for place in range(place_offsets[t + i], place_offsets[t + i + 1]):
                        d = (member_clusters[places[place]] - first_cluster) * w.lanes + i
                        weights[at] = w.s[d] / p.mass[i]
                        w.s[d] = 0
                        at += 1
                if is_finite:
                    e = 0
                    while e < width:
                        ask(&w.wanted, 64)
                        w.isa.accumulate(&summaries[head, first_cluster, e], width, n_clusters, min(16, width - e),
                                         w.s, vectors, p.alpha, p.o + e * w.lanes)
                        e += 16
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
