"""Dense layers with a weight packed once.

BLAS packs the weight anew for each product. Over thousands of rows that is little; over a sentence it is a third of
the time, since every weight is then read twice, written once and used a few times.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from pyclattn import _dispatch
from pyclattn.arrays import Float32, Given
from pyclattn.functional import _check
from pyclattn.functional._product import ACTIVATIONS, Packed, bound, checked, cut

__all__ = ["ACTIVATIONS", "Packed", "PackedWeight", "is_fast", "linear", "pack_weight"]

# Rows and panels of one task: 256 rows of 384 to 3,072 are 0.4 to 3 MB, read again from L2 or L3 for each panel.
ROWS, PANELS = 256, 4
# Tasks of a thread, where a product is small: its rows need no packing, so fine tasks cost nothing, and the thread that
# was woken (60 us later) does what is left to do. 64 x 384 x 48 take 20 us.
TASKS = 16


@dataclass(frozen=True)
class PackedWeight:
    """A weight (depth, width) as panels of columns, each contiguous: what `linear` reads.

    Attributes
    ----------
    panels : float32 array (n_panels, depth, lanes)
    width : int
        Columns of the weight; the last panel is filled up with zeros.
    """

    panels: Float32
    width: int
    writes_heads = True

    @property
    def shape(self) -> tuple[int, int]:
        """(depth, width)."""
        return self.panels.shape[1], self.width

    @property
    def nbytes(self) -> int:
        """Bytes of the panels."""
        return self.panels.nbytes

    def scratch_bytes(self, n_rows: int, n_threads: int) -> int:
        """Bytes that a product takes while it runs: two blocks of sums and a column a thread."""
        _, depth, lanes = self.panels.shape
        return n_threads * 4 * (2 * 32 * lanes + depth)

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
        """`linear` as a call without arguments, all checks done; see `Packed.bind`."""
        product = checked(x, self.shape, bias, activation, residual, n_threads, out, writes_heads=True)
        return bound(
            "dense.multiply", product, (self.panels,), partial(cut, rows=ROWS, panels=PANELS, per_thread=TASKS)
        )


def pack_weight(weight: Given) -> PackedWeight:
    """Pack a weight for the instruction set in use.

    Parameters
    ----------
    weight : array (depth, width)
        float32; float16 and float64 are converted.

    Returns
    -------
    PackedWeight

    Raises
    ------
    ShapeError, DTypeError
        If it is no matrix of floating point numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from pyclattn.functional.dense import linear, pack_weight
    >>> weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    >>> linear(np.array([[1, 10]], np.float32), pack_weight(weight)).tolist()
    [[30.0, 41.0, 52.0]]
    """
    given = _check.rows("weight", weight, 2)
    depth, width = given.shape
    shape = packed_shape(depth, width)
    n_panels, _, lanes = shape
    panels = aligned(shape)
    for panel in range(n_panels):
        columns = given[:, panel * lanes : (panel + 1) * lanes]
        panels[panel, :, : columns.shape[1]] = columns
    if width % lanes:
        panels[-1, :, width % lanes :] = 0
    return PackedWeight(panels, width)


def packed_shape(depth: int, width: int) -> tuple[int, int, int]:
    """The shape of a weight's panels."""
    lanes = _dispatch.panel_lanes()
    return -(-width // lanes), depth, lanes


def aligned(shape: tuple[int, ...]) -> Float32:
    """A new array that begins at a multiple of 64 bytes, as the tile reads whole vectors."""
    size = math.prod(shape)
    raw = np.empty(size + 16, np.float32)
    start = -raw.ctypes.data % 64 // 4
    return raw[start : start + size].reshape(shape)


def linear(
    x: Given,
    weight: Packed,
    bias: Given = None,
    *,
    activation: str = "",
    residual: Given = None,
    n_threads: int | None = None,
    out: Given = None,
) -> Float32:
    """A dense layer, ``activation(x @ weight + bias) + residual``.

    Parameters
    ----------
    x : array (rows, depth)
        float32; float16 and float64 are converted.
    weight : PackedWeight, or another `Packed`
    bias : float array (width,), optional
    activation : str
        "", "relu", "gelu", "gelu_tanh", "quick_gelu", "silu" or "sigmoid".
    residual : float array (rows, width), optional
        Added last. May be ``out`` itself.
    n_threads : int, optional
        Default: PYCLATTN_NUM_THREADS, else the CPUs this process may use.
    out : float32 array (rows, width), optional
        Where the result goes. Must not overlap ``x``.

    Returns
    -------
    float32 array (rows, width)
        The same bits for any number of threads, and for a row whatever the other rows are.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Before any work, naming the argument, what was given and what was expected.

    Examples
    --------
    >>> import numpy as np
    >>> from pyclattn.functional.dense import linear, pack_weight
    >>> weight = pack_weight(np.eye(3, 2, dtype=np.float32))
    >>> x, shift = np.array([[1, -2, 3]], np.float32), np.zeros(2, np.float32)
    >>> linear(x, weight, shift, activation="relu", residual=np.ones((1, 2), np.float32)).tolist()
    [[2.0, 1.0]]
    """
    return weight.bind(x, bias, activation=activation, residual=residual, n_threads=n_threads, out=out)()


def is_fast() -> bool:
    """Whether dense layers run compiled; the reference is slower than BLAS."""
    return _dispatch.room_of("dense.multiply") != "reference"
