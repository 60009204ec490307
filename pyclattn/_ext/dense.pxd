"""Where products are written: rows of an array, or heads of one (dense.pyx)."""

from libc.stdint cimport int64_t

cdef struct Target:
    float *data
    long length, head_dim, n_heads
    long batch_stride, row_stride, head_stride

cdef struct Piece:
    float *data
    long rows, columns

ctypedef void (*finish_t)(const float *, long, long, const float *, int, const float *, long, float *,
                          long) noexcept nogil

cdef Target target_of(float[:, :, :, :] out) noexcept
cdef void deliver(finish_t finish, const float *s, long lanes, long n, long column, long columns, long row,
                  const float *shift, int kind, const float *added, long added_stride,
                  const Target *t) noexcept nogil
cdef void deal_heads(const float *s, long lanes, long n, long column, long columns, long row,
                     const Target *t) noexcept nogil
cdef long tallest(const int64_t[:, ::1] tasks) noexcept
