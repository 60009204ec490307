"""What every packed weight can do, and what all products check: float32 here, int8 and bfloat16 in their own files.

A packed weight is a `Packed`: callers know no more of it than that, so a new way to store a weight is one new class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from pyclattn import _dispatch, _threads
from pyclattn.arrays import Float32, Given, Int64
from pyclattn.errors import ShapeError
from pyclattn.functional import _check

# What a product can do with its sums before it writes them.
ACTIVATIONS = ("", "relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "sigmoid")
# Below this many multiply-adds (about 0.2 ms) waking another thread costs more than it saves: about 50 us, and as much
# again where its CPU had gone to sleep. With few rows a product waits for its weight, as long as for two rows more.
SMALL, WAITING_ROWS = 12_000_000, 2
# What an activation adds to the depth: a number of GELU takes as long as 80 multiply-adds, one that is only written 8.
ACTIVATION_DEPTH = {"": 8, "relu": 8, "gelu": 80}
OTHER_ACTIVATION_DEPTH = 40
TASKS_PER_THREAD = 4
LEAST_ROWS = 64


class Packed(Protocol):
    """A weight (depth, width) in the order its kernel reads it."""

    @property
    def shape(self) -> tuple[int, int]:
        """(depth, width)."""

    @property
    def nbytes(self) -> int:
        """Bytes it keeps in memory."""

    def scratch_bytes(self, n_rows: int, n_threads: int) -> int:
        """Bytes that a product of so many rows takes while it runs."""

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
        """``activation(x @ weight + bias) + residual`` as a call that returns ``out``, all checks done.

        The arrays stay where they are and may change content between calls. ``residual`` may be ``out`` itself.
        A weight with a true ``writes_heads`` also takes an ``out`` (batch, length, heads, head_dim), in any layout.
        """


@dataclass(frozen=True)
class Product:
    """A product's arguments, checked; ``n_threads`` is 0 where there is nothing to compute."""

    rows: Float32
    bias: Float32 | None
    activation: str
    residual: Float32 | None
    out: Float32
    n_threads: int


def checked(
    x: Given,
    shape: tuple[int, int],
    bias: Given,
    activation: str,
    residual: Given,
    n_threads: int | None,
    out: Given,
    writes_heads: bool = False,
) -> Product:
    """The arguments of ``activation(x @ weight + bias) + residual``; ``shape`` is the weight's."""
    rows = _check.rows("x", x, 2)
    depth, width = shape
    if rows.shape[1] != depth:
        raise ShapeError(f"x must have rows of the weight's depth, {depth}, got shape {rows.shape}")
    _check.one_of("activation", activation, ACTIVATIONS)
    shift = None
    if bias is not None:
        shift = np.ascontiguousarray(_check.rows("bias", bias, 1))
        if shift.shape != (width,):
            raise ShapeError(f"bias must have shape ({width},), got {shift.shape}")
    full = (rows.shape[0], width)
    added = None
    if residual is not None:
        added = _check.rows("residual", residual, 2)
        if added.shape != full:
            raise ShapeError(f"residual must have shape {full}, got {added.shape}")
    if out is None:
        result = np.empty(full, np.float32)
    elif writes_heads and np.ndim(out) == 4 and (out.shape[0] * out.shape[1], out.shape[2] * out.shape[3]) == full:
        result = _check.writable("out", out, out.shape)
    else:
        result = _check.writable("out", out, full)
    deep = depth + ACTIVATION_DEPTH.get(activation, OTHER_ACTIVATION_DEPTH)
    return Product(rows, shift, activation, added, result, useful_threads(n_threads, full[0], deep, width))


def useful_threads(n_threads: int | None, n_rows: int, depth: int, width: int) -> int:
    """How many of the threads a product of these sizes is worth; 0 where there is nothing to compute."""
    threads = _threads.resolve(n_threads)
    if n_rows * width == 0:
        return 0
    return threads if (n_rows + WAITING_ROWS) * depth * width >= SMALL else 1


@lru_cache(maxsize=256)
def cut(
    n_rows: int, n_panels: int, n_threads: int, rows: int, panels: int, per_thread: int = TASKS_PER_THREAD
) -> Int64:
    """Tasks of up to ``rows`` x ``panels``, enough of them for the threads to end together; no sum depends on the cut.

    ``per_thread``: the fewest that a thread should get, as far as `LEAST_ROWS` allows.

    Returns
    -------
    int64 array (n_tasks, 4)
        [first row, last + 1, first panel, last + 1].
    """
    while -(-n_rows // rows) * -(-n_panels // panels) < per_thread * n_threads:
        if panels > 1:
            panels //= 2
        elif rows > LEAST_ROWS:
            rows //= 2
        else:
            break
    blocks = [(r, min(r + rows, n_rows)) for r in range(0, n_rows, rows)]
    return np.array([(*b, p, min(p + panels, n_panels)) for b in blocks for p in range(0, n_panels, panels)], np.int64)


def bound(
    kernel: str, product: Product, weight: tuple, tasks_of: Callable[[int, int, int], Int64]
) -> Callable[[], Float32]:
    """The product as a call that returns its output; ``weight`` is what the kernel takes of one, its panels first.

    ``tasks_of`` (rows, panels, threads) cuts it.
    """
    result = product.out
    if not product.n_threads:
        return lambda: result
    into = result if result.ndim == 4 else result[None, :, None]
    tasks = tasks_of(len(product.rows), len(weight[0]), product.n_threads)
    call = _dispatch.bind(
        kernel,
        product.n_threads,
        product.rows,
        *weight,
        product.bias,
        product.activation,
        product.residual,
        tasks,
        into,
    )

    def run() -> Float32:
        call()
        return result

    return run
