"""Convolutions on the tile: positions of the output in the lanes, channels as rows (tile.h).

Terms are floats, or words of two channels in bfloat16, which an image is turned into once for all that see it: words
are copied about as floats are.
"""

from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memset

from pyclattn._ext.isa cimport TILE_PANEL, bfloat16, current, draw_task, free_floats, i64, new_floats, tile_isa

# Channels of one call of the tile: 32 x 48 sums are 6 kB, and stay in L1 until they are written out.
cdef enum:
    BLOCK = 32


cdef struct Image:
    const float *data  # of one group's first channel
    i64 image_stride, channel_stride, row_stride, height, width


cdef void copy(const float *row, i64 step, i64 n, float *into) noexcept nogil:
    cdef i64 i
    if step > 1:
        for i in range(n):
            into[i] = row[i * step]
    elif n == TILE_PANEL:
        memcpy(into, row, TILE_PANEL * sizeof(float))  # a size known here costs no call
    else:
        memcpy(into, row, n * sizeof(float))


cdef void take(const Image *image, i64 depth, i64 y, i64 x, i64 step, i64 n, float *into,
               i64 lanes) noexcept nogil:
    """n numbers of a row of each channel, from column x on, every step-th; zeros beyond the image."""
    cdef i64 _, first = 0, last = n
    cdef const float *row = image.data + y * image.row_stride + x
    if x < 0:
        first = min(n, (step - 1 - x) // step)
    if x + (n - 1) * step >= image.width:
        last = max(first, (image.width - x + step - 1) // step)
    if y < 0 or y >= image.height:
        first, last = n, n
    for _ in range(depth):
        if last > first:
            copy(row + first * step, step, last - first, into + first)
        if first > 0:
            memset(into, 0, first * sizeof(float))
        if last < n:
            memset(into + last, 0, (n - last) * sizeof(float))
        row += image.channel_stride
        into += lanes


cdef void load(const Image *image, i64 depth, const int64_t[:, ::1] taps, const int64_t *steps, i64 position, i64 n,
               i64 columns, float *panel, i64 lanes) noexcept nogil:
    """The numbers that n positions of the output see, one position a lane: row t * depth + c is tap t of channel c."""
    cdef i64 t, i = 0, y, x, count
    while i < n:
        y, x = (position + i) // columns, (position + i) % columns
        count = min(n - i, columns - x)
        for t in range(taps.shape[0]):
            take(image, depth, y * steps[0] + taps[t, 0], x * steps[1] + taps[t, 1], steps[1], count,
                 panel + t * depth * lanes + i, lanes)
        i += count


cdef void store(const float *s, i64 lanes, float bias, i64 position, i64 n, i64 columns, float *out,
                i64 row_stride, i64 step) noexcept nogil:
    """One channel's sums to their positions."""
    cdef i64 i = 0, j, x, count
    cdef float *row
    while i < n:
        x = (position + i) % columns
        count = min(n - i, columns - x)
        row = out + (position + i) // columns * row_stride + x * step
        if step == 1:
            for j in range(count):
                row[j] = s[i + j] + bias
        else:
            for j in range(count):
                row[j * step] = s[i + j] + bias
        i += count


def convolve(
    const float[:, :, :, :] images, const float[:, :, ::1] filters, const int64_t[:, ::1] taps, const float[::1] bias,
    const int64_t[::1] steps, const int64_t[:, ::1] tasks, float[:, :, :, :] out, int64_t[::1] counter,
):
    """out = images convolved with filters (see `pyclattn.reference.conv`)."""
    cdef Image image
    image.data = &images[0, 0, 0, 0]
    image.image_stride, image.channel_stride = images.strides[0] // 4, images.strides[1] // 4
    image.row_stride, image.height, image.width = images.strides[2] // 4, images.shape[2], images.shape[3]
    convolve_with(current(), image, images.shape[1] // filters.shape[0], &filters[0, 0, 0], filters.shape, taps, bias,
                  &steps[0], tasks, out, counter)


def convolve_bfloat16(
    const int32_t[:, :, :, :] images, const int32_t[:, :, ::1] filters, const int64_t[:, ::1] taps,
    const float[::1] bias, const int64_t[::1] steps, const int64_t[:, ::1] tasks, float[:, :, :, :] out,
    int64_t[::1] counter,
):
    """The same of words, as `pair_channels` makes them."""
    cdef Image image
    image.data = <const float *> &images[0, 0, 0, 0]
    image.image_stride, image.channel_stride = images.strides[0] // 4, images.strides[1] // 4
    image.row_stride, image.height, image.width = images.strides[2] // 4, images.shape[2], images.shape[3]
    convolve_with(bfloat16(), image, images.shape[1] // filters.shape[0], <const float *> &filters[0, 0, 0],
                  filters.shape, taps, bias, &steps[0], tasks, out, counter)


cdef int convolve_with(
    const tile_isa *isa, Image image, i64 depth, const float *filters, const Py_ssize_t *shape,
    const int64_t[:, ::1] taps, const float[::1] bias, const int64_t *steps, const int64_t[:, ::1] tasks,
    float[:, :, :, :] out, int64_t[::1] counter,
) except -1:
    """`filters` has `shape` (groups, channels, words); `depth` words of a group lie at each position."""
    cdef:
        const float *images = image.data
        const float *own
        i64 channels = shape[1], n_words = shape[2], lanes = isa.lanes, columns = out.shape[3]
        i64 row_stride = out.strides[2] // 4, out_step = out.strides[3] // 4
        i64 task, group, position, n, first, count, r
        float *panel = new_floats((n_words + 2 * BLOCK) * lanes)
        float *s
        float *peaks

    if panel == NULL:
        raise MemoryError("no memory for one panel of a convolution")
    s = panel + n_words * lanes
    peaks = s + BLOCK * lanes
    with nogil:
        memset(panel, 0, n_words * lanes * sizeof(float))  # lanes beyond the last position are computed too
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0]:
                break
            group, position = tasks[task, 1], tasks[task, 2]
            image.data = images + tasks[task, 0] * image.image_stride + group * depth * image.channel_stride
            own = filters + group * channels * n_words
            while position < tasks[task, 3]:
                n = min(lanes, tasks[task, 3] - position)
                load(&image, depth, taps, steps, position, n, columns, panel, lanes)
                first = 0
                while first < channels:
                    count = min(BLOCK, channels - first)
                    isa.score(own + first * n_words, n_words, count, isa.pair * n_words, panel,
                              (n + isa.vector - 1) // isa.vector, s, peaks)
                    for r in range(count):
                        store(s + r * lanes, lanes, bias[group * channels + first + r] if bias is not None else 0,
                              position, n, columns, &out[tasks[task, 0], group * channels + first + r, 0, 0],
                              row_stride, out_step)
                    first += count
                position += n
    free_floats(panel)


def pair_channels(
    const float[:, :, :, ::1] images, const int64_t[:, ::1] tasks, int32_t[:, :, :, ::1] words, int64_t[::1] counter,
):
    """Two channels a word, rounded to bfloat16 (see `pyclattn.reference.conv`)."""
    cdef:
        const tile_isa *isa = bfloat16()
        i64 depth = images.shape[2], task, image, group, first, last

    with nogil:
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0]:
                break
            image, group, first, last = tasks[task, 0], tasks[task, 1], tasks[task, 2], tasks[task, 3]
            isa.pack_columns(&images[image, group, 2 * first, 0], images.strides[2] // 4, NULL,
                             min(2 * last, depth) - 2 * first, images.shape[3],
                             <float *> &words[image, group, first, 0])
