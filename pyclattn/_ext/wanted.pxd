"""Rows that come next, asked for while the tile computes; and where logits that are kept lie."""

from libc.stdint cimport int64_t

from pyclattn._ext.isa cimport TILE_PANEL, i64, tile_isa, tile_prefetch_far

cdef enum:
    WANTED = 576  # rows remembered: query, key and value of 128 members, and what 192 of them will get
    ASKED = 16  # rows asked for at a time: of 64 features they are 64 lines, about what a core has under way at most
    ASKED_IN_ORDER = 32  # of rows that mostly follow each other
    BLOCK = 32  # scores between two such times: whole groups of every instruction set
    PIECE = 8  # columns of a sum between two such times: one tile of every instruction set's


# Rows at random places that come next: asked for, a few at a time, while the tile computes.
cdef struct Wanted:
    const float *rows[WANTED]
    i64 widths[WANTED]
    i64 n, asked


cdef inline void want_nothing(Wanted *w) noexcept nogil:
    w.n = w.asked = 0


cdef inline void want(Wanted *w, const float *row, i64 width) noexcept nogil:
    if w.n < WANTED:
        w.rows[w.n], w.widths[w.n] = row, width
        w.n += 1


cdef inline void ask(Wanted *w, i64 n) noexcept nogil:
    cdef i64 i
    for i in range(w.asked, min(w.n, w.asked + n)):
        tile_prefetch_far(w.rows[i], w.widths[i])
    w.asked = min(w.n, w.asked + n)


cdef inline void score_asking(const tile_isa *isa, Wanted *wanted, const float *keys, i64 n, i64 depth,
                              const float *panel, i64 vectors, float *s, float *peaks) noexcept nogil:
    """Scores of n keys side by side, and rows that come next."""
    cdef i64 at = 0
    while at < n:
        ask(wanted, ASKED)
        isa.score(keys + at * depth, depth, min(BLOCK, n - at), depth, panel, vectors, s + at * isa.lanes,
                  peaks + at // isa.group * isa.lanes)
        at += BLOCK


cdef inline void accumulate_asking(const tile_isa *isa, Wanted *wanted, i64 asked, const float *values, i64 n,
                                   i64 width, const float *s, i64 vectors, const float *alpha,
                                   float *o) noexcept nogil:
    """Sums of n weighted rows side by side, and rows that come next."""
    cdef i64 at = 0
    while at < width:
        ask(wanted, asked)
        isa.accumulate(values + at, width, n, min(PIECE, width - at), s, vectors, alpha, o + at * isa.lanes)
        at += PIECE


cdef struct Kept:
    int64_t start
    i64 width


cdef inline Kept kept_at(int64_t start, int64_t at, int64_t stop) noexcept nogil:
    """Of the tokens from `start` on, kept side by side a panel at a time, those around one."""
    cdef Kept kept
    kept.start = start + (at - start) // TILE_PANEL * TILE_PANEL
    kept.width = min(TILE_PANEL, stop - kept.start)
    return kept
