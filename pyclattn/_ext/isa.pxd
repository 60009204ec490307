"""The table of the selected instruction set, and what every kernel here needs: drawing tasks, aligned memory."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "tile.h" nogil:
    ctypedef int64_t i64
    const i64 TILE_KEYS, TILE_PANEL
    const float TILE_MASKED
    const int TILE_NO_ACTIVATION, TILE_ROUGH_GELU, TILE_FAR

    ctypedef struct tile_best:
        i64 topk, room
        float *scores
        int64_t *rows
        i64 *counts
        float *threshold

    ctypedef struct tile_lists:
        i64 room
        int32_t *rows
        float *scores
        i64 *counts

    ctypedef struct tile_isa:
        const char *name
        i64 lanes, vector, group, pair
        double loop_flops
        void (*load)(const float *, i64, const int64_t *, i64, i64, float, float *) noexcept nogil
        void (*pack_rows)(const float *, i64, const int64_t *, i64, i64, float *) noexcept nogil
        void (*pack_columns)(const float *, i64, const int64_t *, i64, i64, float *) noexcept nogil
        void (*score)(const float *, i64, i64, i64, const float *, i64, float *, float *) noexcept nogil
        void (*soften)(float *, i64, const float *, i64, float *, float *, float *) noexcept nogil
        void (*soften_masked)(float *, i64, i64, float *, float *, float *) noexcept nogil
        void (*accumulate)(const float *, i64, i64, i64, const float *, i64, const float *, float *) noexcept nogil
        void (*store)(const float *, const float *, i64, i64, float, const float *, float *, i64,
                      const int64_t *) noexcept nogil
        void (*mask_future)(float *, i64, i64, const int64_t *, int64_t, const int32_t *, int64_t) noexcept nogil
        void (*add_bias)(float *, i64, i64, i64, const int64_t *, int64_t, const float *, i64, i64) noexcept nogil
        void (*allow)(float *, i64, i64, const int64_t *, int64_t, const uint8_t *, i64, i64) noexcept nogil
        void (*pick)(const float *, const float *, i64, i64, const int64_t *, int64_t, tile_best *) noexcept nogil
        void (*cut)(tile_best *, i64) noexcept nogil
        void (*sign)(const float *, i64, const float *, i64, i64, const float *, float, float, uint64_t *,
                     uint32_t *) noexcept nogil
        void (*nearest)(const float *, i64, i64, const float *, int32_t, float *, int32_t *) noexcept nogil
        void (*finish)(const float *, i64, i64, const float *, int, const float *, i64, float *,
                       i64) noexcept nogil
        void (*part)(float *, i64, const float *, const float *, i64, const float *, int32_t, tile_lists *, float *,
                     float *, float *) noexcept nogil
        void (*tail)(float *, const float *, i64, i64, const float *, const float *) noexcept nogil
        void (*tilt)(float *, i64, const float *, const float *, i64, const float *, const float *,
                     const float *, int) noexcept nogil
        void (*share)(float *, i64, i64, i64, float *) noexcept nogil
        void (*nearby)(const float *, i64, i64, const float *, const int64_t *, int64_t, float *, tile_best *,
                       i64) noexcept nogil
        i64 (*farthest)(const float *, i64, i64, const float *, float *) noexcept nogil
        void (*laplace)(float *, i64, i64) noexcept nogil
        void (*keep)(const float *, i64, i64, float *, i64) noexcept nogil
        void (*temper)(const float *, i64, i64, i64, const float *, float *, float *) noexcept nogil
        void (*add_shares)(const float *, i64, i64, const float *, float *) noexcept nogil
        void (*gate)(const float *, float *, float *, float *) noexcept nogil
        void (*lean)(const float *, const float *, i64, i64, float, float *, i64, float *, float *) noexcept nogil
        i64 (*order)(tile_best *, i64, i64) noexcept nogil
        void (*score_pairs)(const float *, const float *, i64, const int64_t *, i64, i64, float,
                            float *) noexcept nogil
        void (*share_pairs)(float *, const int64_t *, i64, i64, float *, double *) noexcept nogil
        void (*sum_pairs)(const float *, i64, const int64_t *, const float *, i64, i64, float *) noexcept nogil
        void (*floor)(float *, i64, i64, float) noexcept nogil
        i64 (*next_above)(const float *, i64, i64, float) noexcept nogil
        void (*dots)(const float *, i64, i64, i64, const float *, float *) noexcept nogil
        void (*add_rows)(const float *, i64, i64, i64, const float *, i64, float, float *) noexcept nogil
        void (*assign)(const float *, i64, i64, i64, const float *, i64, const float *, float *,
                       int32_t *) noexcept nogil
        void (*sum_rows)(const float *, i64, const int64_t *, i64, i64, double *, double *) noexcept nogil
        void (*add_squares)(const float *, i64, i64, i64, const float *, double *) noexcept nogil
        void (*take_off)(float *, i64, i64, const float *, float *, double *) noexcept nogil
        void (*weigh_ranks)(const float *, const float *, float, i64, uint32_t, uint32_t, int, int64_t,
                            int64_t *) noexcept nogil
        void (*eigen)(double *, i64, i64, double *, double *, double *) noexcept nogil
        void (*score_scattered)(const float *, i64, const int32_t *, i64, i64, const float *, i64, float *,
                                float *) noexcept nogil
        void (*accumulate_scattered)(const float *, i64, const int32_t *, i64, i64, const float *, i64, const float *,
                                     float *) noexcept nogil
        float (*fma_loop)(i64) noexcept nogil

    void tile_prefetch(const float *row, i64 width) noexcept nogil
    void tile_prefetch_far(const float *row, i64 width) noexcept nogil
    void tile_fence() noexcept nogil
    float tile_term(const float *words, i64 stride, i64 pair, i64 k) noexcept nogil
    bint tile_all_finite(const float *words, i64 stride, i64 pair, i64 n, i64 width) noexcept nogil

cdef extern from *:
    """
    #include <stdint.h>
    #include <stdlib.h>
    static inline int64_t draw_task(int64_t *counter) { return __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED); }
    /* whole vectors of the widest set */
    static inline size_t padded(size_t n_floats) { return (n_floats + 15) / 16 * 16; }
    #ifdef _WIN32
    #include <malloc.h>
    static inline float *new_floats(size_t n) { return (float *)_aligned_malloc(padded(n ? n : 1) * 4, 64); }
    static inline void free_floats(void *memory) { _aligned_free(memory); }
    #else
    static inline float *new_floats(size_t n) { return (float *)aligned_alloc(64, padded(n ? n : 1) * 4); }
    static inline void free_floats(void *memory) { free(memory); }
    #endif
    """
    int64_t draw_task(int64_t *counter) noexcept nogil
    size_t padded(size_t n_floats) noexcept nogil
    float *new_floats(size_t n) noexcept nogil
    void free_floats(void *memory) noexcept nogil

cdef const tile_isa *current() noexcept nogil
cdef const tile_isa *bfloat16() except NULL


cdef inline i64 list_room(i64 topk) noexcept nogil:
    """Room for as many newcomers as there are best ones, and at least 32: cutting costs 32 passes."""
    return <i64> padded(topk + max(topk, 32))


cdef inline void best_at(tile_best *best, float *memory, i64 lanes, i64 topk) noexcept nogil:
    best.topk, best.room = topk, list_room(topk)
    best.threshold = memory
    best.counts = <i64 *> (memory + padded(lanes))
    best.scores = <float *> (best.counts + padded(lanes))
    best.rows = <int64_t *> (best.scores + lanes * best.room)


cdef inline size_t best_size(i64 lanes, i64 topk) noexcept nogil:
    """Floats that `best_at` needs."""
    return 3 * padded(lanes) + 3 * lanes * list_room(topk)
