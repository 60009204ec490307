"""Dense layers: rows times a weight that was packed once, as panels of columns (tile.h)."""

from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy

from pyclattn._ext.isa cimport (
    TILE_FAR, TILE_NO_ACTIVATION, TILE_ROUGH_GELU, bfloat16, current, draw_task, free_floats, i64, new_floats,
    padded, tile_fence, tile_isa, tile_prefetch_far,
)

from pyclattn.errors import BackendError

# In the order of tile.h.
ACTIVATIONS = ("", "relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "sigmoid")

# Rows of one call of the tile: 32 x 48 sums are 6 kB, and stay in L1 until they are written out.
cdef enum:
    BLOCK = 32
    # Bytes of an output that no cache holds until it is read: written past it, since a line is else read first.
    FAR = 1 << 24


cdef int kind_of(str activation, bint is_rounded) except -1:
    """The activation's number; of products whose terms were rounded GELU need not be exact to the last place."""
    return TILE_ROUGH_GELU if is_rounded and activation == "gelu" else ACTIVATIONS.index(activation)


cdef Target target_of(float[:, :, :, :] out) noexcept:
    cdef Target t
    t.data, t.length, t.n_heads, t.head_dim = &out[0, 0, 0, 0], out.shape[1], out.shape[2], out.shape[3]
    t.batch_stride, t.row_stride, t.head_stride = out.strides[0] // 4, out.strides[1] // 4, out.strides[2] // 4
    return t


cdef Piece piece_at(const Target *t, i64 row, i64 n, i64 column, i64 columns) noexcept nogil:
    """What of n rows and a panel's columns lies in one head of one sequence, from (row, column) on."""
    cdef:
        Piece piece
        i64 at = row % t.length, head = column // t.head_dim, within = column % t.head_dim
    piece.rows, piece.columns = min(n, t.length - at), min(columns, t.head_dim - within)
    piece.data = t.data + row // t.length * t.batch_stride + at * t.row_stride + head * t.head_stride + within
    return piece


cdef void deliver(finish_t finish, const float *s, i64 lanes, i64 n, i64 column, i64 columns, i64 row,
                  const float *shift, int kind, const float *added, i64 added_stride,
                  const Target *t) noexcept nogil:
    """Finish n rows of a panel's sums where they belong; heads must begin at whole vectors of the panel."""
    cdef:
        Piece piece
        i64 r = 0, c
    while r < n:
        c = 0
        while c < columns:
            piece = piece_at(t, row + r, n - r, column + c, columns - c)
            finish(s + r * lanes + c, piece.rows, piece.columns, shift + c if shift != NULL else NULL, kind,
                   added + r * added_stride + c if added != NULL else NULL, added_stride, piece.data, t.row_stride)
            c += piece.columns
        r += piece.rows


cdef void expect(const Target *t, i64 row, i64 n, i64 column, i64 columns) noexcept nogil:
    """Ask for the lines that n rows of a panel's columns will be written to, while their sums are computed."""
    cdef:
        Piece piece
        i64 r = 0, c, i
    while r < n:
        c = 0
        while c < columns:
            piece = piece_at(t, row + r, n - r, column + c, columns - c)
            for i in range(piece.rows):
                tile_prefetch_far(piece.data + i * t.row_stride, piece.columns)
            c += piece.columns
        r += piece.rows


cdef void deal_heads(const float *s, i64 lanes, i64 n, i64 column, i64 columns, i64 row,
                     const Target *t) noexcept nogil:
    """Write n rows of a panel's columns to the heads they belong to."""
    cdef i64 r, c, head, within, width
    cdef float *row_out
    for r in range(n):
        row_out = t.data + (row + r) // t.length * t.batch_stride + (row + r) % t.length * t.row_stride
        c = 0
        while c < columns:
            head, within = (column + c) // t.head_dim, (column + c) % t.head_dim
            width = min(columns - c, t.head_dim - within)
            memcpy(row_out + head * t.head_stride + within, s + r * lanes + c, width * sizeof(float))
            c += width


cdef i64 tallest(const int64_t[:, ::1] tasks) noexcept:
    """Rows of the tallest task."""
    cdef i64 task, height = 0
    for task in range(tasks.shape[0]):
        height = max(height, tasks[task, 1] - tasks[task, 0])
    return height


def multiply(
    const float[:, :] rows, const float[:, :, ::1] panels, const float[::1] bias, str activation,
    const float[:, :] residual, const int64_t[:, ::1] tasks, float[:, :, :, :] out, int64_t[::1] counter,
):
    """out = activation(rows @ weight + bias) + residual (see `pyclattn.reference.dense`)."""
    multiply_with(current(), rows, &panels[0, 0, 0], panels.shape[1], panels.shape[2], bias, activation, residual,
                  tasks, out, counter)


def multiply_bfloat16(
    const float[:, :] rows, const int32_t[:, :, ::1] panels, const float[::1] bias, str activation,
    const float[:, :] residual, const int64_t[:, ::1] tasks, float[:, :, :, :] out, int64_t[::1] counter,
):
    """The same with rows and weight rounded to bfloat16."""
    multiply_with(bfloat16(), rows, <const float *> &panels[0, 0, 0], panels.shape[1], panels.shape[2], bias,
                  activation, residual, tasks, out, counter)


cdef int multiply_with(
    const tile_isa *isa, const float[:, :] rows, const float *panels, i64 n_words, i64 lanes,
    const float[::1] bias, str activation, const float[:, :] residual, const int64_t[:, ::1] tasks,
    float[:, :, :, :] out, int64_t[::1] counter,
) except -1:
    """The weight is `n_words` words deep: of pairs, rows are packed too, once for all panels of a task."""
    cdef:
        const float *shift = NULL
        const float *own_shift = NULL
        const float *added = NULL
        const float *own_added = NULL
        int kind = kind_of(activation, isa.pair > 1)
        Target t = target_of(out)
        bint is_direct = t.n_heads == 1 or t.head_dim % isa.vector == 0
        i64 depth = rows.shape[1], width = t.n_heads * t.head_dim
        i64 row_stride = rows.strides[0] // 4, own_stride = row_stride, added_stride = 0, n_packed = 0
        i64 task, panel, row, start, stop, n, column, columns, d, first = -1
        bint is_alone  # a last column that fills no panel: by products of whole rows
        float *s
        float *peaks
        float *alone
        float *packed
        const float *own_rows

    if bias is not None:
        shift = &bias[0]
    if residual is not None:
        added, added_stride = &residual[0, 0], residual.strides[0] // 4
    if kind == TILE_NO_ACTIVATION and is_direct and residual is None and 4 * rows.shape[0] * width >= FAR:
        kind = TILE_FAR
    if isa.lanes != lanes or (depth and <size_t>panels % 64):
        raise BackendError(f"the weight must be aligned and packed for {isa.name.decode()}, in panels of {isa.lanes} "
                           f"columns, got panels of {lanes}: pack it again")
    if isa.pair > 1:
        own_stride, n_packed = n_words, tallest(tasks) * n_words
    s = new_floats(2 * BLOCK * lanes + padded(depth) + n_packed)
    if s == NULL:
        raise MemoryError("no memory for one block of a product")
    peaks = s + BLOCK * lanes
    alone = peaks + BLOCK * lanes
    packed = alone + padded(depth)
    with nogil:
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0]:
                break
            start, stop = tasks[task, 0], tasks[task, 1]
            own_rows = &rows[0, 0] + start * row_stride
            if isa.pair > 1:
                if start != first:
                    isa.pack_rows(own_rows, row_stride, NULL, stop - start, depth, packed)
                first, own_rows = start, packed
            for panel in range(tasks[task, 2], tasks[task, 3]):  # stays in cache for all of the task's rows
                column = panel * lanes
                columns = min(lanes, width - column)
                if shift != NULL:
                    own_shift = shift + column
                is_alone = columns == 1 and isa.pair == 1
                if is_alone:
                    for d in range(depth):
                        alone[d] = panels[(panel * n_words + d) * lanes]
                row = start
                while row < stop:
                    n = min(BLOCK, stop - row)
                    if kind != TILE_FAR:
                        expect(&t, row, n, column, columns)
                    if is_alone:
                        isa.dots(own_rows + (row - start) * own_stride, own_stride, n, depth, alone, peaks)
                        for d in range(n):
                            s[d * lanes] = peaks[d]
                    else:
                        isa.score(own_rows + (row - start) * own_stride, own_stride, n, depth,
                                  panels + panel * n_words * lanes, (columns + isa.vector - 1) // isa.vector, s, peaks)
                    if added != NULL:
                        own_added = added + row * added_stride + column
                    if is_direct:
                        deliver(isa.finish, s, lanes, n, column, columns, row, own_shift, kind, own_added,
                                added_stride, &t)
                    else:
                        isa.finish(s, n, columns, own_shift, kind, own_added, added_stride, s, lanes)
                        deal_heads(s, lanes, n, column, columns, row, &t)
                    row += n
        tile_fence()
    free_floats(s)
