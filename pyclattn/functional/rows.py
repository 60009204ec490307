"""Functions of single elements, and norms of rows: compiled, in place where asked, over threads.

Exponential, tanh, erf, GELU and SiLU are right to two units in the last place wherever the result is above 1e-35.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from pyclattn import _dispatch, _threads
from pyclattn.arrays import Float32, Given, Int64
from pyclattn.errors import ArgumentError, ShapeError
from pyclattn.functional import _check

FUNCTIONS = ("relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "sigmoid", "tanh", "exp", "erf")
# Numbers of one task: 128 kB in and out stay in L2. Below four tasks waking a thread costs more than it saves.
BLOCK, LEAST_TASKS = 16384, 4


def is_fast() -> bool:
    """Whether these run compiled; NumPy's own are faster than the reference."""
    return _dispatch.room_of("rows.apply") != "reference"


def bound_apply(name: str, x: Given, out: Given, n_threads: int | None = None) -> Callable[[], None]:
    """``name(x)`` into ``out`` as a call without arguments: the arrays stay and may change content.

    Parameters
    ----------
    name : str
        One of `FUNCTIONS`.
    x, out : float32 arrays of one shape, C order
        May be the same array.
    n_threads : int, optional

    Raises
    ------
    ArgumentError, ShapeError, DTypeError

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([-1, 0, 2], np.float32)
    >>> bound_apply("relu", x, x)()
    >>> x.tolist()
    [0.0, 0.0, 2.0]
    """
    _check.one_of("name", name, FUNCTIONS)
    flat, into = _flat("x", x), _flat("out", out)
    if flat.shape != into.shape:
        raise ShapeError(f"x and out must have one shape, got {np.shape(x)} and {np.shape(out)}")
    _check.writable("out", into, into.shape)
    tasks = _cut(flat.size, BLOCK)
    return _bind("rows.apply", tasks, n_threads, flat, name, tasks, into)


def bound_normalise(
    x: Given,
    weight: Given = None,
    bias: Given = None,
    *,
    residual: Given = None,
    epsilon: float = 1e-5,
    is_rms: bool = False,
    n_threads: int | None = None,
    total: Given = None,
    out: Given,
) -> Callable[[], None]:
    """LayerNorm, or RMSNorm, of the rows of ``x + residual`` as a call without arguments.

    Parameters
    ----------
    x : float32 array (rows, width)
    weight, bias : float32 array (width,), optional
    residual : float32 array (rows, width), optional
    epsilon : float
    is_rms : bool
        Divide by the root of the mean square alone.
    n_threads : int, optional
    total : float32 array (rows, width), optional
        Gets ``x + residual``.
    out : float32 array (rows, width)
        May be x, residual or, with neither, any array of rows that overlaps none of them.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError

    Examples
    --------
    >>> import numpy as np
    >>> out = np.empty((1, 2), np.float32)
    >>> bound_normalise(np.array([[1, 3]], np.float32), epsilon=0.0, out=out)()
    >>> out.tolist()
    [[-1.0, 1.0]]
    """
    rows = _check.rows("x", x, 2)
    width = rows.shape[1]
    vectors = []
    for name, given in (("weight", weight), ("bias", bias)):
        vector = None if given is None else np.ascontiguousarray(_check.rows(name, given, 1))
        if vector is not None and vector.shape != (width,):
            raise ShapeError(f"{name} must have shape ({width},), got {vector.shape}")
        vectors.append(vector)
    added = None if residual is None else _check.rows("residual", residual, 2)
    if added is not None and added.shape != rows.shape:
        raise ShapeError(f"residual must have shape {rows.shape}, got {added.shape}")
    sums = None if total is None else _check.writable("total", total, rows.shape)
    into = _check.writable("out", out, rows.shape)
    tasks = _cut(rows.shape[0] if width else 0, max(1, BLOCK // max(1, width)))
    return _bind("rows.normalise", tasks, n_threads, rows, added, *vectors, epsilon, is_rms, tasks, sums, into)


def _flat(name: str, given: Given) -> Float32:
    """A C-contiguous float32 array as a vector of the same memory."""
    if not isinstance(given, np.ndarray) or given.dtype != np.float32 or not given.flags.c_contiguous:
        raise ArgumentError(f"{name} must be a float32 array in C order, got {getattr(given, 'dtype', type(given))}")
    return given.reshape(-1)


def _bind(kernel: str, tasks: Int64, n_threads: int | None, *arguments) -> Callable[[], None]:
    if not len(tasks):
        return lambda: None
    threads = _threads.resolve(n_threads) if len(tasks) >= LEAST_TASKS else 1
    return _dispatch.bind(kernel, threads, *arguments)


@lru_cache(maxsize=256)
def _cut(n: int, step: int) -> Int64:
    """Tasks [first, last + 1]; no number depends on the cut."""
    return np.array([(i, min(i + step, n)) for i in range(0, n, step)], np.int64).reshape(-1, 2)
