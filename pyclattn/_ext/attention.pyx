"""Attention kernels over panels of queries (tile.h): exact, at the centroids, and of members to their selected keys.

Each `def` owns the buffers of one thread and draws tasks; the `cdef` functions do one panel and one block of keys.
"""

from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.string cimport memcpy, memset

from pyclattn._ext.isa cimport (
    TILE_KEYS, TILE_MASKED, best_at, best_size, bfloat16, current, draw_task, free_floats, i64, new_floats, padded,
    tile_all_finite, tile_best, tile_isa, tile_term,
)

cdef double LOG2E = 1.4426950408889634


cdef struct Panel:
    float *queries  # [D][lanes]
    float *o        # [E][lanes]
    float *m        # [lanes] running maximum, logits in base 2
    float *mass     # [lanes] running sum


cdef struct Work:
    const tile_isa *isa
    float *memory
    i64 depth, width, lanes
    float *panels   # one after the other, panel_size floats each
    size_t panel_size
    float *s
    float *peaks
    float *alpha
    int32_t *iota   # 0, 1, 2, ...
    float *keys     # a block of keys and values, packed where rows do not lie side by side
    float *values


cdef struct Block:
    const float *keys
    const float *values
    i64 key_stride, value_stride, n
    const int64_t *index    # rows of the keys, or NULL: first_row + k
    int64_t first_row


cdef struct Mask:
    bint is_causal
    const int32_t *lane_positions
    int64_t origin          # position of the query at lane position 0
    const float *bias       # of the panel's first query, or NULL
    const uint8_t *allowed  # likewise
    i64 query_stride, key_stride


cdef bint work_new(Work *w, const tile_isa *isa, i64 depth, i64 width, i64 n_panels, i64 n_packed) noexcept nogil:
    """Buffers for one thread; `n_packed` rows of keys and values. False where memory is out."""
    cdef size_t size
    cdef i64 i
    w.isa = isa
    w.lanes, w.depth, w.width = w.isa.lanes, depth, width
    w.panel_size = (depth + width + 2) * padded(w.lanes)
    size = n_panels * w.panel_size + (2 * TILE_KEYS + 8) * padded(w.lanes) + n_packed * (depth + width) + 64
    w.memory = new_floats(size)
    if w.memory == NULL:
        return False
    w.panels = w.memory
    w.s = w.panels + n_panels * w.panel_size
    w.peaks = w.s + TILE_KEYS * padded(w.lanes)
    w.alpha = w.peaks + (TILE_KEYS + 1) * padded(w.lanes)
    w.iota = <int32_t *> (w.alpha + padded(w.lanes))
    w.keys = <float *> w.iota + padded(w.lanes)
    w.values = w.keys + padded(n_packed * depth)
    for i in range(w.lanes):
        w.iota[i] = <int32_t> i
    return True


cdef Panel panel_at(Work *w, i64 number) noexcept nogil:
    cdef Panel p
    p.queries = w.panels + number * w.panel_size
    p.o = p.queries + w.depth * w.lanes
    p.m = p.o + w.width * w.lanes
    p.mass = p.m + w.lanes
    return p


cdef void panel_begin(Work *w, Panel p, const float *rows, i64 stride, const int64_t *index, i64 n,
                      float factor) noexcept nogil:
    cdef i64 i
    w.isa.load(rows, stride, index, n, w.depth, factor, p.queries)
    memset(p.o, 0, w.width * w.lanes * sizeof(float))
    memset(p.mass, 0, w.lanes * sizeof(float))
    for i in range(w.lanes):
        p.m[i] = TILE_MASKED


cdef void panel_step(Work *w, Panel p, i64 n_queries, Block b, Mask *mask, const tile_best *best) noexcept nogil:
    """One block of keys: scores, selection where asked for, softmax, values."""
    cdef i64 vectors = (n_queries + w.isa.vector - 1) // w.isa.vector
    w.isa.score(b.keys, b.key_stride, b.n, w.depth, p.queries, vectors, w.s, w.peaks)
    if best != NULL:
        w.isa.pick(w.s, w.peaks, b.n, vectors, b.index, b.first_row, <tile_best *> best)
    if mask == NULL:
        w.isa.soften(w.s, b.n, w.peaks, vectors, p.m, p.mass, w.alpha)
        w.isa.accumulate(b.values, b.value_stride, b.n, w.width, w.s, vectors, w.alpha, p.o)
        return
    if mask.bias != NULL:
        w.isa.add_bias(w.s, b.n, n_queries, vectors, b.index, b.first_row, mask.bias, mask.query_stride,
                       mask.key_stride)
    if mask.allowed != NULL:
        w.isa.allow(w.s, b.n, n_queries, b.index, b.first_row, mask.allowed, mask.query_stride, mask.key_stride)
    if mask.is_causal:
        w.isa.mask_future(w.s, b.n, vectors, b.index, b.first_row, mask.lane_positions, mask.origin)
    w.isa.soften_masked(w.s, b.n, vectors, p.m, p.mass, w.alpha)
    if tile_all_finite(b.values, b.value_stride, w.isa.pair, b.n, w.width):
        w.isa.accumulate(b.values, b.value_stride, b.n, w.width, w.s, vectors, w.alpha, p.o)
    else:
        accumulate_seen(w, p, n_queries, b)


cdef void accumulate_seen(Work *w, Panel p, i64 n_queries, Block b) noexcept nogil:
    """Values that are not finite must not meet weights of zero, 0 x inf: row by row, only where seen."""
    cdef i64 e, k, i
    cdef float x, weight
    for e in range(w.width):
        for i in range(w.lanes):
            p.o[e * w.lanes + i] *= w.alpha[i]
        for k in range(b.n):
            x = tile_term(b.values + e, b.value_stride, w.isa.pair, k)
            for i in range(n_queries):
                weight = tile_term(w.s + i, w.lanes, w.isa.pair, k)
                if weight != 0:
                    p.o[e * w.lanes + i] += weight * x


cdef void pack(Work *w, Block *b, const float *keys, i64 key_stride, const float *values, i64 value_stride,
               const int64_t *index) noexcept nogil:
    """Copy the rows of a block side by side, as the table takes them: rows far apart cost a page each."""
    w.isa.pack_rows(keys, key_stride, index, b.n, w.depth, w.keys)
    w.isa.pack_columns(values, value_stride, index, b.n, w.width, w.values)
    b.keys, b.values = w.keys, w.values
    b.key_stride, b.value_stride = (w.depth + w.isa.pair - 1) // w.isa.pair, w.width


cdef void take_block(Work *w, Block *b, const float *keys, i64 key_stride, const float *values, i64 value_stride,
                     const int64_t *index, int64_t at, i64 n, bint is_packed) noexcept nogil:
    """The block of `n` keys from `at` on: where they lie, or packed."""
    b.n, b.first_row, b.index = n, at, index
    if index != NULL:
        b.index = index + at
        pack(w, b, keys, key_stride, values, value_stride, b.index)
    elif is_packed:
        pack(w, b, keys + at * key_stride, key_stride, values + at * value_stride, value_stride, NULL)
    else:
        b.keys, b.values = keys + at * key_stride, values + at * value_stride
        b.key_stride, b.value_stride = key_stride, value_stride


def attend(
    const float[:, :, :, :] query, const int64_t[:, ::1] query_spans, const float[:, :, :, :] key,
    const float[:, :, :, :] value, const int64_t[:, ::1] key_spans, const int64_t[::1] key_index,
    const uint8_t[:, :, :, :] allowed, const float[:, :, :, :] bias, bint is_causal, double scale,
    const int64_t[:, ::1] tasks, i64 chunk, float[:, :, :, :] out, int64_t[::1] counter,
):
    """Exact attention of `chunk` queries a task (see `pyclattn.reference.attention`)."""
    attend_with(current(), query, query_spans, key, value, key_spans, key_index, allowed, bias, is_causal, scale,
                tasks, chunk, out, counter)


def attend_bfloat16(
    const float[:, :, :, :] query, const int64_t[:, ::1] query_spans, const float[:, :, :, :] key,
    const float[:, :, :, :] value, const int64_t[:, ::1] key_spans, const int64_t[::1] key_index,
    const uint8_t[:, :, :, :] allowed, const float[:, :, :, :] bias, bint is_causal, double scale,
    const int64_t[:, ::1] tasks, i64 chunk, float[:, :, :, :] out, int64_t[::1] counter,
):
    """The same with products of bfloat16."""
    attend_with(bfloat16(), query, query_spans, key, value, key_spans, key_index, allowed, bias, is_causal, scale,
                tasks, chunk, out, counter)


cdef int attend_with(
    const tile_isa *isa, const float[:, :, :, :] query, const int64_t[:, ::1] query_spans,
    const float[:, :, :, :] key, const float[:, :, :, :] value, const int64_t[:, ::1] key_spans,
    const int64_t[::1] key_index, const uint8_t[:, :, :, :] allowed, const float[:, :, :, :] bias, bint is_causal,
    double scale, const int64_t[:, ::1] tasks, i64 chunk, float[:, :, :, :] out, int64_t[::1] counter,
) except -1:
    cdef:
        Work w
        Block b
        Mask mask
        Mask *masked
        Panel p
        i64 depth = query.shape[3], width = value.shape[3], group = query.shape[1] // max(key.shape[1], 1)
        i64 q_stride = query.strides[2] // 4, k_stride = key.strides[2] // 4
        i64 v_stride = value.strides[2] // 4, o_stride = out.strides[2] // 4
        i64 task, sequence, head, batch, key_batch, first, start, n_queries, n, i, n_panels
        int64_t key_start, n_keys, at, last
        const float *keys
        const float *values
        const int64_t *index
        bint has_mask = bias is not None or allowed is not None, is_apart, is_packed

    with nogil:
        if not work_new(&w, isa, depth, width, (chunk + isa.lanes - 1) // isa.lanes, TILE_KEYS):
            with gil:
                raise MemoryError("no memory for one block of attention")
        memset(&mask, 0, sizeof(Mask))
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0]:
                break
            sequence, head, first = tasks[task, 0], tasks[task, 1], tasks[task, 2]
            batch, start = query_spans[sequence, 0], query_spans[sequence, 1]
            n_queries = min(chunk, query_spans[sequence, 2] - start - first)
            key_batch, key_start = key_spans[sequence, 0], key_spans[sequence, 1]
            n_keys = key_spans[sequence, 2] - key_start
            index = NULL
            if key_index is not None and n_keys > 0:
                index = &key_index[key_start]
            # positions and rows count from the sequence's first row; an index holds rows of a padded array
            keys, values = NULL, NULL
            if n_keys > 0:
                keys = &key[key_batch, head // group, 0, 0] + (0 if index != NULL else key_start * k_stride)
                values = &value[key_batch, head // group, 0, 0] + (0 if index != NULL else key_start * v_stride)
            is_apart = k_stride != depth or v_stride != width
            is_packed = isa.pair > 1 or index != NULL or (is_apart and n_queries >= w.lanes)
            n_panels = (n_queries + w.lanes - 1) // w.lanes
            for i in range(n_panels):
                panel_begin(&w, panel_at(&w, i), &query[batch, head, start + first + i * w.lanes, 0], q_stride, NULL,
                            min(w.lanes, n_queries - i * w.lanes), <float> (scale * LOG2E))
            at = 0
            while at < n_keys:
                if is_causal and (index[at] if index != NULL else at) > first + n_queries - 1:
                    break
                take_block(&w, &b, keys, k_stride, values, v_stride, index, at, min(TILE_KEYS, n_keys - at), is_packed)
                n = b.n
                for i in range(n_panels):
                    masked = NULL
                    b.n = n
                    if is_causal:  # leave out keys that no query of the panel sees
                        last = first + min((i + 1) * w.lanes, n_queries) - 1
                        if index == NULL:
                            b.n = max(0, min(n, last + 1 - at))
                        else:
                            while b.n > 0 and index[at + b.n - 1] > last:
                                b.n -= 1
                        if b.n == 0:
                            continue
                        mask.is_causal = (b.index[b.n - 1] if index != NULL else at + b.n - 1) > first + i * w.lanes
                        mask.lane_positions, mask.origin = w.iota, first + i * w.lanes
                    if bias is not None:
                        mask.bias = &bias[batch, head, first + i * w.lanes, 0]
                        mask.query_stride, mask.key_stride = bias.strides[2] // 4, bias.strides[3] // 4
                    elif allowed is not None:
                        mask.allowed = &allowed[batch, head, first + i * w.lanes, 0]
                        mask.query_stride, mask.key_stride = allowed.strides[2], allowed.strides[3]
                    if has_mask or mask.is_causal:
                        masked = &mask
                    panel_step(&w, panel_at(&w, i), min(w.lanes, n_queries - i * w.lanes), b, masked, NULL)
                at += n
            for i in range(n_panels):
                p = panel_at(&w, i)
                if width > 0:
                    w.isa.store(p.o, p.mass, min(w.lanes, n_queries - i * w.lanes), width, 1.0, NULL,
                                &out[batch, head, start + first + i * w.lanes, 0], o_stride, NULL)
        free_floats(w.memory)


def attend_centroids(
    const float[:, :, ::1] centroids, const int64_t[::1] cluster_offsets, const float[:, :, :, :] key,
    const float[:, :, :, :] value, const int64_t[:, ::1] key_spans, const int64_t[::1] key_index, i64 topk,
    double scale, const int64_t[:, ::1] tasks, i64 chunk, i64 split, float[:, :, ::1] peaks,
    float[:, :, ::1] masses, float[:, :, :, ::1] values, float[:, :, :, ::1] top_scores,
    int64_t[:, :, :, ::1] top_keys, int64_t[::1] counter,
):
    """Attention of `chunk` centroids to `split` keys, undivided, and their topk keys.

    See `pyclattn.reference.attention`.
    """
    cdef:
        Work w
        Block b
        Panel p
        tile_best best
        i64 depth = centroids.shape[2], width = value.shape[3], group = centroids.shape[0] // max(key.shape[1], 1)
        i64 k_stride = key.strides[2] // 4, v_stride = value.strides[2] // 4
        i64 task, sequence, head, part, batch, first, n_clusters, n_panels, n, i, lane, c, t
        size_t list_size
        int64_t at, stop
        const float *keys
        const float *vals
        const int64_t *index = NULL
        float *lists = NULL
        bint is_packed

    with nogil:
        n_panels = (chunk + current().lanes - 1) // current().lanes
        list_size = best_size(current().lanes, topk)
        lists = new_floats(n_panels * list_size)
        if lists == NULL or not work_new(&w, current(), depth, width, n_panels, TILE_KEYS):
            free_floats(lists)
            with gil:
                raise MemoryError("no memory for one block of attention")
        is_packed = key_index is not None or k_stride != depth or v_stride != width
        if key_index is not None and key_index.shape[0] > 0:
            index = &key_index[0]
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0]:
                break
            sequence, head, first, part = tasks[task, 0], tasks[task, 1], tasks[task, 2], tasks[task, 3]
            n_clusters = min(chunk, cluster_offsets[sequence + 1] - first)
            batch = key_spans[sequence, 0]
            at = key_spans[sequence, 1] + part * split
            stop = min(key_spans[sequence, 2], at + split)
            keys, vals = &key[batch, head // group, 0, 0], &value[batch, head // group, 0, 0]
            n_panels = (n_clusters + w.lanes - 1) // w.lanes
            for i in range(n_panels):
                panel_begin(&w, panel_at(&w, i), &centroids[head, first + i * w.lanes, 0], depth, NULL,
                            min(w.lanes, n_clusters - i * w.lanes), <float> (scale * LOG2E))
                best_at(&best, lists + i * list_size, w.lanes, topk)
                memset(best.counts, 0, w.lanes * sizeof(i64))
                for lane in range(w.lanes):  # idle lanes must never be hit
                    best.threshold[lane] = 2 * TILE_MASKED if i * w.lanes + lane < n_clusters else INFINITY
            while at < stop:
                take_block(&w, &b, keys, k_stride, vals, v_stride, index, at, min(TILE_KEYS, stop - at), is_packed)
                for i in range(n_panels):
                    best_at(&best, lists + i * list_size, w.lanes, topk)
                    panel_step(&w, panel_at(&w, i), min(w.lanes, n_clusters - i * w.lanes), b, NULL,
                               &best if topk > 0 else NULL)
                at += b.n
            for i in range(n_panels):
                p = panel_at(&w, i)
                n = min(w.lanes, n_clusters - i * w.lanes)
                c = first + i * w.lanes
                memcpy(&peaks[part, head, c], p.m, n * sizeof(float))
                memcpy(&masses[part, head, c], p.mass, n * sizeof(float))
                for lane in range(n):
                    p.mass[lane] = 1  # stored undivided
                if width > 0:
                    w.isa.store(p.o, p.mass, n, width, 1.0, NULL, &values[part, head, c, 0], width, NULL)
                best_at(&best, lists + i * list_size, w.lanes, topk)
                for lane in range(n if topk > 0 else 0):
                    w.isa.cut(&best, lane)
                    t = best.counts[lane]
                    memcpy(&top_scores[part, head, c + lane, 0], best.scores + lane * best.room, t * sizeof(float))
                    memcpy(&top_keys[part, head, c + lane, 0], best.rows + lane * best.room, t * sizeof(int64_t))
                    for t in range(t, topk):
                        top_scores[part, head, c + lane, t] = -INFINITY
                        top_keys[part, head, c + lane, t] = -1
        free_floats(w.memory)
        free_floats(lists)


def attend_members(
    const float[:, :, :, :] query, const float[:, :, :, :] key, const float[:, :, :, :] value,
    const int64_t[::1] batches, const int64_t[::1] shifts, const int64_t[:, ::1] order,
    const int64_t[:, ::1] member_offsets, const int64_t[:, :, ::1] selected, const float[:, :, ::1] weights,
    const float[:, :, ::1] centroid_values, bint is_causal, double scale, const int64_t[:, ::1] tasks, i64 chunk,
    float[:, :, :, :] out, int64_t[::1] counter,
):
    """Each member attends to its cluster's selected keys (see `pyclattn.reference.attention`)."""
    cdef:
        Work w
        Block b
        Mask mask
        Panel p
        i64 depth = query.shape[3], width = value.shape[3], group = query.shape[1] // max(key.shape[1], 1)
        i64 q_stride = query.strides[2] // 4, k_stride = key.strides[2] // 4
        i64 v_stride = value.strides[2] // 4, o_stride = out.strides[2] // 4, topk = selected.shape[2]
        i64 task, head, c, batch, first, n, n_chosen, k, e, at
        int64_t members, last
        float weight, w_k
        float *base
        int32_t *positions
        float *memory

    with nogil:
        memory = new_floats(padded(width) + padded(current().lanes))
        if memory == NULL or not work_new(&w, current(), depth, width, 1, topk):
            free_floats(memory)
            with gil:
                raise MemoryError("no memory for one block of attention")
        base, positions = memory, <int32_t *> (memory + padded(width))
        memset(&mask, 0, sizeof(Mask))
        mask.is_causal, mask.lane_positions = True, positions
        p = panel_at(&w, 0)
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0]:
                break
            head, first = tasks[task, 0], tasks[task, 1]
            for c in range(first, min(first + chunk, batches.shape[0])):
                members, last, batch = member_offsets[head, c], member_offsets[head, c + 1], batches[c]
                if members == last or width == 0:
                    continue
                n_chosen = 0
                while n_chosen < topk and selected[head, c, n_chosen] >= 0:
                    n_chosen += 1
                b.n = n_chosen
                pack(&w, &b, &key[batch, head // group, 0, 0], k_stride, &value[batch, head // group, 0, 0], v_stride,
                     &selected[head, c, 0])
                weight = 0
                memcpy(base, &centroid_values[head, c, 0], width * sizeof(float))
                for k in range(n_chosen):  # what the centroid gives to the selected keys is taken back
                    w_k = weights[head, c, k]
                    weight += w_k
                    for e in range(width):
                        base[e] -= w_k * w.values[k * width + e]
                while members < last:
                    n = min(w.lanes, last - members)
                    panel_begin(&w, p, &query[batch, head, 0, 0], q_stride, &order[head, members], n,
                                <float> (scale * LOG2E))
                    mask.origin = order[head, members] + shifts[c]
                    for k in range(n if is_causal else 0):
                        positions[k] = <int32_t> (order[head, members + k] - order[head, members])
                    at = 0
                    while at < n_chosen:
                        b.n = min(TILE_KEYS, n_chosen - at)
                        b.keys, b.values = w.keys + at * depth, w.values + at * width
                        b.index = &selected[head, c, at]
                        panel_step(&w, p, n, b, &mask if is_causal else NULL, NULL)
                        at += b.n
                    w.isa.store(p.o, p.mass, n, width, 1.0 if is_causal else weight, NULL if is_causal else base,
                                &out[batch, head, 0, 0], o_stride, &order[head, members])
                    members += n
        free_floats(w.memory)
        free_floats(memory)


def spread_members(
    const int64_t[::1] batches, const int64_t[:, ::1] order, const int64_t[:, ::1] member_offsets,
    const float[:, :, ::1] centroid_values, const int64_t[:, ::1] tasks, i64 chunk, float[:, :, :, :] out,
    int64_t[::1] counter,
):
    """Each member gets its centroid's output (see `pyclattn.reference.attention`)."""
    cdef:
        i64 task, head, first, c, width = centroid_values.shape[2]
        int64_t t

    with nogil:
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0] or width == 0:
                break
            head, first = tasks[task, 0], tasks[task, 1]
            for c in range(first, min(first + chunk, batches.shape[0])):
                for t in range(member_offsets[head, c], member_offsets[head, c + 1]):
                    memcpy(&out[batches[c], head, order[head, t], 0], &centroid_values[head, c, 0],
                           width * sizeof(float))
