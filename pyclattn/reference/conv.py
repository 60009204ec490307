"""Convolutions in NumPy."""

import numpy as np

from pyclattn.arrays import Float32, Int32, Int64
from pyclattn.reference._rounding import to_bfloat16
from pyclattn.reference._tasks import drawn


def convolve(
    images: Float32,
    filters: Float32,
    taps: Int64,
    bias: Float32 | None,
    steps: Int64,
    tasks: Int64,
    out: Float32,
    counter: Int64,
) -> None:
    """out[n, m, y, x] = bias[m] + sum over taps t and channels c of filters[g, m, t, c] images[n, c, y', x'].

    (y', x') = (y, x) * steps + taps[t]; beyond the image stand zeros. ``images`` (N, G x C, H, W) and ``out``
    (N, G x M, H', W') may be any views, rows of images contiguous; ``filters`` is (G, M, taps x C). A task is [image,
    group, first position, last + 1], positions y W' + x.
    """
    groups, channels, _ = filters.shape
    depth, (height, width), columns = images.shape[1] // groups, images.shape[2:], out.shape[3]
    for image, group, first, last in drawn(tasks, counter):
        y, x = np.divmod(np.arange(first, last), columns)
        rows, across = (np.add.outer(taps[:, i], p * steps[i]) for i, p in enumerate((y, x)))  # (taps, positions)
        inside = (rows >= 0) & (rows < height) & (across >= 0) & (across < width)
        own = images[image, group * depth : (group + 1) * depth]
        seen = own[:, np.where(inside, rows, 0), np.where(inside, across, 0)].astype(np.float64) if own.size else None
        terms = np.zeros((len(taps), depth, last - first))
        if seen is not None:
            terms[...] = np.where(inside, seen, 0).swapaxes(0, 1)
        result = filters[group].astype(np.float64) @ terms.reshape(-1, last - first)
        own_channels = slice(group * channels, (group + 1) * channels)
        if bias is not None:
            result += bias[own_channels, None]
        out[image, own_channels][:, y, x] = result


def convolve_bfloat16(
    images: Int32,
    filters: Int32,
    taps: Int64,
    bias: Float32 | None,
    steps: Int64,
    tasks: Int64,
    out: Float32,
    counter: Int64,
) -> None:
    """The same of words of two channels in bfloat16: ``images`` (N, G x C, H, W), ``filters`` (G, M, taps x C)."""
    convolve(halves(images, 1), halves(filters, 2), taps, bias, steps, tasks, out, counter)


def halves(words: Int32, axis: int) -> Float32:
    """Both numbers of each word as float32, the low half first, along ``axis``."""
    bits = words.view(np.uint32)
    both = np.stack([bits << np.uint32(16), bits & np.uint32(0xFFFF0000)], axis=axis + 1)
    shape = (*words.shape[:axis], 2 * words.shape[axis], *words.shape[axis + 1 :])
    return to_bfloat16(both.reshape(shape).view(np.float32))


def pair_channels(images: Float32, tasks: Int64, words: Int32, counter: Int64) -> None:
    """``words`` (N, G, ceil(C / 2), positions): channels 2 w and 2 w + 1 of ``images`` (N, G, C, positions), rounded to
    bfloat16, the earlier one in the low half. A task is [image, group, first word, last + 1].
    """
    for image, group, first, last in drawn(tasks, counter):
        bits = to_bfloat16(images[image, group, 2 * first : 2 * last]).view(np.uint32)
        own = words[image, group, first:last].view(np.uint32)
        own[...] = bits[::2] >> np.uint32(16)
        own[: len(bits) // 2] |= bits[1::2]
