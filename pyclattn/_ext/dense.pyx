"""Dense layers: rows times a weight that was packed once, as panels of columns (tile.h)."""

from libc.stdint cimport int64_t
from libc.stdlib cimport free
from libc.string cimport memcpy

from pyclattn._ext.isa cimport current, draw_task, new_floats, tile_isa

from pyclattn.errors import BackendError

# In the order of tile.h.
ACTIVATIONS = ("", "relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "sigmoid")

# Rows of one call of the tile: 32 x 48 sums are 6 kB, and stay in L1 until they are written out.
cdef enum:
    BLOCK = 32


cdef struct Target:
    float *data
    long length, head_dim, n_heads
    long batch_stride, row_stride, head_stride


cdef Target target_of(float[:, :, :, :] out) noexcept:
    cdef Target t
    t.data, t.length, t.n_heads, t.head_dim = &out[0, 0, 0, 0], out.shape[1], out.shape[2], out.shape[3]
    t.batch_stride, t.row_stride, t.head_stride = out.strides[0] // 4, out.strides[1] // 4, out.strides[2] // 4
    return t


cdef void deal_heads(const float *s, long lanes, long n, long column, long columns, long row,
                     const Target *t) noexcept nogil:
    """Write n rows of a panel's columns to the heads they belong to."""
    cdef long r, c, head, within, width
    cdef float *row_out
    for r in range(n):
        row_out = t.data + (row + r) // t.length * t.batch_stride + (row + r) % t.length * t.row_stride
        c = 0
        while c < columns:
            head, within = (column + c) // t.head_dim, (column + c) % t.head_dim
            width = min(columns - c, t.head_dim - within)
            memcpy(row_out + head * t.head_stride + within, s + r * lanes + c, width * sizeof(float))
            c += width


def multiply(
    const float[:, :] rows, const float[:, :, ::1] panels, const float[::1] bias, str activation,
    const float[:, :] residual, const int64_t[:, ::1] tasks, float[:, :, :, :] out, int64_t[::1] counter,
):
    """out = activation(rows @ weight + bias) + residual (see `pyclattn.reference.dense`)."""
    cdef:
        const tile_isa *isa = current()
        const float *shift = NULL
        const float *own_shift = NULL
        const float *added = NULL
        const float *own_added = NULL
        int kind = ACTIVATIONS.index(activation)
        Target t = target_of(out)
        bint is_plain = t.n_heads == 1 and out.shape[0] == 1
        long depth = rows.shape[1], width = t.n_heads * t.head_dim, lanes = panels.shape[2]
        long row_stride = rows.strides[0] // 4, added_stride = 0
        long task, panel, row, stop, n, column, columns
        float *s
        float *peaks

    if bias is not None:
        shift = &bias[0]
    if residual is not None:
        added, added_stride = &residual[0, 0], residual.strides[0] // 4
    if isa.lanes != lanes or (depth and <size_t>&panels[0, 0, 0] % 64):
        raise BackendError(f"the weight must be aligned and packed for {isa.name.decode()}, in panels of {isa.lanes} "
                           f"columns, got panels of {lanes}: pack it again")
    s = new_floats(2 * BLOCK * lanes)
    if s == NULL:
        raise MemoryError("no memory for one block of a product")
    peaks = s + BLOCK * lanes
    with nogil:
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0]:
                break
            stop = tasks[task, 1]
            for panel in range(tasks[task, 2], tasks[task, 3]):  # stays in cache for all of the task's rows
                column = panel * lanes
                columns = min(lanes, width - column)
                if shift != NULL:
                    own_shift = shift + column
                row = tasks[task, 0]
                while row < stop:
                    n = min(BLOCK, stop - row)
                    isa.score(&rows[row, 0], row_stride, n, depth, &panels[panel, 0, 0],
                              (columns + isa.vector - 1) // isa.vector, s, peaks)
                    if added != NULL:
                        own_added = added + row * added_stride + column
                    if is_plain:
                        isa.finish(s, n, columns, own_shift, kind, own_added, added_stride,
                                   t.data + row * t.row_stride + column, t.row_stride)
                    else:
                        isa.finish(s, n, columns, own_shift, kind, own_added, added_stride, s, lanes)
                        deal_heads(s, lanes, n, column, columns, row, &t)
                    row += n
    free(s)
