"""Points far apart and points near (points.h): exact in float32."""

from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

from pyclattn._ext.isa cimport (
    TILE_MASKED, best_at, best_size, current, draw_task, free_floats, i64, new_floats, padded, tile_best, tile_isa,
)

cdef i64 BLOCK = 2048  # points that all queries of a task look at in turn: with their distances 32 kB in 3-D


cdef i64 longest(const int64_t[:, ::1] spans) noexcept nogil:
    cdef i64 most = 0, s
    for s in range(spans.shape[0]):
        most = max(most, spans[s, 2] - spans[s, 1])
    return most


cdef void load(const tile_isa *isa, const float *points, const int64_t *index, i64 n, i64 depth,
               float *panels) noexcept nogil:
    """`n` rows of points (or those at `index`) as lanes of panels."""
    cdef i64 first = 0
    while first < n:
        isa.load(points if index != NULL else points + first * depth, depth, NULL if index == NULL else index + first,
                 min(isa.lanes, n - first), depth, 1.0, panels + first * depth)
        first += isa.lanes


cdef void choose(const tile_isa *isa, const float *points, const int64_t *index, int64_t start, i64 n, i64 depth,
                 float *panels, float *nearest, int64_t[::1] chosen) noexcept nogil:
    """Of the `n` rows from `start` on (or at index[0], ...) the first, then the farthest from those chosen."""
    cdef i64 n_panels = (n + isa.lanes - 1) // isa.lanes, i, number, at = 0
    cdef int64_t row
    load(isa, points if index != NULL else points + start * depth, index, n, depth, panels)
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
        i64 depth = points.shape[2], task, sequence, room, n
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
        free_floats(panels)


def find_nearest(
    const float[:, :, ::1] queries, const float[:, :, ::1] points, const int64_t[:, ::1] spans,
    const int64_t[::1] index, i64 topk, const int64_t[:, ::1] tasks, i64 chunk, int64_t[:, :, ::1] neighbors,
    int64_t[::1] counter,
):
    """The points nearest to each of `chunk` queries (see `pyclattn.reference.points`)."""
    cdef:
        const tile_isa *isa
        tile_best best  # a list for each query, and one to order in
        float *memory
        float *panels
        float *s
        const float *rows
        const int64_t *numbers = NULL
        i64 depth = points.shape[2], lanes, task, sequence, batch, first, stop, at, n, room, query, t, n_found
        int64_t start

    with nogil:
        isa = current()
        lanes = isa.lanes
        room = padded((min(BLOCK, longest(spans)) + lanes - 1) // lanes * lanes)
        memory = new_floats((depth + 2) * room + best_size(chunk + 1, topk))
        if memory == NULL:
            with gil:
                raise MemoryError("no memory for one block of neighbours")
        panels, s = memory, memory + depth * room
        memset(panels, 0, depth * room * sizeof(float))  # lanes without a point hold numbers
        best_at(&best, s + 2 * room, chunk + 1, topk)
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0]:
                break
            sequence, first = tasks[task, 0], tasks[task, 1]
            batch, start = spans[sequence, 0], spans[sequence, 1]
            stop = min(queries.shape[1], first + chunk)
            rows = &points[batch, 0, 0]
            memset(best.counts, 0, chunk * sizeof(i64))
            for query in range(chunk):
                best.threshold[query] = 2 * TILE_MASKED  # below all scores
            at = start
            while at < spans[sequence, 2]:
                n = min(BLOCK, spans[sequence, 2] - at)
                if index is not None:
                    numbers = &index[at]
                load(isa, rows if index is not None else rows + at * depth, numbers, n, depth, panels)
                for query in range(first, stop):
                    isa.nearby(panels, n, depth, &queries[batch, query, 0], numbers, at, s, &best, query - first)
                at += n
            for query in range(first, stop):
                n_found = min(topk, best.counts[query - first])
                at = isa.order(&best, query - first, chunk) * best.room
                memcpy(&neighbors[batch, query, 0], best.rows + at, n_found * sizeof(int64_t))
                for t in range(n_found, topk):
                    neighbors[batch, query, t] = -1
        free_floats(memory)
