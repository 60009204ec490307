"""Transposed convolutions of stride 2 by kernels of 4 x 4: differences, products on the tile, sums (winograd.h).

Tiles of 4 x 4 outputs stand in the lanes. Terms are floats, or words of two channels in bfloat16, rounded after the
differences are taken.
"""

from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memset

from pyclattn._ext.isa cimport TILE_PANEL, bfloat16, current, draw_task, free_floats, i64, new_floats, tile_isa

cdef extern from *:
    """
    #include "winograd.h"
    static const winograd_isa *winograd_of(i64 vector) { /* floats of a vector of the tiles in use */
    #ifdef TILE_X86
        if (vector == 16) return &winograd_avx512;
        if (vector == 8) return &winograd_avx2;
    #endif
        return &winograd_baseline;
    }
    """
    ctypedef struct winograd_isa:
        void (*deal)(const float *, i64, float *) noexcept nogil
        void (*enter)(const float *, float *, i64) noexcept nogil
        void (*leave)(const float *, i64, float, int, float *) noexcept nogil

    const winograd_isa *winograd_of(i64 vector) noexcept nogil

cdef enum:
    TERMS = 9
    BLOCK = 8  # output channels at a time: their 2 x 9 sums of 48 lanes are 27 kB
    INPUTS = 16  # input channels of which words are made at a time: nine differences of each are 27 kB


# Tiles side by side, in lanes from `lane` on.
cdef struct Piece:
    i64 lane, n, row, column


cdef struct Place:
    const winograd_isa *transforms
    const tile_isa *tile
    i64 n_pieces
    Piece pieces[TILE_PANEL]
    const float *image  # of one group's first channel
    i64 channel_stride, row_stride, height, width
    float *out
    i64 out_channel_stride, out_row_stride, out_height, out_width, top, left


cdef void cut(Place *at, i64 position, i64 n, i64 columns) noexcept nogil:
    """The pieces of n tiles from a position on, `columns` of them in a row."""
    cdef i64 lane = 0
    at.n_pieces = 0
    while lane < n:
        at.pieces[at.n_pieces].lane = lane
        at.pieces[at.n_pieces].row = (position + lane) // columns
        at.pieces[at.n_pieces].column = (position + lane) % columns
        at.pieces[at.n_pieces].n = min(n - lane, columns - (position + lane) % columns)
        lane += at.pieces[at.n_pieces].n
        at.n_pieces += 1


cdef void see(const Place *at, const float *channel, float *numbers) noexcept nogil:
    """The 3 x 3 numbers of a channel that each tile sees; zeros beyond the image."""
    cdef:
        float border[2 * TILE_PANEL + 1]
        i64 i, r, y, x, n, first, last
        float *into
    for i in range(at.n_pieces):
        n, x = at.pieces[i].n, 2 * at.pieces[i].column - 1
        first, last = max(0, -x), min(2 * n + 1, at.width - x)
        for r in range(3):
            y = 2 * at.pieces[i].row - 1 + r
            into = numbers + 3 * r * at.tile.lanes + at.pieces[i].lane
            if 0 <= y < at.height and first == 0 and last == 2 * n + 1:
                at.transforms.deal(channel + y * at.row_stride + x, n, into)
                continue
            memset(border, 0, (2 * n + 1) * sizeof(float))
            if 0 <= y < at.height and first < last:
                memcpy(border + first, channel + y * at.row_stride + x + first, (last - first) * sizeof(float))
            at.transforms.deal(border, n, into)


cdef void enter(const Place *at, i64 depth, i64 n_words, float *numbers, float *chunk, float *panels) noexcept nogil:
    """Nine panels of differences, words of every channel."""
    cdef i64 lanes = at.tile.lanes, c = 0, k, t, count
    while c < depth:
        count = min(INPUTS, depth - c)
        for k in range(count):
            see(at, at.image + (c + k) * at.channel_stride, numbers)
            if at.tile.pair == 1:
                at.transforms.enter(numbers, panels + (c + k) * lanes, n_words * lanes)
            else:
                at.transforms.enter(numbers, chunk + k * lanes, INPUTS * lanes)
        if at.tile.pair > 1:
            for t in range(TERMS):
                at.tile.pack_columns(chunk + t * INPUTS * lanes, lanes, NULL, count, lanes,
                                     panels + (t * n_words + c // at.tile.pair) * lanes)
        c += count


cdef void leave(const Place *at, const float *lines, i64 channel, i64 phase) noexcept nogil:
    """Both lines of a channel, four columns a tile, to their rows of the output as far as it reaches."""
    cdef:
        i64 i, e, y, x, first, last
        float *rows = at.out + channel * at.out_channel_stride
    for i in range(at.n_pieces):
        x = 4 * at.pieces[i].column - at.left
        first, last = max(0, -x), min(4 * at.pieces[i].n, at.out_width - x)
        for e in range(2):
            y = 4 * at.pieces[i].row + 2 * e + phase - at.top
            if 0 <= y < at.out_height and first < last:
                memcpy(rows + y * at.out_row_stride + x + first,
                       lines + 4 * (e * at.tile.lanes + at.pieces[i].lane) + first, (last - first) * sizeof(float))


def upsample(
    const float[:, :, :, :] images, const float[:, :, :, :, ::1] filters, const float[::1] bias, bint is_relu,
    const int64_t[::1] pads, i64 columns, const int64_t[:, ::1] tasks, float[:, :, :, :] out, int64_t[::1] counter,
):
    """out = images convolved with filters, twice as many rows and columns (see `pyclattn.reference.winograd`)."""
    upsample_with(current(), images, &filters[0, 0, 0, 0, 0], filters.shape, bias, is_relu, &pads[0], columns, tasks,
                  out, counter)


def upsample_bfloat16(
    const float[:, :, :, :] images, const int32_t[:, :, :, :, ::1] filters, const float[::1] bias, bint is_relu,
    const int64_t[::1] pads, i64 columns, const int64_t[:, ::1] tasks, float[:, :, :, :] out, int64_t[::1] counter,
):
    """The same with differences and filters rounded to bfloat16."""
    upsample_with(bfloat16(), images, <const float *> &filters[0, 0, 0, 0, 0], filters.shape, bias, is_relu, &pads[0],
                  columns, tasks, out, counter)


cdef int upsample_with(
    const tile_isa *isa, const float[:, :, :, :] images, const float *filters, const Py_ssize_t *shape,
    const float[::1] bias, bint is_relu, const int64_t *pads, i64 columns, const int64_t[:, ::1] tasks,
    float[:, :, :, :] out, int64_t[::1] counter,
) except -1:
    """`filters` has `shape` (groups, 2, 18, channels, words)."""
    cdef:
        Place at
        i64 groups = shape[0], channels = shape[3], n_words = shape[4], lanes = isa.lanes
        i64 depth = images.shape[1] // groups, step = BLOCK * lanes
        i64 task, group, phase, position, n, first, count, k, t, n_panels = TERMS * n_words * lanes
        const float *own
        float *panels = new_floats(n_panels + (TERMS * INPUTS + 2 * TERMS * BLOCK + BLOCK + TERMS + 8) * lanes)
        float *chunk = panels + n_panels
        float *sums = chunk + TERMS * INPUTS * lanes
        float *peaks = sums + 2 * TERMS * step
        float *numbers = peaks + step
        float *lines = numbers + TERMS * lanes

    if panels == NULL:
        raise MemoryError("no memory for the panels of a convolution")
    at.tile, at.transforms = isa, winograd_of(isa.vector)
    at.channel_stride, at.row_stride = images.strides[1] // 4, images.strides[2] // 4
    at.height, at.width = images.shape[2], images.shape[3]
    at.out_channel_stride, at.out_row_stride = out.strides[1] // 4, out.strides[2] // 4
    at.out_height, at.out_width, at.top, at.left = out.shape[2], out.shape[3], pads[0], pads[1]
    with nogil:
        memset(numbers, 0, TERMS * lanes * sizeof(float))  # lanes beyond the last tile are computed too
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0]:
                break
            group = tasks[task, 1]
            at.image = &images[tasks[task, 0], group * depth, 0, 0]
            at.out = &out[tasks[task, 0], group * channels, 0, 0]
            position = tasks[task, 2]
            while position < tasks[task, 3]:
                n = min(lanes, tasks[task, 3] - position)
                cut(&at, position, n, columns)
                enter(&at, depth, n_words, numbers, chunk, panels)
                for phase in range(2):
                    own = filters + (group * 2 + phase) * 2 * TERMS * channels * n_words
                    first = 0
                    while first < channels:
                        count = min(BLOCK, channels - first)
                        for t in range(2 * TERMS):
                            isa.score(own + (t * channels + first) * n_words, n_words, count, isa.pair * n_words,
                                      panels + t % TERMS * n_words * lanes, (n + isa.vector - 1) // isa.vector,
                                      sums + t * step, peaks)
                        for k in range(count):
                            at.transforms.leave(sums + k * lanes, step,
                                                bias[group * channels + first + k] if bias is not None else 0, is_relu,
                                                lines)
                            leave(&at, lines, first + k, phase)
                        first += count
                position += n
    free_floats(panels)
