"""Dense layers with a weight of 8-bit whole numbers, a quarter of the memory and up to four products at a time.

The weight has one scale a column, fixed when it is quantised; each row of the input has a scale of its own, found when
it is read. The sums of products are exact, so the only errors are the two roundings to 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pyclattn import _dispatch
from pyclattn.arrays import Float32, Given, Int32, Int64
from pyclattn.errors import ArgumentError, DTypeError, ShapeError
from pyclattn.functional import _check
from pyclattn.functional._product import LEAST_ROWS, TASKS_PER_THREAD, bound, checked, useful_threads

# 65,536 products of 255 and 127 fit in an int32.
LARGEST_DEPTH = 1 << 16
# Rows of one task: 128 rows of 384 to 3,072 codes are 48 to 384 kB, and stay in L2 for all panels.
ROWS = 128
LEVELS = 127
# Of a column with one number some 300 times the others, nothing else is left. Trained weights have columns of which
# half is lost, and models of such weights are none the worse: whether that matters samples tell.
WORST_COLUMN = 0.9


@dataclass(frozen=True)
class PackedInt8:
    """An int8 weight (depth, width) in panels of columns, each in groups of four rows.

    Attributes
    ----------
    panels : int8 array (n_panels, n_groups, lanes, 4)
        Zeros at the end of rows and columns.
    offsets : int32 array (n_panels * lanes,)
        128 times the sum of a column: what codes from 0 to 255 add to its product.
    scales : float32 array (n_panels * lanes,)
    shape : tuple
        (depth, width).
    """

    panels: np.ndarray
    offsets: Int32
    scales: Float32
    shape: tuple[int, int]

    writes_heads = True

    @property
    def nbytes(self) -> int:
        """Bytes of panels, offsets and scales."""
        return self.panels.nbytes + self.offsets.nbytes + self.scales.nbytes

    def bind(
        self,
        x: Given,
        bias: Given = None,
        *,
        activation: str = "",
        residual: Given = None,
        n_threads: int | None = None,
        out: Given = None,
    ) -> Callable[[], Float32]:
        """``activation(x @ weight + bias) + residual`` as a call that returns ``out``; see `Packed.bind`.

        A row with a NaN or an infinity becomes NaN.
        """
        product = checked(x, self.shape, bias, activation, residual, n_threads, out, writes_heads=True)
        return bound("int8.multiply", product, (self.panels, self.offsets, self.scales), _cut)

    def scratch_bytes(self, n_rows: int, n_threads: int) -> int:
        """Bytes that a product of so many rows takes while it runs."""
        return n_threads * (min(n_rows, ROWS) * (self.shape[0] + 68) + 32 * 4 * self.panels.shape[2])

    def bind_sums(self, x: Given, *, n_threads: int | None = None, out: Given = None) -> Callable[[], Int32]:
        """``x @ weight`` in whole numbers, scales left out, as a call that returns ``out``.

        Parameters
        ----------
        x : uint8 array (rows, depth)
        n_threads : int, optional
        out : int32 array (rows, width), optional
        """
        rows = _whole("x", x, np.uint8, 2)
        depth, width = self.shape
        if rows.shape[1] != depth:
            raise ShapeError(f"x must have rows of the weight's depth, {depth}, got shape {rows.shape}")
        shape = (len(rows), width)
        result = np.empty(shape, np.int32) if out is None else out
        if not isinstance(result, np.ndarray) or result.dtype != np.int32 or result.shape != shape:
            raise ShapeError(f"out must be an int32 array of shape {shape}, got {_described(result)}")
        if result.size == 0:
            return lambda: result
        if depth == 0:
            return lambda: result.fill(0) or result
        threads = useful_threads(n_threads, len(rows), depth, width)
        tasks = _cut(len(rows), len(self.panels), threads)
        call = _dispatch.bind("int8.sum_products", threads, rows, self.panels, tasks, result)

        def run() -> Int32:
            call()
            return result

        return run


def quantise_weight(weight: Given) -> tuple[np.ndarray, Float32]:
    """A weight as whole numbers from -127 to 127, and the scale of each column.

    Parameters
    ----------
    weight : float array (depth, width)

    Returns
    -------
    codes : int8 array (depth, width)
    scales : float32 array (width,)
        ``codes * scales`` is the weight, to half a scale.

    Raises
    ------
    ShapeError, DTypeError
        If it is no matrix of floating point numbers.
    ArgumentError
        If int8 cannot hold it well, saying why: a number that is not finite, nothing but zeros, or a number so large
        that the rest of its column would be lost.

    Examples
    --------
    >>> import numpy as np
    >>> from pyclattn.functional.dense_int8 import quantise_weight
    >>> codes, scales = quantise_weight(np.array([[0.5, -2], [1, 0.25]], np.float32))
    >>> codes.tolist(), (scales * 127).tolist()
    ([[64, -127], [127, 16]], [1.0, 2.0])
    """
    given = _check.rows("weight", weight, 2)
    if not np.isfinite(given).all():
        raise ArgumentError("int8 cannot hold the weight: it has a NaN or an infinity")
    largest = np.abs(given).max(axis=0, initial=0)
    if not largest.any():
        raise ArgumentError("int8 cannot hold the weight: all of it is zero")
    scales = (largest / LEVELS).astype(np.float32)
    codes = np.rint(given / np.where(scales > 0, scales, 1)).clip(-LEVELS, LEVELS)
    lost = np.square(given - codes * scales, dtype=np.float64).sum(axis=0)
    rest = np.square(given, dtype=np.float64).sum(axis=0) - np.square(largest, dtype=np.float64)
    # beside a number large enough the rest is less than the rounding of their sum
    worst = np.sqrt(np.max(lost / np.maximum(np.maximum(rest, lost), np.finfo(np.float32).tiny), initial=0))
    if worst > WORST_COLUMN:
        raise ArgumentError(
            f"int8 cannot hold the weight: a number so large stands in a column that {worst:.0%} of the rest would be "
            f"lost, more than {WORST_COLUMN:.0%}"
        )
    return codes.astype(np.int8), scales


def pack_int8(codes: Given, scales: Given) -> PackedInt8:
    """Pack an int8 weight for the instruction set in use.

    Parameters
    ----------
    codes : int8 array (depth, width)
    scales : float array (width,)

    Returns
    -------
    PackedInt8

    Raises
    ------
    ShapeError, DTypeError
        If shapes do not fit, or sums over the depth could pass an int32 (a depth of more than 65,536).

    Examples
    --------
    >>> import numpy as np
    >>> from pyclattn.functional.dense import linear
    >>> from pyclattn.functional.dense_int8 import pack_int8, quantise_weight
    >>> weight = pack_int8(*quantise_weight(np.array([[1, 2], [3, -4]], np.float32)))
    >>> linear(np.array([[1, 1]], np.float32), weight).round(1).tolist()
    [[4.0, -2.0]]
    """
    given = _whole("codes", codes, np.int8, 2)
    depth, width = given.shape
    if depth > LARGEST_DEPTH:
        raise ShapeError(f"an int8 weight must have a depth of at most {LARGEST_DEPTH}, got shape {given.shape}")
    factors = np.ascontiguousarray(_check.rows("scales", scales, 1))
    if factors.shape != (width,):
        raise ShapeError(f"scales must have shape ({width},), got {factors.shape}")
    lanes = _dispatch.panel_lanes()
    n_panels, n_groups = -(-width // lanes), -(-depth // 4)
    panels = _zeros((n_panels, n_groups, lanes, 4))
    for panel in range(n_panels):
        columns = given[:, panel * lanes : (panel + 1) * lanes]
        for i in range(4):
            part = columns[i::4]
            panels[panel, : len(part), : part.shape[1], i] = part
    padded_scales, offsets = np.zeros(n_panels * lanes, np.float32), np.zeros(n_panels * lanes, np.int32)
    padded_scales[:width] = factors
    offsets[:width] = 128 * given.sum(axis=0, dtype=np.int32)
    return PackedInt8(panels, offsets, padded_scales, (depth, width))


def _whole(name: str, given: Given, dtype: type, rank: int) -> np.ndarray:
    """``given`` as an array of this dtype and rank with contiguous rows."""
    array = _check.array_of(name, given)
    if array.dtype != dtype:
        raise DTypeError(f"{name} must be {np.dtype(dtype)}, got {array.dtype}")
    if array.ndim != rank:
        raise ShapeError(f"{name} must have rank {rank}, got shape {array.shape}")
    return array if array.shape[-1] <= 1 or array.strides[-1] == 1 else np.ascontiguousarray(array)


def _described(given: object) -> str:
    return f"{given.dtype} {given.shape}" if isinstance(given, np.ndarray) else type(given).__name__


def _zeros(shape: tuple[int, ...]) -> np.ndarray:
    """int8 zeros that begin at a multiple of 64 bytes."""
    size = int(np.prod(shape, dtype=np.int64))
    raw = np.zeros(size + 64, np.int8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].reshape(shape)


@lru_cache(maxsize=256)
def _cut(n_rows: int, n_panels: int, n_threads: int) -> Int64:
    """Tasks as of `_product.cut`, but rows are cut first: tasks of other columns would quantise them again."""
    rows, panels = ROWS, n_panels
    while -(-n_rows // rows) * -(-n_panels // panels) < TASKS_PER_THREAD * n_threads:
        if rows > LEAST_ROWS // 2:
            rows //= 2
        elif panels > 1:
            panels = -(-panels // 2)
        else:
            break
    blocks = [(r, min(r + rows, n_rows)) for r in range(0, n_rows, rows)]
    return np.array([(*b, p, min(p + panels, n_panels)) for b in blocks for p in range(0, n_panels, panels)], np.int64)
