"""The table of the selected instruction set, and what every kernel here needs: drawing tasks, aligned memory."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "tile.h" nogil:
    const long TILE_KEYS
    const float TILE_MASKED

    ctypedef struct tile_best:
        long topk, room
        float *scores
        int64_t *rows
        long *counts
        float *threshold

    ctypedef struct tile_lists:
        long room
        int32_t *rows
        long *counts

    ctypedef struct tile_isa:
        const char *name
        long lanes, vector, group, pair
        double loop_flops
        void (*load)(const float *, long, const int64_t *, long, long, float, float *) noexcept nogil
        void (*pack_rows)(const float *, long, const int64_t *, long, long, float *) noexcept nogil
        void (*pack_columns)(const float *, long, const int64_t *, long, long, float *) noexcept nogil
        void (*score)(const float *, long, long, long, const float *, long, float *, float *) noexcept nogil
        void (*soften)(float *, long, const float *, long, float *, float *, float *) noexcept nogil
        void (*soften_masked)(float *, long, long, float *, float *, float *) noexcept nogil
        void (*accumulate)(const float *, long, long, long, const float *, long, const float *, float *) noexcept nogil
        void (*store)(const float *, const float *, long, long, float, const float *, float *, long,
                      const int64_t *) noexcept nogil
        void (*mask_future)(float *, long, long, const int64_t *, int64_t, const int32_t *, int64_t) noexcept nogil
        void (*add_bias)(float *, long, long, long, const int64_t *, int64_t, const float *, long, long) noexcept nogil
        void (*allow)(float *, long, long, const int64_t *, int64_t, const uint8_t *, long, long) noexcept nogil
        void (*pick)(const float *, const float *, long, long, const int64_t *, int64_t, tile_best *) noexcept nogil
        void (*cut)(tile_best *, long) noexcept nogil
        void (*sign)(const float *, long, const float *, long, long, const float *, float, float, uint64_t *,
                     uint32_t *) noexcept nogil
        void (*nearest)(const float *, long, long, const float *, int32_t, float *, int32_t *) noexcept nogil
        void (*finish)(const float *, long, long, const float *, int, const float *, long, float *,
                       long) noexcept nogil
        void (*part)(float *, long, const float *, const float *, long, const float *, int32_t, tile_lists *, float *,
                     float *, float *) noexcept nogil
        void (*tail)(float *, const float *, long, long, const float *, const float *) noexcept nogil
        void (*tilt)(float *, long, const float *, const float *, long, const float *, const float *,
                     const float *) noexcept nogil
        void (*share)(float *, long, long, long, float *) noexcept nogil
        void (*nearby)(const float *, long, long, const float *, const int64_t *, int64_t, float *, tile_best *,
                       long) noexcept nogil
        long (*farthest)(const float *, long, long, const float *, float *) noexcept nogil
        void (*laplace)(float *, long, long) noexcept nogil
        void (*add_shares)(const float *, long, long, const float *, float *) noexcept nogil
        float (*fma_loop)(long) noexcept nogil

    void tile_prefetch(const float *row, long width) noexcept nogil
    float tile_term(const float *words, long stride, long pair, long k) noexcept nogil
    bint tile_all_finite(const float *words, long stride, long pair, long n, long width) noexcept nogil

cdef extern from *:
    """
    #include <stdint.h>
    #include <stdlib.h>
    static inline int64_t draw_task(int64_t *counter) { return __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED); }
    /* whole vectors of the widest set */
    static inline size_t padded(size_t n_floats) { return (n_floats + 15) / 16 * 16; }
    static inline float *new_floats(size_t n) { return (float *)aligned_alloc(64, padded(n ? n : 1) * 4); }
    """
    int64_t draw_task(int64_t *counter) noexcept nogil
    size_t padded(size_t n_floats) noexcept nogil
    float *new_floats(size_t n) noexcept nogil

cdef const tile_isa *current() noexcept nogil
cdef const tile_isa *bfloat16() except NULL


cdef inline long list_room(long topk) noexcept nogil:
    """Room for as many newcomers as there are best ones, and at least 32: cutting costs 32 passes."""
    return <long> padded(topk + max(topk, 32))


cdef inline void best_at(tile_best *best, float *memory, long lanes, long topk) noexcept nogil:
    best.topk, best.room = topk, list_room(topk)
    best.threshold = memory
    best.counts = <long *> (memory + padded(lanes))
    best.scores = <float *> (best.counts + padded(lanes))
    best.rows = <int64_t *> (best.scores + lanes * best.room)


cdef inline size_t best_size(long lanes, long topk) noexcept nogil:
    """Floats that `best_at` needs."""
    return 3 * padded(lanes) + 3 * lanes * list_room(topk)
