"""The arithmetic under the layers, shared among the library's threads. Products are made in one place, `_multiply`.

Arrays are (rows, features). How work is cut follows from shapes alone where it could change a sum, so the bits are the
same for any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pyclattn.arrays import Float32
from pyclattn.graph import blocks
from pyclattn.graph.blas import single
from pyclattn.graph.ops import functions
from pyclattn.graph.ops.linear import LEAST_PIECE, ROWS, SHORT, SPLIT
from pyclattn.graph.ops.reduction import rows as norm_rows

Activation = Callable[[np.ndarray, np.ndarray], object]  # function(x, out); out may be x

ACTIVATIONS: dict[str, Activation] = {name: f for name, f in functions.ACTIVATIONS.items() if f is not None}


def _multiply(x: Float32, weight: Float32, out: Float32) -> None:
    """``x weight^T`` for x (M, K), weight (N, K) into out (M, N)."""
    np.matmul(x, weight.T, out)


def dense(
    x: Float32,
    weight: Float32,
    bias: Float32 | None,
    activation: Activation | None,
    add: Float32 | None,
    out: Float32,
) -> Float32:
    """``activation(x weight^T + bias) + add`` into ``out``, on this thread."""
    _multiply(x, weight, out)
    if bias is None and activation is None and add is None:
        return out
    step = max(1, blocks.BLOCK // max(1, out.shape[1]))  # rows that stay in cache from one function to the next
    for i in range(0, len(out), step):
        part = out[i : i + step]
        if bias is not None:
            np.add(part, bias, part)
        if activation is not None:
            activation(part, part)
        if add is not None:
            np.add(part, add[i : i + step], part)
    return out


def linear(
    x: Float32,
    weight: Float32,
    bias: Float32 | None,
    activation: Activation | None,
    add: Float32 | None,
    out: Float32,
    n_threads: int,
) -> None:
    """`dense`, cut by rows, or by columns where there are few rows."""
    (m, k), n = x.shape, len(weight)
    threads = n_threads if m * k * n >= SPLIT else 1
    if m > SHORT:
        over_rows(lambda i: dense(x[i], weight, bias, activation, None if add is None else add[i], out[i]), m, threads)
        return
    # no piece so small that BLAS takes another kernel for it, which could change the bits
    n_parts = max(1, min(threads, m * k * n // LEAST_PIECE))
    step = max(64, -(-n // n_parts))
    step += -step % 64

    def columns(part: int) -> None:
        j = slice(part * step, (part + 1) * step)
        b, a = None if bias is None else bias[j], None if add is None else add[:, j]
        dense(x, weight[j], b, activation, a, out[:, j])

    run(columns, -(-n // step), threads)


def over_rows(task: Callable[[slice], Any], n_rows: int, n_threads: int) -> None:
    """``task(rows)`` for blocks of at most ROWS rows, as many as 1, 2 and 4 threads share evenly."""
    n_tasks = -(-n_rows // ROWS)
    n_tasks += -n_tasks % 4
    step = max(1, -(-n_rows // n_tasks)) if n_tasks else 1
    run(lambda i: task(slice(i * step, (i + 1) * step)), -(-n_rows // step), n_threads)


def run(task: Callable[[int], Any], n_tasks: int, n_threads: int) -> None:
    """All tasks, on up to ``n_threads`` threads, with NumPy's BLAS held to one."""
    with single, np.errstate(all="ignore"):
        blocks.share(task, n_tasks, n_threads if single.works else 1)()


def normalise(function: Callable, x: Float32, out: Float32, n_threads: int) -> None:
    """``function(rows of x, rows of out)`` in blocks that stay in cache."""
    with np.errstate(all="ignore"):
        norm_rows(function, x, out, n_threads)()
