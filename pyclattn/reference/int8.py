"""Dense layers on 8-bit whole numbers, in NumPy.

A weight is packed in panels of columns, in groups of four rows: (n_panels, n_groups, lanes, 4) int8, zeros at the end.
A task is [first row, last + 1, first panel, last + 1]; tasks of the same rows stand together.
"""

import numpy as np

from pyclattn.arrays import Float32, Int64
from pyclattn.reference._tasks import drawn
from pyclattn.reference.dense import ACTIVATIONS

ZERO = 128  # what is added to a row's numbers to make codes from 0 to 255
LEAST = np.float32(2.0**-100)  # a row of smaller numbers counts as zeros
SEVEN_BITS = np.float32(127)


def quantise(rows: Float32) -> tuple[np.ndarray, Float32]:
    """(codes uint8, one scale a row): codes = round(row / scale) + 128, scale = largest |number| / 127.

    A row with a NaN or an infinity has the scale NaN.
    """
    with np.errstate(all="ignore"):
        size = np.abs(rows)
        is_finite = np.asarray(np.isfinite(size).all(axis=1))
        largest = np.where(is_finite, size.max(axis=1, initial=0), np.float32(0)).astype(np.float32)
        is_small = largest < LEAST
        factor = np.where(is_small, np.float32(0), SEVEN_BITS / largest)
        scales = np.where(is_small, np.float32(0), largest / SEVEN_BITS)
        codes = np.rint(np.where(is_finite[:, None], rows, 0) * factor[:, None]) + ZERO
    return codes.astype(np.uint8), np.where(is_finite, scales, np.float32(np.nan)).astype(np.float32)


def unpacked(panels: np.ndarray, depth: int, width: int) -> np.ndarray:
    """The weight (depth, width) of its panels, as int64."""
    n_panels, n_groups, lanes, _ = panels.shape
    weight = panels.transpose(1, 3, 0, 2).reshape(4 * n_groups, n_panels * lanes)
    return weight[:depth, :width].astype(np.int64)


def multiply(
    rows: Float32,
    panels: np.ndarray,
    offsets: np.ndarray,
    scales: Float32,
    bias: Float32 | None,
    activation: str,
    residual: Float32 | None,
    tasks: Int64,
    out: Float32,
    counter: Int64,
) -> None:
    """out = activation((codes @ weight - offsets) * row scale * scale + bias) + residual.

    ``offsets`` (int32) and ``scales`` have an entry for each column of the panels; offsets are 128 times a column's
    sum, so that what is multiplied are the rows' quantised numbers. ``out`` is (batch, length, heads, head_dim), as of
    `pyclattn.reference.dense`.
    """
    _, length, heads, head_dim = out.shape
    lanes, width = panels.shape[2], heads * head_dim
    for start, stop, first, last in drawn(tasks, counter):
        codes, row_scales = quantise(rows[start:stop])
        for panel in range(first, last):
            columns = slice(panel * lanes, min((panel + 1) * lanes, width))
            weight = unpacked(panels[panel : panel + 1], rows.shape[1], columns.stop - columns.start)
            sums = codes.astype(np.int64) @ weight - offsets[columns]
            product = sums.astype(np.float32) * (scales[columns] * row_scales[:, None])
            product = product.astype(np.float64)
            if bias is not None:
                product += bias[columns]
            product = ACTIVATIONS[activation](product)
            if residual is not None:
                product += residual[start:stop, columns]
            row, column = np.arange(start, stop)[:, None], np.arange(width)[columns]
            out[row // length, row % length, column // head_dim, column % head_dim] = product


def sum_products(rows: np.ndarray, panels: np.ndarray, tasks: Int64, out: np.ndarray, counter: Int64) -> None:
    """out = rows @ weight, uint8 by int8 as int32, exact."""
    lanes, width = panels.shape[2], out.shape[1]
    for start, stop, first, last in drawn(tasks, counter):
        for panel in range(first, last):
            columns = slice(panel * lanes, min((panel + 1) * lanes, width))
            weight = unpacked(panels[panel : panel + 1], rows.shape[1], columns.stop - columns.start)
            out[start:stop, columns] = rows[start:stop].astype(np.int64) @ weight
