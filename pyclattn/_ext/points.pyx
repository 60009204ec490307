"""Points far apart and points near (points.h): exact in float32."""

from libc.math cimport INFINITY
from libc.stdint cimport int64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from pyclattn._ext.isa cimport (
    TILE_KEYS, TILE_MASKED, best_at, best_size, current, draw_task, new_floats, padded, tile_best, tile_isa,
)


cdef long longest(const int64_t[:, ::1] spans) noexcept nogil:
    cdef long most = 0, s
    for s in range(spans.shape[0]):
        most = max(most, spans[s, 2] - spans[s, 1])
    return most


cdef void choose(const tile_isa *isa, const float *points, const int64_t *index, int64_t start, long n, long depth,
                 float *panels, float *nearest, int64_t[::1] chosen) noexcept nogil:
    """Of the `n` rows from `start` on (or at index[0], ...) the first, then the farthest from those chosen."""
    cdef long n_panels = (n + isa.lanes - 1) // isa.lanes, i, number, at = 0
    cdef int64_t row
    for i in range(n_panels):
        isa.load(points if index != NULL else points + (start + i * isa.lanes) * depth, depth,
                 NULL if index == NULL else index + i * isa.lanes, min(isa.lanes, n - i * isa.lanes), depth, 1.0,
                 panels + i * isa.lanes * depth)
    for i in range(n_panels * isa.lanes):
        nearest[i] = <float> 3.4028234663852886e38 if i < n else -1
    for number in range(chosen.shape[0]):
        if number >= n:
            chosen[number] = -1
            continue
        row = index[at] if index != NULL else start + at
        chosen[number] = row
        nearest[at] = -1  # below every distance from now on
        at = isa.farthest(panels, n_panels, depth, points + row * depth, nearest)


def choose_farthest(
    const float[:, :, ::1] points, const int64_t[:, ::1] spans, const int64_t[::1] index, const int64_t[:, ::1] tasks,
    int64_t[:, ::1] chosen, int64_t[::1] counter,
):
    """The point farthest from those chosen, again and again (see `pyclattn.reference.points`)."""
    cdef:
        const tile_isa *isa
        float *panels
        long depth = points.shape[2], task, sequence, room, n
        int64_t start
        const int64_t *rows

    with nogil:
        isa = current()
        room = (longest(spans) + isa.lanes - 1) // isa.lanes * isa.lanes
        panels = new_floats((depth + 1) * <size_t> room)
        if panels == NULL:
            with gil:
                raise MemoryError("no memory for the points of one sequence")
        memset(panels, 0, (depth + 1) * <size_t> room * sizeof(float))  # lanes without a point hold numbers
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0]:
                break
            sequence = tasks[task, 0]
            start, n = spans[sequence, 1], spans[sequence, 2] - spans[sequence, 1]
            rows = NULL
            if index is not None and n > 0:
                rows = &index[start]
            choose(isa, &points[spans[sequence, 0], 0, 0] if n > 0 else NULL, rows, start, n, depth, panels,
                   panels + depth * room, chosen[sequence])
        free(panels)


def find_nearest(
    const float[:, :, ::1] queries, const float[:, :, ::1] points, const int64_t[:, ::1] spans,
    const int64_t[::1] index, long topk, const int64_t[:, ::1] tasks, long chunk, float[:, :, ::1] distances,
    int64_t[:, :, ::1] neighbors, int64_t[::1] counter,
):
    """The points nearest to each of `chunk` queries (see `pyclattn.reference.points`)."""
    cdef:
        const tile_isa *isa
        tile_best best
        float *memory
        float *panel
        float *s
        float *peaks
        float *gathered
        float *lists
        const float *rows
        const float *block
        const int64_t *numbers
        long depth = points.shape[2], lanes, task, sequence, batch, first, stop, at, n, n_keys, n_points, k, lane, t
        int64_t start

    with nogil:
        isa = current()
        lanes = isa.lanes
        memory = new_floats((depth + 2 * TILE_KEYS + 1) * padded(lanes) + padded(TILE_KEYS * depth)
                            + best_size(lanes, topk))
        if memory == NULL:
            with gil:
                raise MemoryError("no memory for one block of neighbours")
        panel = memory
        s = panel + depth * padded(lanes)
        peaks = s + TILE_KEYS * padded(lanes)
        gathered = peaks + (TILE_KEYS + 1) * padded(lanes)
        lists = gathered + padded(TILE_KEYS * depth)
        best_at(&best, lists, lanes, topk)
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0]:
                break
            sequence, first = tasks[task, 0], tasks[task, 1]
            batch, start = spans[sequence, 0], spans[sequence, 1]
            n_points = spans[sequence, 2] - start
            rows = &points[batch, 0, 0]
            stop = min(queries.shape[1], first + chunk)
            while first < stop:
                n = min(lanes, stop - first)
                isa.load(&queries[batch, first, 0], depth, NULL, n, depth, 1.0, panel)
                memset(best.counts, 0, lanes * sizeof(long))
                for lane in range(lanes):  # idle lanes must never be hit
                    best.threshold[lane] = 2 * TILE_MASKED if lane < n else INFINITY
                at = 0
                while at < n_points:
                    n_keys = min(TILE_KEYS, n_points - at)
                    block, numbers = rows + (start + at) * depth, NULL
                    if index is not None:
                        numbers, block = &index[start + at], gathered
                        for k in range(n_keys):
                            memcpy(gathered + k * depth, rows + numbers[k] * depth, depth * sizeof(float))
                    isa.apart(block, depth, n_keys, depth, panel, (n + isa.vector - 1) // isa.vector, s, peaks)
                    isa.pick(s, peaks, n_keys, (n + isa.vector - 1) // isa.vector, numbers, start + at, &best)
                    at += n_keys
                for lane in range(n):
                    isa.cut(&best, lane)
                    for t in range(best.counts[lane]):
                        distances[batch, first + lane, t] = -best.scores[lane * best.room + t]
                        neighbors[batch, first + lane, t] = best.rows[lane * best.room + t]
                    for t in range(best.counts[lane], topk):
                        distances[batch, first + lane, t] = INFINITY
                        neighbors[batch, first + lane, t] = -1
                first += n
        free(memory)
