"""Dense layers: rows times a weight that was packed once, as panels of columns (tile.h)."""

from libc.stdint cimport int64_t
from libc.stdlib cimport free

from pyclattn._ext.isa cimport current, draw_task, new_floats, tile_isa

from pyclattn.errors import BackendError

# In the order of tile.h.
ACTIVATIONS = ("", "relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "sigmoid")

# Rows of one call of the tile: 32 x 48 sums are 6 kB, and stay in L1 until they are written out.
cdef enum:
    BLOCK = 32


def multiply(
    const float[:, :] rows, const float[:, :, ::1] panels, const float[::1] bias, str activation,
    const float[:, :] residual, const int64_t[:, ::1] tasks, float[:, :] out, int64_t[::1] counter,
):
    """out = activation(rows @ weight + bias) + residual (see `pyclattn.reference.dense`)."""
    cdef:
        const tile_isa *isa = current()
        const float *shift = NULL
        const float *own_shift = NULL
        const float *added = NULL
        const float *own_added = NULL
        int kind = ACTIVATIONS.index(activation)
        long depth = rows.shape[1], width = out.shape[1], lanes = panels.shape[2]
        long row_stride = rows.strides[0] // 4, out_stride = out.strides[0] // 4, added_stride = 0
        long task, panel, row, stop, n, columns
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
                columns = min(lanes, width - panel * lanes)
                if shift != NULL:
                    own_shift = shift + panel * lanes
                row = tasks[task, 0]
                while row < stop:
                    n = min(BLOCK, stop - row)
                    isa.score(&rows[row, 0], row_stride, n, depth, &panels[panel, 0, 0],
                              (columns + isa.vector - 1) // isa.vector, s, peaks)
                    if added != NULL:
                        own_added = added + row * added_stride + panel * lanes
                    isa.finish(s, n, columns, own_shift, kind, own_added, added_stride, &out[row, panel * lanes],
                               out_stride)
                    row += n
    free(s)
