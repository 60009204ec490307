"""Transposed convolutions of stride 2 by kernels of 4 x 4, what maps are drawn larger by, in 9/16 of the products.

Each 4 x 4 outputs are 36 products of every channel instead of 64 (Winograd's F(2, 2) on both axes; Lavin and Gray 2016,
arXiv 1509.09308). The differences that are multiplied have factors of 1 alone, so that no more is lost to rounding than
a bit. One thing is otherwise: a NaN or an infinity in the input may reach all 16 outputs of a tile that see it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pyclattn import _dispatch, _threads
from pyclattn.arrays import PANEL, Float32, Given, Int32
from pyclattn.errors import ShapeError
from pyclattn.functional import _check
from pyclattn.functional._product import SMALL
from pyclattn.functional.conv import channel_bias, cut
from pyclattn.functional.conv_bfloat16 import paired_filters

# With fewer input or output channels the transforms cost more than the products they save.
LEAST_DEPTH, LEAST_CHANNELS = 32, 16
# Nine panels of more channels would not stay in L2 (1 MB): 512 x 9 x 48 float32 are 0.9 MB.
MOST_DEPTH = 512


def panel_bytes(n_words: int) -> int:
    """What a thread holds: nine panels, and the numbers and sums of a few channels."""
    return (9 * n_words + 320) * PANEL * 4


def winograd_filters(kernel: Given, is_paired: bool = False) -> Float32 | Int32:
    """A kernel as `bound_upsampling` takes it.

    Parameters
    ----------
    kernel : float array (groups, M, C, 4, 4)
    is_paired : bool
        Rounded to bfloat16, as words of two channels.

    Returns
    -------
    float32 array (groups, 2, 18, M, C), or int32 (groups, 2, 18, M, ceil(C / 2))
        For each phase of output rows, of columns: 3 x 3 numbers, of which a pair of outputs has three on each axis.

    Raises
    ------
    ShapeError, DTypeError
        If it is no such kernel.

    Examples
    --------
    >>> import numpy as np
    >>> from pyclattn.functional.winograd import winograd_filters
    >>> kernel = np.outer([1, 0, 2, 0], [1, 0, 0, 0]).astype(np.float32)
    >>> winograd_filters(kernel[None, None, None])[0, 0, :9, 0, 0].reshape(3, 3).tolist()
    [[0.0, 2.0, 2.0], [0.0, 3.0, 3.0], [0.0, 1.0, 1.0]]
    """
    given = _check.rows("kernel", kernel, 5)
    if given.shape[3:] != (4, 4):
        raise ShapeError(f"kernel must have shape (groups, M, C, 4, 4), got {given.shape}")
    groups, channels, depth = given.shape[:3]
    halves = given.reshape(groups, channels, depth, 2, 2, 2, 2).astype(np.float64)  # of rows (far, phase), columns
    near, far = halves[:, :, :, 0], halves[:, :, :, 1]
    rows = np.stack([far, far + near, near])  # (3, groups, M, C, phase, columns far, phase)
    near, far = rows[..., 0, :], rows[..., 1, :]
    both = np.stack([far, far + near, near])  # (3, 3, groups, M, C, phase, phase): columns, rows
    ordered = both.transpose(2, 5, 6, 1, 0, 3, 4).reshape(groups, 2, 18, channels, depth).astype(np.float32)
    return paired_filters(ordered) if is_paired else np.ascontiguousarray(ordered)


def bound_upsampling(
    images: Given,
    filters: Given,
    bias: Given = None,
    *,
    pads: tuple[int, int] = (0, 0),
    is_relu: bool = False,
    n_threads: int | None = None,
    out: Given,
) -> Callable[[], None]:
    """A transposed convolution of stride 2 as a call without arguments: arrays may change content between calls.

    Parameters
    ----------
    images : float32 array (N, groups x C, H, W)
        Any view with contiguous rows.
    filters : float32 or int32 array
        As of `winograd_filters`; int32 are products of bfloat16.
    bias : float32 array (groups x M,), optional
    pads : (int, int)
        Rows and columns that are cut off at the top and left.
    is_relu : bool
        Negative outputs become 0.
    n_threads : int, optional
    out : float32 array (N, groups x M, H', W')
        Any view with contiguous rows; must not overlap ``images``. What lies beyond 2 H + 2 - pads rows, columns alike,
        gets the bias alone.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError, BackendError
        Before any work.

    Examples
    --------
    >>> import numpy as np
    >>> from pyclattn.functional.winograd import bound_upsampling, winograd_filters
    >>> filters = winograd_filters(np.ones((1, 1, 1, 4, 4), np.float32))
    >>> image, out = np.array([[[[1, 10]]]], np.float32), np.empty((1, 1, 2, 4), np.float32)
    >>> bound_upsampling(image, filters, pads=(1, 1), out=out)()
    >>> out.tolist()
    [[[[1.0, 11.0, 11.0, 10.0], [1.0, 11.0, 11.0, 10.0]]]]
    """
    x, is_paired = _check.rows("images", images, 4), getattr(filters, "dtype", None) == np.int32
    kernels = filters if is_paired else _check.rows("filters", filters, 5)
    if kernels.ndim != 5 or kernels.shape[1:3] != (2, 18):
        raise ShapeError(f"filters must have shape (groups, 2, 18, M, C), got {kernels.shape}")
    groups, _, _, channels, n_words = kernels.shape
    depth = x.shape[1] // max(1, groups)
    if x.shape[1] != groups * depth or n_words != (-(-depth // 2) if is_paired else depth):
        raise ShapeError(f"filters {kernels.shape} do not fit images {x.shape}")
    if not isinstance(out, np.ndarray) or out.ndim != 4 or out.shape[:2] != (len(x), groups * channels):
        raise ShapeError(f"out must have shape ({len(x)}, {groups * channels}, ...), got {np.shape(out)}")
    target = _check.writable("out", out, out.shape)
    shift = channel_bias(bias, groups * channels)
    for pad in pads:
        _check.whole("pads", pad, 0)
    if out.size == 0:
        return lambda: None
    rows, columns = (-(-(n + pad) // 4) for n, pad in zip(out.shape[2:], pads))
    threads = _threads.resolve(n_threads) if out.size * depth >= SMALL else 1
    return _dispatch.bind(
        "winograd.upsample_bfloat16" if is_paired else "winograd.upsample",
        threads,
        x,
        np.ascontiguousarray(kernels),
        shift,
        is_relu,
        np.array(pads, np.int64),
        columns,
        cut(len(x), groups, rows * columns, PANEL),
        target,
    )
