"""Convolutions as products on the tile: what many front ends begin with, and what maps are drawn by at the end.

Positions of the output stand in the lanes, so an image is read and written as it lies, channels first, and nothing is
unfolded but one panel of positions at a time. A transposed convolution is one convolution for each remainder of the
output position by the stride, written to every stride-th position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from pyclattn import _dispatch, _threads
from pyclattn.arrays import PANEL, Float32, Given, Int32, Int64
from pyclattn.errors import DTypeError, ShapeError
from pyclattn.functional import _check
from pyclattn.functional._product import SMALL

# Positions of one task.
POSITIONS = 10 * PANEL
# A panel of more terms would not stay in L2 (1 MB): 4,096 x 48 float32 are 0.8 MB.
MOST_TERMS = 4096


def is_fast() -> bool:
    """Whether convolutions run compiled; the reference is slower than BLAS."""
    return _dispatch.room_of("conv.convolve") != "reference"


def panel_bytes(n_terms: int) -> int:
    """What a thread holds: a panel, and the sums of one call of the tile."""
    return (n_terms + 64) * PANEL * 4


def bound_convolution(
    images: Given,
    filters: Given,
    taps: Sequence[tuple[int, int]],
    bias: Given = None,
    *,
    steps: tuple[int, int] = (1, 1),
    n_threads: int | None = None,
    out: Given,
) -> Callable[[], None]:
    """A convolution as a call without arguments: the arrays stay where they are and may change content.

    Parameters
    ----------
    images : float32 array (N, groups x C, H, W)
        Any view with contiguous rows. Words of two channels, int32, where the filters are
        (`pyclattn.functional.conv_bfloat16`): C counts words then.
    filters : float32 or int32 array (groups, M, taps x C), C order
        A filter's weights, channel by channel for each tap.
    taps : sequence of (int, int)
        What a position sees: (row, column) beside ``position * steps``. Beyond the image stand zeros.
    bias : float32 array (groups x M,), optional
    steps : (int, int)
        Rows and columns of the input from one position of the output to the next.
    n_threads : int, optional
    out : float32 array (N, groups x M, H', W')
        Any view; must not overlap ``images``.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Before any work.

    Examples
    --------
    >>> import numpy as np
    >>> image, out = np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3), np.empty((1, 1, 2, 3), np.float32)
    >>> bound_convolution(image, np.ones((1, 1, 2), np.float32), [(0, -1), (0, 0)], out=out)()
    >>> out.tolist()
    [[[[0.0, 1.0, 3.0], [3.0, 7.0, 9.0]]]]
    """
    is_paired = getattr(filters, "dtype", None) == np.int32
    x, f = _terms("images", images, 4, is_paired), np.ascontiguousarray(_terms("filters", filters, 3, is_paired))
    if not isinstance(out, np.ndarray) or out.ndim != 4 or out.dtype != np.float32:
        raise ShapeError(f"out must be a float32 array of rank 4, got {getattr(out, 'shape', type(out).__name__)}")
    groups, channels, terms = f.shape
    places = np.array(taps, np.int64).reshape(-1, 2)
    if groups == 0 or x.shape[1] % groups or terms != len(places) * (x.shape[1] // groups):
        raise ShapeError(f"filters {f.shape} do not fit images {x.shape} and {len(places)} taps")
    if out.shape[:2] != (x.shape[0], groups * channels):
        raise ShapeError(f"out must have shape ({x.shape[0]}, {groups * channels}, ...), got {out.shape}")
    shift = channel_bias(bias, groups * channels)
    for step in steps:
        _check.whole("steps", step, 1)
    if out.size == 0:
        return lambda: None
    threads = _threads.resolve(n_threads) if out.size * terms >= SMALL else 1
    tasks = _cut(x.shape[0], groups, out.shape[2] * out.shape[3])
    kernel = "conv.convolve_bfloat16" if is_paired else "conv.convolve"
    return _dispatch.bind(kernel, threads, x, f, places, shift, np.array(steps, np.int64), tasks, out)


def _terms(name: str, given: Given, rank: int, is_paired: bool) -> Float32 | Int32:
    """What is multiplied: float32, or words of bfloat16."""
    if not is_paired:
        return _check.rows(name, given, rank)
    if getattr(given, "dtype", None) != np.int32 or given.ndim != rank:
        found = f"{getattr(given, 'dtype', type(given).__name__)} {np.shape(given)}"
        raise DTypeError(f"{name} must be int32 words of rank {rank}, as the filters are, got {found}")
    return given if given.strides[-1] == 4 or given.shape[-1] < 2 else np.ascontiguousarray(given)


def _cut(n_images: int, n_groups: int, n_positions: int) -> Int64:
    return cut(n_images, n_groups, n_positions, min(POSITIONS, max(PANEL, n_positions // 8 // PANEL * PANEL)))


@lru_cache(maxsize=64)
def cut(n_images: int, n_groups: int, n_positions: int, step: int) -> Int64:
    """Tasks [image, group, first position, last + 1] of ``step`` positions; no sum depends on the cut."""
    starts = range(0, n_positions, step)
    return np.array(
        [(i, g, p, min(p + step, n_positions)) for i in range(n_images) for g in range(n_groups) for p in starts],
        np.int64,
    )


def channel_bias(bias: Given, n_channels: int) -> Float32 | None:
    """A bias of each output channel, checked."""
    if bias is None:
        return None
    shift = np.ascontiguousarray(_check.rows("bias", bias, 1))
    if shift.shape != (n_channels,):
        raise ShapeError(f"bias must have shape ({n_channels},), got {shift.shape}")
    return shift


def ordered_filters(weight: Float32, taps: Sequence[tuple[int, int]]) -> Float32:
    """Kernel elements ``taps`` of a weight (groups, M, C, rows, columns) as filters (groups, M, taps, C)."""
    rows, columns = np.array(taps, np.int64).reshape(-1, 2).T
    return weight[:, :, :, rows, columns].swapaxes(2, 3)


def grouped(weight: Float32, groups: int, is_transposed: bool) -> Float32:
    """A weight (G x M, C, ...), of a transposed convolution (G x C, M, ...), as (G, M, C, rows, columns)."""
    places = weight.shape[2:] if weight.ndim == 4 else (1, *weight.shape[2:])
    kernel = weight.reshape(groups, -1, weight.shape[1], *places)
    return kernel.swapaxes(1, 2) if is_transposed else kernel
