"""Dense layers in NumPy."""

import math
from collections.abc import Callable

import numpy as np

from pyclattn.arrays import Float32, Float64, Int32, Int64
from pyclattn.reference._rounding import to_bfloat16
from pyclattn.reference._tasks import drawn

_erfc = np.frompyfunc(math.erfc, 1, 1)


def _logistic(x: Float64) -> Float64:
    small = np.exp(-np.abs(x))
    return np.where(x < 0, small, 1) / (1 + small)


ACTIVATIONS: dict[str, Callable[[Float64], Float64]] = {
    "": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: 0.5 * x * np.asarray(_erfc(-x * math.sqrt(0.5)), np.float64),
    "gelu_tanh": lambda x: x * _logistic(math.sqrt(8 / math.pi) * (x + 0.044715 * x**3)),
    "quick_gelu": lambda x: x * _logistic(1.702 * x),
    "silu": lambda x: x * _logistic(x),
    "sigmoid": _logistic,
}


def multiply(
    rows: Float32,
    panels: Float32,
    bias: Float32 | None,
    activation: str,
    residual: Float32 | None,
    tasks: Int64,
    out: Float32,
    counter: Int64,
) -> None:
    """out = activation(rows @ weight + bias) + residual.

    The weight is cut into panels of columns, (n_panels, depth, lanes), zeros at the end; its first element lies at a
    multiple of 64 bytes. A task is [first row, last + 1, first panel, last + 1]. ``out`` is (batch, length, heads,
    head_dim) in any layout: row r and column c of the product stand at [r // length, r % length, c // head_dim,
    c % head_dim].
    """
    _multiply(rows, panels, bias, activation, residual, tasks, out, counter)


def multiply_bfloat16(
    rows: Float32,
    panels: Int32,
    bias: Float32 | None,
    activation: str,
    residual: Float32 | None,
    tasks: Int64,
    out: Float32,
    counter: Int64,
) -> None:
    """The same with rows rounded to bfloat16, and a weight that was.

    Panels are (n_panels, n_words, lanes), a word two terms of a sum, the earlier one in its low half.
    """
    words = panels.view(np.uint32)
    terms = np.stack([words << np.uint32(16), words & np.uint32(0xFFFF0000)], axis=2).view(np.float32)
    weight = to_bfloat16(terms.reshape(len(words), -1, words.shape[2])[:, : rows.shape[1]])
    _multiply(to_bfloat16(rows), weight, bias, activation, residual, tasks, out, counter)


def _multiply(rows, panels, bias, activation, residual, tasks, out, counter) -> None:
    _, length, heads, head_dim = out.shape
    lanes, width = panels.shape[2], heads * head_dim
    for start, stop, first, last in drawn(tasks, counter):
        for panel in range(first, last):
            columns = slice(panel * lanes, min((panel + 1) * lanes, width))
            product = rows[start:stop].astype(np.float64) @ panels[panel, :, : columns.stop - columns.start]
            if bias is not None:
                product += bias[columns]
            result = ACTIVATIONS[activation](product)
            if residual is not None:
                result = result + residual[start:stop, columns]
            row, column = np.arange(start, stop)[:, None], np.arange(columns.start, columns.stop)
            out[row // length, row % length, column // head_dim, column % head_dim] = result
