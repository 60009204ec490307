"""Centroid attention: inputs go by in blocks, centroids are the lanes of several panels (centroids.h)."""

from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from pyclattn._ext.isa cimport (
    TILE_KEYS, current, draw_task, free_floats, i64, new_floats, padded, tile_isa,
)

cdef double LOG2E = 1.4426950408889634
# Scores of a block: 2^17 floats = 512 kB, half of a second-level cache; but at least 16 inputs share a panel.
cdef i64 MOST_SCORES = 1 << 17
cdef i64 LEAST_INPUTS = 16


cdef struct Work:
    const tile_isa *isa
    float *memory
    i64 depth, width, lanes, n_panels, n_rows
    float *queries  # panels [n_panels][depth][lanes]
    float *o        # [n_panels][width][lanes]
    float *s        # [n_panels][n_rows][lanes]
    float *peaks
    float *ones     # [lanes]
    float *totals   # [n_rows]
    float *keys     # a block of keys, packed where rows do not lie side by side
    float *values   # a block of values, divided by the sums of their rows


cdef bint work_new(Work *w, i64 depth, i64 width, i64 n_centroids) noexcept nogil:
    """Buffers of one thread. False where memory is out."""
    cdef size_t lanes, n_panels, n_rows
    cdef i64 i
    w.isa = current()
    w.depth, w.width, w.lanes = depth, width, w.isa.lanes
    w.n_panels = (n_centroids + w.lanes - 1) // w.lanes
    w.n_rows = max(LEAST_INPUTS, min(TILE_KEYS, MOST_SCORES // max(1, w.n_panels * w.lanes) // 8 * 8))
    lanes, n_panels, n_rows = padded(w.lanes), w.n_panels, w.n_rows
    w.memory = new_floats(n_panels * lanes * (depth + width + n_rows) + (n_rows + 2) * lanes
                          + padded(n_rows) + padded(n_rows * depth) + padded(n_rows * width))
    if w.memory == NULL:
        return False
    w.queries = w.memory
    w.o = w.queries + n_panels * lanes * depth
    w.s = w.o + n_panels * lanes * width
    w.peaks = w.s + n_panels * lanes * n_rows
    w.ones = w.peaks + (n_rows + 1) * lanes
    w.totals = w.ones + lanes
    w.keys = w.totals + padded(n_rows)
    w.values = w.keys + padded(n_rows * depth)
    for i in range(w.lanes):
        w.ones[i] = 1
    return True


cdef i64 in_panel(Work *w, i64 number, i64 n_centroids) noexcept nogil:
    return min(w.lanes, n_centroids - number * w.lanes)


cdef void gather_block(Work *w, i64 n_centroids, const float *keys, i64 key_stride, const float *values,
                       i64 value_stride, const int64_t *index, i64 n, i64 value_width) noexcept nogil:
    """What `n` inputs give to all centroids; column `value_width`, where there is one, is their mass."""
    cdef i64 i, k, e, vectors, row, score_stride = w.depth
    cdef const float *scored = keys
    cdef const float *value
    cdef float share
    if index != NULL or key_stride != w.depth:  # rows far apart cost a page each, for every panel
        for k in range(n):
            row = index[k] if index != NULL else k
            memcpy(w.keys + k * w.depth, keys + row * key_stride, w.depth * sizeof(float))
        scored = w.keys
    for i in range(w.n_panels):
        vectors = (in_panel(w, i, n_centroids) + w.isa.vector - 1) // w.isa.vector
        w.isa.score(scored, score_stride, n, w.depth, w.queries + i * w.depth * w.lanes, vectors,
                    w.s + i * w.n_rows * w.lanes, w.peaks)
    w.isa.share(w.s, w.n_rows * w.lanes, n, n_centroids, w.totals)
    for k in range(n):
        value = values + (index[k] if index != NULL else k) * value_stride
        share = 1 / w.totals[k]
        for e in range(value_width):
            w.values[k * w.width + e] = value[e] * share
        for e in range(value_width, w.width):
            w.values[k * w.width + e] = share
    for i in range(w.n_panels):
        vectors = (in_panel(w, i, n_centroids) + w.isa.vector - 1) // w.isa.vector
        w.isa.accumulate(w.values, w.width, n, w.width, w.s + i * w.n_rows * w.lanes, vectors, w.ones,
                         w.o + i * w.width * w.lanes)


def gather_inputs(
    const float[:, :, :, :] query, const int64_t[:, ::1] query_spans, const int64_t[::1] query_index,
    const float[:, :, :, :] key, const float[:, :, :, :] value, const int64_t[:, ::1] key_spans,
    const int64_t[::1] key_index, double scale, const int64_t[:, ::1] tasks, i64 chunk,
    float[:, :, :, :, ::1] values, float[:, :, :, ::1] masses, int64_t[::1] counter,
):
    """What `chunk` inputs give to each centroid (see `pyclattn.reference.centroid`)."""
    cdef:
        Work w
        i64 depth = query.shape[3], value_width = value.shape[3], width = value_width + (masses is not None)
        i64 q_stride = query.strides[2] // 4, k_stride = key.strides[2] // 4, v_stride = value.strides[2] // 4
        i64 group = query.shape[1] // max(key.shape[1], 1)
        i64 task, sequence, head, first, part, batch, n_centroids, n, i, lane, c
        int64_t centroids, inputs, at, stop
        const int64_t *chosen
        const int64_t *index
        const float *keys
        const float *rows
        const float *panel

    with nogil:
        if not work_new(&w, depth, width, query.shape[2]):
            with gil:
                raise MemoryError("no memory for one block of centroid attention")
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0]:
                break
            sequence, head, first = tasks[task, 0], tasks[task, 1], tasks[task, 2]
            part, batch = first // chunk, query_spans[sequence, 0]
            centroids, n_centroids = query_spans[sequence, 1], query_spans[sequence, 2] - query_spans[sequence, 1]
            if n_centroids == 0:
                continue
            inputs = key_spans[sequence, 1]
            at, stop = inputs + first, min(key_spans[sequence, 2], inputs + first + chunk)
            keys, rows = &key[batch, head // group, 0, 0], &value[batch, head // group, 0, 0]
            chosen, index = NULL, NULL
            if query_index is not None:
                chosen = &query_index[centroids]
            w.n_panels = (n_centroids + w.lanes - 1) // w.lanes
            memset(w.o, 0, <size_t> w.n_panels * width * w.lanes * sizeof(float))
            for i in range(w.n_panels):
                c = i * w.lanes
                w.isa.load(&query[batch, head, 0 if chosen != NULL else centroids + c, 0], q_stride,
                           NULL if chosen == NULL else chosen + c, in_panel(&w, i, n_centroids), depth,
                           <float> (scale * LOG2E), w.queries + i * depth * w.lanes)
            while at < stop:
                n = min(w.n_rows, stop - at)
                if key_index is not None:
                    index = &key_index[at]
                    gather_block(&w, n_centroids, keys, k_stride, rows, v_stride, index, n, value_width)
                else:
                    gather_block(&w, n_centroids, keys + at * k_stride, k_stride, rows + at * v_stride, v_stride,
                                 NULL, n, value_width)
                at += n
            for i in range(w.n_panels):
                c, n = i * w.lanes, in_panel(&w, i, n_centroids)
                panel = w.o + i * width * w.lanes
                if value_width > 0:
                    w.isa.store(panel, w.ones, n, value_width, 1.0, NULL,
                                &values[part, batch, head, 0 if chosen != NULL else centroids + c, 0], value_width,
                                NULL if chosen == NULL else chosen + c)
                for lane in range(n if masses is not None else 0):
                    masses[part, batch, head, chosen[c + lane] if chosen != NULL else centroids + c + lane] = (
                        panel[value_width * w.lanes + lane])
        free_floats(w.memory)


def weigh_pairs(
    const float[:, :, :, :] query, const float[:, :, :, :] key, const int64_t[:, :, ::1] neighbors,
    bint is_by_centroid, double scale, const int64_t[:, ::1] tasks, float[:, :, :, ::1] weights,
    int64_t[::1] counter,
):
    """Softmax within groups of pairs (see `pyclattn.reference.centroid`)."""
    cdef:
        const tile_isa *isa
        i64 depth = query.shape[3], n_neighbors = neighbors.shape[2], n_centroids = query.shape[2]
        i64 stride = key.strides[2] // 4, n_groups = 1 if is_by_centroid else key.shape[2]
        i64 group = query.shape[1] // max(key.shape[1], 1), task, batch, head, at, k
        float factor = <float> (scale * LOG2E)
        float *peaks
        double *totals
        int64_t *own  # by centroid: whether there is a neighbour
        const int64_t *rows
        const float *keys
        float *w

    with nogil:
        isa = current()
        totals = <double *> malloc(max(1, n_groups) * (sizeof(double) + sizeof(float)) + n_neighbors * sizeof(int64_t))
        if totals == NULL:
            with gil:
                raise MemoryError("no memory for the groups of centroid attention")
        own = <int64_t *> (totals + n_groups)
        peaks = <float *> (own + n_neighbors)
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0] or n_centroids * n_neighbors == 0:
                break
            batch, head = tasks[task, 0], tasks[task, 1]
            rows, keys, w = &neighbors[batch, 0, 0], &key[batch, head // group, 0, 0], &weights[batch, head, 0, 0]
            for at in range(n_centroids):
                isa.score_pairs(&query[batch, head, at, 0], keys, stride, rows + at * n_neighbors, n_neighbors, depth,
                                factor, w + at * n_neighbors)
                if is_by_centroid:
                    for k in range(n_neighbors):
                        own[k] = min(rows[at * n_neighbors + k], 0)
                    isa.share_pairs(w + at * n_neighbors, own, n_neighbors, 1, peaks, totals)
            if not is_by_centroid:
                isa.share_pairs(w, rows, n_centroids * n_neighbors, n_groups, peaks, totals)
        free(totals)


def gather_pairs(
    const float[:, :, :, :] value, const int64_t[:, :, ::1] neighbors, const float[:, :, :, ::1] weights,
    bint is_divided, const int64_t[:, ::1] tasks, i64 chunk, float[:, :, :, :] out, int64_t[::1] counter,
):
    """The values of each centroid's neighbours, weighed (see `pyclattn.reference.centroid`)."""
    cdef:
        const tile_isa *isa
        i64 width = value.shape[3], group = out.shape[1] // max(value.shape[1], 1), n_neighbors = neighbors.shape[2]
        i64 stride = value.strides[2] // 4, task, batch, head, first, j, k, e
        const float *w
        float *total
        double mass

    with nogil:
        isa = current()
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0] or width == 0:
                break
            batch, head, first = tasks[task, 0], tasks[task, 1], tasks[task, 2]
            for j in range(first, min(first + chunk, out.shape[2])):
                w, total, mass = &weights[batch, head, j, 0], &out[batch, head, j, 0], 0
                isa.sum_pairs(&value[batch, head // group, 0, 0], stride, &neighbors[batch, j, 0], w, n_neighbors,
                              width, total)
                for k in range(n_neighbors if is_divided else 0):
                    mass += w[k]
                for e in range(width if mass != 0 else 0):
                    total[e] = <float> (total[e] / mass)


def find_repeated(
    const int64_t[:, :, ::1] neighbors, i64 n_inputs, const int64_t[:, ::1] tasks, int64_t[::1] repeated,
    int64_t[::1] counter,
):
    """Where a centroid has a neighbour twice (see `pyclattn.reference.centroid`)."""
    cdef:
        i64 n_neighbors = neighbors.shape[2], n_pairs = neighbors.shape[1] * n_neighbors, task, batch, first, k, row
        int64_t *last  # the latest pair of each input
        const int64_t *rows

    with nogil:
        last = <int64_t *> malloc(max(1, n_inputs) * sizeof(int64_t))
        if last == NULL:
            with gil:
                raise MemoryError("no memory for the inputs' latest pairs")
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0] or n_pairs == 0:
                break
            batch, first = tasks[task, 0], 0
            rows, repeated[batch] = &neighbors[batch, 0, 0], -1
            memset(last, 255, n_inputs * sizeof(int64_t))  # -1: none
            for k in range(n_pairs):
                if k == first + n_neighbors:
                    first = k
                row = rows[k]
                if row >= 0:
                    if last[row] >= first:
                        repeated[batch] = k
                        break
                    last[row] = k
        free(last)
