"""Which points of two sets belong together, from their scores; the matrix of scores never exists at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pyclattn import _threads
from pyclattn._blas import single
from pyclattn.graph import blocks

# A match is kept from this probability on.
LEAST = 0.1
# Rows of the matrix of scores that exist at once: 128 x 8,192 float32 = 4 MB.
BLOCK = 128


def log_sigmoid(x: np.ndarray) -> np.ndarray:
    """log(1 / (1 + exp(-x)))."""
    return -np.logaddexp(np.float32(0), -x)


def mutual(
    a: np.ndarray, b: np.ndarray, known_a: np.ndarray, known_b: np.ndarray, n_threads: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs that are each other's best under a softmax over rows times one over columns, and their probabilities.

    Parameters
    ----------
    a : array (N, D)
    b : array (M, D)
    known_a, known_b : array (N,), (M,)
        Log of the chance that a point has a partner at all.
    n_threads : int, optional

    Returns
    -------
    pairs : int array (P, 2)
    chances : float32 array (P,)
        At least `LEAST`. The N x M scores are made in blocks of rows, twice, and never exist at once.
    """
    if not len(a) or not len(b):
        return np.empty((0, 2), np.int64), np.empty(0, np.float32)
    threads = _threads.resolve(n_threads)
    over_rows, over_columns = log_sums(a, b, threads)
    # both sums enter the product as two more features
    ones = np.ones((max(len(a), len(b)), 1), np.float32)
    a = np.concatenate([2 * a, (known_a - over_rows)[:, None], ones[: len(a)]], 1)
    b = np.concatenate([b, ones[: len(b)], (known_b - over_columns)[:, None]], 1)
    best, chance = np.empty(len(a), np.int64), np.empty(len(a), np.float32)

    def choose(rows: slice, highest: np.ndarray) -> None:
        scores = a[rows] @ b.T
        scores.argmax(1, out=best[rows])
        chance[rows] = scores[np.arange(len(scores)), best[rows]]
        scores.max(0, out=highest)

    highest = over_blocks(choose, len(a), len(b), threads).max(0)
    kept = np.flatnonzero((chance == highest[best]) & (np.exp(chance) > LEAST))
    _, first = np.unique(best[kept], return_index=True)  # of rows that are equally good
    kept = np.sort(kept[first])
    return np.stack([kept, best[kept]], 1), np.exp(chance[kept])


def log_sums(a: np.ndarray, b: np.ndarray, n_threads: int) -> tuple[np.ndarray, np.ndarray]:
    """log(sum(exp(a b^T))) of each row and of each column."""
    over_rows = np.empty(len(a), np.float32)

    def add(rows: slice, found: np.ndarray) -> None:
        scores = a[rows] @ b.T
        over_rows[rows] = log_sum_exp(scores, 1)
        found[...] = log_sum_exp(scores, 0)

    found = over_blocks(add, len(a), len(b), n_threads)
    return over_rows, log_sum_exp(found, 0)


def log_sum_exp(x: np.ndarray, axis: int) -> np.ndarray:
    """log(sum(exp(x))) along an axis."""
    highest = x.max(axis, keepdims=True)
    powers = x - highest
    np.exp(powers, powers)
    return np.log(powers.sum(axis)) + highest.squeeze(axis)


def over_blocks(task: Callable[[slice, np.ndarray], None], n_rows: int, n_columns: int, n_threads: int) -> np.ndarray:
    """``task(rows, found)`` for all blocks of rows; what they found (blocks, columns)."""
    found = np.empty((-(-n_rows // BLOCK), n_columns), np.float32)
    with single:
        blocks.share(lambda i: task(slice(i * BLOCK, (i + 1) * BLOCK), found[i]), len(found), n_threads)()
    return found
