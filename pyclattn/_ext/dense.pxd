"""Where products are written: rows of an array, or heads of one (dense.pyx)."""

from libc.stdint cimport int64_t

from pyclattn._ext.isa cimport i64

cdef struct Target:
    float *data
    i64 length, head_dim, n_heads
    i64 batch_stride, row_stride, head_stride

cdef struct Piece:
    float *data
    i64 rows, columns

ctypedef void (*finish_t)(const float *, i64, i64, const float *, int, const float *, i64, float *,
                          i64) noexcept nogil

cdef int kind_of(str activation, bint is_rounded) except -1
cdef Target target_of(float[:, :, :, :] out) noexcept
cdef void deliver(finish_t finish, const float *s, i64 lanes, i64 n, i64 column, i64 columns, i64 row,
                  const float *shift, int kind, const float *added, i64 added_stride,
                  const Target *t) noexcept nogil
cdef void expect(const Target *t, i64 row, i64 n, i64 column, i64 columns) noexcept nogil
cdef void deal_heads(const float *s, i64 lanes, i64 n, i64 column, i64 columns, i64 row,
                     const Target *t) noexcept nogil
cdef i64 tallest(const int64_t[:, ::1] tasks) noexcept
