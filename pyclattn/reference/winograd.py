"""Transposed convolutions from Winograd's products, in NumPy."""

import numpy as np

from pyclattn.arrays import Float32, Int32, Int64
from pyclattn.reference._rounding import to_bfloat16
from pyclattn.reference._tasks import drawn
from pyclattn.reference.conv import halves

# Of the three numbers an axis of a tile sees: the differences that are multiplied; and of the products, both outputs.
DIFFERENCES = np.array([[1, -1, 0], [0, 1, 0], [0, 1, -1]], np.float64)
OUTPUTS = np.array([[1, 1, 0], [0, 1, -1]], np.float64)


def upsample(
    images: Float32,
    filters: Float32,
    bias: Float32 | None,
    is_relu: bool,
    pads: Int64,
    columns: int,
    tasks: Int64,
    out: Float32,
    counter: Int64,
) -> None:
    """Transposed convolution of stride 2 by kernels of 4 x 4, less ``pads`` rows and columns at the top and left.

    ``filters`` (G, 2, 18, M, C) has for each phase of rows, then of columns, nine numbers of a kernel:
    `pyclattn.functional.winograd.winograd_filters`. Tile (y, x) of ``columns`` in a row sees rows 2 y - 1 to 2 y + 1 of
    ``images`` (N, G x C, H, W), columns alike, zeros beyond, and is rows 4 y to 4 y + 3 of ``out`` (N, G x M, H', W')
    before the pads are cut off. A task is [image, group, first tile, last + 1].
    """
    _upsample(images, filters, bias, is_relu, pads, columns, tasks, out, counter, lambda x: x)


def upsample_bfloat16(
    images: Float32,
    filters: Int32,
    bias: Float32 | None,
    is_relu: bool,
    pads: Int64,
    columns: int,
    tasks: Int64,
    out: Float32,
    counter: Int64,
) -> None:
    """The same with differences rounded to bfloat16, ``filters`` in words of two channels."""
    _upsample(images, halves(filters, 4), bias, is_relu, pads, columns, tasks, out, counter, to_bfloat16)


def _upsample(images, filters, bias, is_relu, pads, columns, tasks, out, counter, rounded) -> None:
    groups, _, _, channels, _ = filters.shape
    depth, (height, width) = images.shape[1] // groups, out.shape[2:]
    for image, group, first, last in drawn(tasks, counter):
        y, x = np.divmod(np.arange(first, last), columns)
        seen = _seen(images[image, group * depth : (group + 1) * depth], y, x)
        different = np.einsum("ri,sj,cijt->rsct", DIFFERENCES, DIFFERENCES, seen)
        terms = rounded(different.astype(np.float32)).astype(np.float64)
        kernels = filters[group].reshape(2, 2, 3, 3, channels, -1)[..., :depth].astype(np.float64)
        sums = np.einsum("pqrsmc,rsct->pqrsmt", kernels, terms)
        values = np.einsum("er,fs,pqrsmt->mtepfq", OUTPUTS, OUTPUTS, sums).reshape(channels, last - first, 4, 4)
        if bias is not None:
            values += bias[group * channels : (group + 1) * channels, None, None, None]
        if is_relu:
            values = np.maximum(values, 0)
        target = out[image, group * channels : (group + 1) * channels]
        for tile in range(last - first):
            top, left = 4 * y[tile] - pads[0], 4 * x[tile] - pads[1]
            rows, across = (slice(max(0, at), max(0, min(at + 4, n))) for at, n in ((top, height), (left, width)))
            own = values[:, tile, rows.start - top : rows.stop - top, across.start - left : across.stop - left]
            target[:, rows, across] = own


def _seen(channels, y, x):
    """What each tile sees, (C, 3, 3, tiles): zeros beyond the image."""
    _, height, width = channels.shape
    rows, across = (np.add.outer(np.arange(-1, 2), 2 * of) for of in (y, x))
    inside = ((rows >= 0) & (rows < height))[:, None] & ((across >= 0) & (across < width))[None]
    rows, across = np.clip(rows, 0, max(0, height - 1)), np.clip(across, 0, max(0, width - 1))
    return np.where(inside, channels[:, rows[:, None], across[None]].astype(np.float64), 0)
