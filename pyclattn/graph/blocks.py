"""Cut array work into blocks that fit in cache and share them among threads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count

import numpy as np

from pyclattn import _threads

# 32,768 float32 = 128 kB: input, output and two temporaries of a block fit in a 1 MB L2 cache, and one call of a
# ufunc on it takes about ten times its fixed cost.
BLOCK = 32768
# Below 4 blocks handing work to another thread (about 40 us) costs more than it saves.
PARALLEL = 4 * BLOCK


def share(task: Callable[[int], None], n_tasks: int, n_threads: int) -> Callable[[], None]:
    """A call that runs ``task(0) ... task(n_tasks - 1)``, each once, on up to ``n_threads`` threads."""
    n_threads = min(n_threads, n_tasks)
    if n_threads <= 1:

        def run():
            for i in range(n_tasks):
                task(i)

        return run

    def run_shared():
        numbers = count()

        def work():
            with np.errstate(all="ignore"):  # NumPy keeps this for each thread
                for i in numbers:
                    if i >= n_tasks:
                        return
                    task(i)

        _threads.run(work, n_threads)

    return run_shared


def cut(shape: tuple[int, ...], block: int = BLOCK) -> tuple[int, int] | None:
    """(axis, length) of slices with at most about ``block`` elements; None if the whole is smaller."""
    size = int(np.prod(shape, dtype=np.int64))
    if size <= block:
        return None
    for axis, n in enumerate(shape):
        if n > 1:
            return axis, max(1, block * n // size)
    return None


def flat(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """The arrays as vectors if all have one shape and C order, else as they are."""
    shape = arrays[0].shape
    if all(a.shape == shape and a.flags.c_contiguous for a in arrays):
        return [a.reshape(-1) for a in arrays]
    return arrays


def slices(arrays: list[np.ndarray], block: int = BLOCK) -> list[list[np.ndarray]]:
    """Blocks of arrays that broadcast to the last one's shape, cut along one axis."""
    out = arrays[-1]
    where = cut(out.shape, block)
    if where is None:
        return [arrays]
    axis, step = where
    n = out.shape[axis]
    result = []
    for start in range(0, n, step):
        piece = []
        for a in arrays:
            at = axis - (out.ndim - a.ndim)
            if at < 0 or a.shape[at] == 1:
                piece.append(a)
            else:
                piece.append(a[(slice(None),) * at + (slice(start, start + step),)])
        result.append(piece)
    # one long inner axis: cut the pieces further
    if step == 1 and cut(result[0][-1].shape, block) is not None:
        return [p for piece in result for p in slices([_drop(a, axis, out.ndim) for a in piece], block)]
    return result


def _drop(a: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    """``a`` without the axis of length 1 that stands at ``axis`` of an array of ``ndim`` dimensions."""
    at = axis - (ndim - a.ndim)
    return a if at < 0 else a[(slice(None),) * at + (0,)]


def elementwise(function: Callable, ins: list[np.ndarray], out: np.ndarray, n_threads: int) -> Callable[[], None]:
    """A call of ``function(*ins, out)``, in blocks over threads if ``out`` is large. Inputs broadcast to ``out``."""
    if out.size < PARALLEL or n_threads <= 1:
        return partial(function, *ins, out)
    pieces = slices(flat([*ins, out]))
    return share(lambda i: function(*pieces[i]), len(pieces), n_threads)


def blockwise(function: Callable, ins: list[np.ndarray], out: np.ndarray, n_threads: int) -> Callable[[], None]:
    """As `elementwise`, for functions that use temporaries: always in blocks, so that these stay small."""
    if out.size <= BLOCK:
        return partial(function, *ins, out)
    pieces = slices(flat([*ins, out]))
    return share(lambda i: function(*pieces[i]), len(pieces), n_threads if out.size >= PARALLEL else 1)
