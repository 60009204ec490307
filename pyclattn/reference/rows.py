"""Functions of single elements, and normalised rows, in NumPy."""

import math
from collections.abc import Callable

import numpy as np

from pyclattn.arrays import Float32, Int64
from pyclattn.reference._tasks import drawn
from pyclattn.reference.dense import ACTIVATIONS

_erf = np.frompyfunc(math.erf, 1, 1)
FUNCTIONS: dict[str, Callable] = {
    **ACTIVATIONS, "tanh": np.tanh, "exp": np.exp, "erf": lambda x: np.asarray(_erf(x), np.float64),
}  # fmt: skip


def apply(x: Float32, name: str, tasks: Int64, out: Float32, counter: Int64) -> None:
    """out = name(x) of vectors, element by element; out may be x. A task is [first, last + 1]."""
    for first, last in drawn(tasks, counter):
        with np.errstate(all="ignore"):
            out[first:last] = FUNCTIONS[name](x[first:last].astype(np.float64))


def normalise(
    x: Float32,
    residual: Float32 | None,
    weight: Float32 | None,
    bias: Float32 | None,
    epsilon: float,
    is_rms: bool,
    tasks: Int64,
    total: Float32 | None,
    out: Float32,
    counter: Int64,
) -> None:
    """out = z / sqrt(mean(z^2) + epsilon) * weight + bias for z = y - mean(y), y = x + residual.

    With ``is_rms`` z is y itself. ``total`` gets y. Rows of x, residual, total and out may be the same. A task is
    [first row, last + 1].
    """
    for first, last in drawn(tasks, counter):
        rows = slice(first, last)
        y = x[rows].astype(np.float64)
        if residual is not None:
            y += residual[rows]
        if total is not None:
            total[rows] = y
        z = y if is_rms else y - y.mean(1, keepdims=True)
        z = z / np.sqrt((z * z).mean(1, keepdims=True) + epsilon)
        if weight is not None:
            z *= weight
        out[rows] = z if bias is None else z + bias
