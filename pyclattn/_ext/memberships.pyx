"""Kernels of CAST's memberships: affinities of tokens to clusters, and the two clusterings.

Each `def` owns the buffers of one thread and draws tasks; their meaning stands in `pyclattn.reference.memberships`.
"""

from libc.math cimport INFINITY
from libc.stdint cimport INT32_MAX, int32_t, int64_t
from libc.string cimport memcpy, memset

from pyclattn._ext.isa cimport (
    TILE_MASKED, best_at, best_size, current, draw_task, free_floats, i64, new_floats, padded, tile_best, tile_fence,
    tile_isa, tile_prefetch,
)
from pyclattn._ext.wanted cimport Kept, Wanted, kept_at, score_asking, want, want_nothing

cdef double LOG2E = 1.4426950408889634
# Below every affinity: that of a token with a NaN.
cdef float LEAST = -1.0
# Tokens ahead of the one that chooses whose rows of affinities are asked for.
cdef enum:
    AHEAD = 8


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


def affinities(
    const float[:, :, :, :] query, const float[:, :, :, :] key, const float[:, :, ::1] surrogates,
    const int64_t[:, ::1] spans, const int64_t[::1] index, const float[:, :] gate, double scale, bint is_laplace,
    const int64_t[:, ::1] tasks, i64 chunk, i64 origin, float[:, :] out, float[::1] surest, int32_t[::1] labels,
    float[:, ::1] logits, float[:, :, ::1] gains, int64_t[::1] counter,
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
        float *own_shares
        float *own_gate
        float *of_query
        float *of_key
        float *zeros
        float *most
        int32_t *nearest
        const float *rows
        const float *next_rows
        i64 n_heads = surrogates.shape[0], n_clusters = surrogates.shape[1], depth = surrogates.shape[2]
        i64 strides[2]
        i64 lanes, task, upcoming, batch, next_batch, head, side, n, n_later, i, vectors
        i64 row_step = out.strides[0] // 4
        int64_t at, start, stop, later
        bint is_by_token = out.strides[1] == 4

    strides[0], strides[1] = query.strides[2] // 4, key.strides[2] // 4
    with nogil:
        isa = current()
        lanes = isa.lanes
        memory = new_floats((depth + 3 * n_clusters + 14) * padded(lanes) + padded(n_clusters))
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
        own_shares = factor + 7 * padded(lanes)  # of queries, then of keys
        own_gate = own_shares + 2 * padded(lanes)
        of_query, of_key = own_gate + padded(lanes), own_gate + 2 * padded(lanes)
        zeros = own_gate + 3 * padded(lanes)
        memset(zeros, 0, n_clusters * sizeof(float))
        for i in range(lanes):
            ones[i] = 1
        upcoming = draw_task(&counter[0])
        while upcoming < tasks.shape[0]:
            task, upcoming = upcoming, draw_task(&counter[0])
            batch, start = spans[tasks[task, 0], 0], tasks[task, 1]
            at = start
            stop = min(min(at + chunk, spans[tasks[task, 0], 2]), origin + out.shape[0])
            while at < stop:
                n = min(lanes, stop - at)
                next_batch, later, n_later = batch, at + n, min(lanes, stop - at - n)
                if n_later == 0 and upcoming < tasks.shape[0]:
                    next_batch, later = spans[tasks[upcoming, 0], 0], tasks[upcoming, 1]
                    n_later = min(min(lanes, spans[tasks[upcoming, 0], 2] - later), origin + out.shape[0] - later)
                vectors = (n + isa.vector - 1) // isa.vector
                memset(total, 0, n_clusters * lanes * sizeof(float))
                for i in range(lanes):
                    own_gate[i] = gate[batch, index[at + i]] if i < n else 0
                isa.gate(own_gate, own_shares, of_query, of_key)
                for i in range(lanes):
                    own_shares[lanes + i] = 1 - own_shares[i]
                for i in range(n if gains is not None else 0):
                    gains[0, batch, index[at + i]], gains[1, batch, index[at + i]] = of_query[i], of_key[i]
                for head in range(n_heads):
                    for side in range(2):
                        rows = &query[batch, head, 0, 0] if side == 0 else &key[batch, head, 0, 0]
                        want_nothing(&wanted)
                        next_rows = &query[next_batch, head, 0, 0] if side == 0 else &key[next_batch, head, 0, 0]
                        for i in range(n_later):  # of the next panel, or of the next task's first
                            want(&wanted, next_rows + index[later + i] * strides[side], depth)
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
                            factor[i] = own_shares[side * lanes + i] / mass[i]
                        isa.add_shares(s, n_clusters, vectors, factor, total)
                isa.floor(total, n_clusters, vectors, LEAST)
                if labels is not None:
                    for i in range(lanes):
                        most[i] = 2 * LEAST
                    isa.nearest(total, n_clusters, vectors, zeros, 0, most, nearest)
                    memcpy(&surest[at], most, n * sizeof(float))
                    memcpy(&labels[at], nearest, n * sizeof(int32_t))
                if is_by_token:
                    isa.store(total, ones, n, n_clusters, 1.0, NULL, &out[at - origin, 0], row_step, NULL)
                else:
                    isa.keep(total, n_clusters, n, &out[at - origin, 0], out.strides[1] // 4)
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
                t = isa.next_above(values, start - origin, stop - origin, threshold) + origin
                while t < stop:
                    best.scores[count], best.rows[count] = values[t - origin], t
                    count += 1
                    if count == best.room:
                        best.counts[0] = count
                        isa.cut(&best, 0)
                        count, threshold = best.counts[0], best.threshold[0]
                    t = isa.next_above(values, t + 1 - origin, stop - origin, threshold) + origin
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


cdef i64 best_open(const float *row, const int64_t *open_clusters, i64 n_open) noexcept nogil:
    """Of the clusters that have room, in their order, the first of the nearest."""
    cdef i64 i, best = open_clusters[0]
    for i in range(1, n_open):
        if row[open_clusters[i]] > row[best]:
            best = open_clusters[i]
    return best


cdef i64 close(int64_t *open_clusters, i64 n_open, i64 cluster) noexcept nogil:
    """Without one of them; how many are left."""
    cdef i64 i, kept = 0
    for i in range(n_open):
        if open_clusters[i] != cluster:
            open_clusters[kept] = open_clusters[i]
            kept += 1
    return kept


def assign(
    const float[:, ::1] affinity, const int64_t[:, ::1] spans, i64 origin, i64 capacity, const float[::1] surest,
    const int64_t[:, ::1] tasks, int32_t[::1] labels, int64_t[::1] tokens, int64_t[::1] counts, int64_t[::1] counter,
):
    """Tokens to clusters, the surest first; `labels` come as those of their nearest."""
    cdef:
        float *memory
        int64_t *keys
        int64_t *sorted_keys
        int64_t *sizes
        int64_t *open_clusters
        i64 n_clusters = affinity.shape[1], task, n_open
        int64_t most = 0, start, stop, t, later, i
        int32_t bits

    with nogil:
        for task in range(tasks.shape[0]):
            most = max(most, spans[tasks[task, 0], 2] - spans[tasks[task, 0], 1])
        memory = new_floats(2 * (2 * most + 2 * n_clusters))
        if memory == NULL:
            with gil:
                raise MemoryError("no memory for one order of tokens")
        keys = <int64_t *> memory
        sorted_keys = keys + most
        sizes = sorted_keys + most
        open_clusters = sizes + n_clusters
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0]:
                break
            start, stop = spans[tasks[task, 0], 1], spans[tasks[task, 0], 2]
            n_open = n_clusters
            for i in range(n_clusters):
                sizes[i], open_clusters[i] = 0, i
            for t in range(start, stop):
                # ascending: the largest affinity first (bits of floats >= 0 are ordered as they are), then the token
                memcpy(&bits, &surest[t], sizeof(float))
                if not surest[t] >= 0:
                    bits = 0
                keys[t - start] = (<int64_t> (INT32_MAX - bits) << 32) | (t - start)
            sort_tokens(keys, sorted_keys, stop - start)
            for i in range(stop - start):
                if i + AHEAD < stop - start:
                    later = start + (sorted_keys[i + AHEAD] & <int64_t> 0xFFFFFFFF)
                    if sizes[labels[later]] >= capacity:
                        tile_prefetch(&affinity[later - origin, 0], n_clusters)
                t = start + (sorted_keys[i] & <int64_t> 0xFFFFFFFF)
                if sizes[labels[t]] >= capacity:
                    labels[t] = <int32_t> best_open(&affinity[t - origin, 0], open_clusters, n_open)
                sizes[labels[t]] += 1
                if sizes[labels[t]] == capacity:
                    n_open = close(open_clusters, n_open, labels[t])
            t = start
            for i in range(n_clusters):  # sizes become places
                counts[tasks[task, 0] * n_clusters + i] = sizes[i]
                sizes[i], t = t, t + sizes[i]
            for t in range(start, stop):
                tokens[sizes[labels[t]]] = t
                sizes[labels[t]] += 1
        free_floats(memory)


def invert(
    const int64_t[::1] tokens, const int64_t[::1] member_offsets, int64_t[::1] places, int64_t[::1] place_clusters,
    int64_t[::1] place_offsets, int64_t[::1] counter,
):
    """Which members each token is, by counting: the one task of one thread."""
    cdef i64 n_tokens = place_offsets.shape[0] - 1, g
    cdef int64_t t, member, place

    with nogil:
        if draw_task(&counter[0]) == 0:
            memset(&place_offsets[0], 0, (n_tokens + 1) * sizeof(int64_t))
            for member in range(tokens.shape[0]):  # two further on: begins become ends below
                if tokens[member] + 2 <= n_tokens:
                    place_offsets[tokens[member] + 2] += 1
            for t in range(n_tokens):
                place_offsets[t + 1] += place_offsets[t]
            for g in range(member_offsets.shape[0] - 1):
                for member in range(member_offsets[g], member_offsets[g + 1]):
                    place = place_offsets[tokens[member] + 1]
                    places[place], place_clusters[place] = member, g
                    place_offsets[tokens[member] + 1] = place + 1
