"""Dense layers with a weight packed once.

BLAS packs the weight anew for each product. Over thousands of rows that is little; over a sentence it is a third of
the time, since every weight is then read twice, written once and used a few times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pyclattn import _threads
from pyclattn._dispatch import bind, launch, panel_lanes, room_of
from pyclattn.arrays import Float32, Given, Int64
from pyclattn.errors import ShapeError
from pyclattn.functional import _check

# What `linear` can do with the sums before it writes them.
ACTIVATIONS = ("", "relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "sigmoid")
# Below this many multiply-adds (about 0.2 ms) waking another thread costs more than it saves: about 50 us, and as much
# again where its CPU had gone to sleep. With few rows a product waits for its weight, as long as for two rows more.
SMALL, WAITING_ROWS = 12_000_000, 2
# Rows and panels of one task: 256 rows of 384 to 3,072 are 0.4 to 3 MB, read again from L2 or L3 for each panel.
ROWS, PANELS = 256, 4
TASKS_PER_THREAD = 4


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

    @property
    def shape(self) -> tuple[int, int]:
        """(depth, width)."""
        return self.panels.shape[1], self.width

    @property
    def nbytes(self) -> int:
        """Bytes of the panels."""
        return self.panels.nbytes


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
    panels = _aligned(shape)
    for panel in range(n_panels):
        columns = given[:, panel * lanes : (panel + 1) * lanes]
        panels[panel, :, : columns.shape[1]] = columns
    if width % lanes:
        panels[-1, :, width % lanes :] = 0
    return PackedWeight(panels, width)


def packed_shape(depth: int, width: int) -> tuple[int, int, int]:
    """The shape of a weight's panels."""
    lanes = panel_lanes()
    return -(-width // lanes), depth, lanes


def _aligned(shape: tuple[int, ...]) -> Float32:
    """A new array that begins at a multiple of 64 bytes, as the tile reads whole vectors."""
    size = int(np.prod(shape, dtype=np.int64))
    raw = np.empty(size + 16, np.float32)
    start = -raw.ctypes.data % 64 // 4
    return raw[start : start + size].reshape(shape)


def linear(
    x: Given,
    weight: PackedWeight,
    bias: Given = None,
    *,
    activation: str = "",
    n_threads: int | None = None,
    out: Given = None,
) -> Float32:
    """A dense layer, ``activation(x @ weight + bias)``.

    Parameters
    ----------
    x : array (rows, depth)
        float32; float16 and float64 are converted.
    weight : PackedWeight
    bias : float array (width,), optional
    activation : str
        "", "relu", "gelu", "gelu_tanh", "quick_gelu", "silu" or "sigmoid".
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
    >>> linear(np.array([[1, -2, 3]], np.float32), weight, np.zeros(2, np.float32), activation="relu").tolist()
    [[1.0, 0.0]]
    """
    n_threads, arguments = _checked(x, weight, bias, activation, n_threads, out)
    if n_threads:
        launch("dense.multiply", n_threads, *arguments)
    return arguments[-1]


def bound_linear(
    x: Given,
    weight: PackedWeight,
    bias: Given = None,
    *,
    activation: str = "",
    n_threads: int | None = None,
    out: Given = None,
) -> Callable[[], None]:
    """`linear` as a call without arguments, all checks done: for arrays that stay where they are and change content."""
    n_threads, arguments = _checked(x, weight, bias, activation, n_threads, out)
    return bind("dense.multiply", n_threads, *arguments) if n_threads else _nothing


def is_fast() -> bool:
    """Whether dense layers run compiled; the reference is slower than BLAS."""
    return room_of("dense.multiply") != "reference"


def _nothing() -> None:
    """The product of nothing."""


def _checked(x, weight, bias, activation, n_threads, out) -> tuple[int, tuple]:
    """(threads, the kernel's arguments); no threads where there is nothing to do."""
    rows = _check.rows("x", x, 2)
    depth, width = weight.shape
    if rows.shape[1] != depth:
        raise ShapeError(f"x must have rows of the weight's depth, {depth}, got shape {rows.shape}")
    _check.one_of("activation", activation, ACTIVATIONS)
    shift = None
    if bias is not None:
        shift = np.ascontiguousarray(_check.rows("bias", bias, 1))
        if shift.shape != (width,):
            raise ShapeError(f"bias must have shape ({width},), got {shift.shape}")
    shape = (rows.shape[0], width)
    result = np.empty(shape, np.float32) if out is None else _check.writable("out", out, shape)
    threads = _threads.resolve(n_threads)
    if result.size == 0:
        return 0, (result,)
    threads = threads if (shape[0] + WAITING_ROWS) * depth * width >= SMALL else 1
    tasks = _cut(shape[0], weight.panels.shape[0], threads)
    return threads, (rows, weight.panels, shift, activation, tasks, result)


@lru_cache(maxsize=256)
def _cut(n_rows: int, n_panels: int, n_threads: int) -> Int64:
    """Tasks, enough of them for the threads to end together. No sum depends on the cut."""
    rows, panels = ROWS, PANELS
    while -(-n_rows // rows) * -(-n_panels // panels) < TASKS_PER_THREAD * n_threads and (panels > 1 or rows > 64):
        if panels > 1:
            panels //= 2
        else:
            rows //= 2
    blocks = [(r, min(r + rows, n_rows)) for r in range(0, n_rows, rows)]
    return np.array([(*b, p, min(p + panels, n_panels)) for b in blocks for p in range(0, n_panels, panels)], np.int64)
