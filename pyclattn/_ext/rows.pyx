"""Functions of single elements, and normalised rows, on the vectors of the instruction set in use (rows.h)."""

from libc.stdint cimport int64_t

from pyclattn._ext.isa cimport current, draw_task, i64

cdef extern from *:
    """
    #include "rows.h"
    static const rows_isa *rows_of(i64 vector) { /* floats of a vector of the tiles in use */
    #ifdef TILE_X86
        if (vector == 16) return &rows_avx512;
        if (vector == 8) return &rows_avx2;
    #endif
        return &rows_baseline;
    }
    """
    ctypedef struct rows_isa:
        void (*apply)(int, const float *, i64, float *) noexcept nogil
        void (*normalise)(const float *, const float *, i64, int, float, const float *, const float *, float *,
                          float *) noexcept nogil

    const rows_isa *rows_of(i64) noexcept nogil

# In the order of tile.h and rows.h.
FUNCTIONS = ("", "relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "sigmoid", "tanh", "exp", "erf")


def apply(const float[::1] x, str name, const int64_t[:, ::1] tasks, float[::1] out, int64_t[::1] counter):
    """out = name(x), element by element (see `pyclattn.reference.rows`)."""
    cdef:
        const rows_isa *isa = rows_of(current().vector)
        int kind = FUNCTIONS.index(name)
        i64 task
    with nogil:
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0]:
                break
            isa.apply(kind, &x[tasks[task, 0]], tasks[task, 1] - tasks[task, 0], &out[tasks[task, 0]])


def normalise(
    const float[:, :] x, const float[:, :] residual, const float[::1] weight, const float[::1] bias, double epsilon,
    bint is_rms, const int64_t[:, ::1] tasks, float[:, :] total, float[:, :] out, int64_t[::1] counter,
):
    """out = (x + residual), each row normalised, times weight plus bias (see `pyclattn.reference.rows`)."""
    cdef:
        const rows_isa *isa = rows_of(current().vector)
        const float *factors = NULL
        const float *shifts = NULL
        i64 task, row, width = x.shape[1]
    if weight is not None:
        factors = &weight[0]
    if bias is not None:
        shifts = &bias[0]
    with nogil:
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0]:
                break
            for row in range(tasks[task, 0], tasks[task, 1]):
                isa.normalise(&x[row, 0], &residual[row, 0] if residual is not None else NULL, width, is_rms,
                              <float> epsilon, factors, shifts, &total[row, 0] if total is not None else NULL,
                              &out[row, 0])
