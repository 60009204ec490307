"""The arithmetic under the layers on rows of features, shared among the library's threads.

`multiply` is the one place where products are made. A row's bits do not depend on the other rows, nor on the number of
threads, so a padded batch and a packed one agree exactly.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pyclattn.arrays import Float32
from pyclattn.functional import dense
from pyclattn.functional.dense import Packed
from pyclattn.graph import blocks
from pyclattn.graph.ops import functions

Normalise = Callable[[Float32, Float32], object]  # function(x, out)

ACTIVATIONS = tuple(name for name in functions.ACTIVATIONS if name)


def multiply(
    x: Float32, weight: Packed, bias: Float32 | None, activation: str | None, out: Float32, n_threads: int
) -> None:
    """``activation(x weight + bias)`` for x (rows, in) into out (rows, out)."""
    inner = activation if activation in dense.ACTIVATIONS else None
    dense.linear(x, weight, bias, activation=inner or "", n_threads=n_threads, out=out)
    if activation != inner:
        activate(activation, out, n_threads)


def activate(activation: str | None, x: Float32, n_threads: int) -> None:
    """In place."""
    function = functions.ACTIVATIONS[activation or ""]
    if function is not None:
        by_rows(lambda i: function(x[i], x[i]), x, n_threads)


def add(x: Float32, out: Float32, n_threads: int) -> None:
    """``out += x``."""
    by_rows(lambda i: np.add(x[i], out[i], out[i]), out, n_threads)


def times(x: Float32, out: Float32, n_threads: int) -> None:
    """``out *= x``."""
    by_rows(lambda i: np.multiply(x[i], out[i], out[i]), out, n_threads)


def normalise(function: Normalise, x: Float32, residual: Float32 | None, out: Float32, n_threads: int) -> None:
    """``function(x + residual, out)``; the sum never leaves the cache."""
    if residual is None:
        by_rows(lambda i: function(x[i], out[i]), x, n_threads)
    else:
        by_rows(lambda i: function(x[i] + residual[i], out[i]), x, n_threads)


def by_rows(task: Callable[[slice], object], like: Float32, n_threads: int) -> None:
    """``task(rows)`` for blocks of rows of ``like`` (rows, features) that stay in cache."""
    step = max(1, blocks.BLOCK // max(1, like.shape[1]))
    threads = n_threads if like.size >= blocks.PARALLEL else 1

    def block(i: int) -> None:
        task(slice(i * step, (i + 1) * step))

    with np.errstate(all="ignore"):
        blocks.share(block, -(-len(like) // step), threads)()
