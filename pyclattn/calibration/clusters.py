"""Which queries of an attention go together, for pictures."""

from __future__ import annotations

import math

import numpy as np

from pyclattn.arrays import Float32
from pyclattn.functional import _ragged
from pyclattn.functional._metric import axes_between, group_along
from pyclattn.functional.clustered import AXES

# Tokens before the grid of an image's: a class token, registers.
MOST_SPECIAL = 8


def coloured(query: Float32, key: Float32, n_clusters: int, n_threads: int) -> np.ndarray:
    """A colour for each query of one head: that of its cluster; clusters whose centroids are near look alike.

    Parameters
    ----------
    query, key : float32 array (N, D), (M, D)
    n_clusters : int
    n_threads : int

    Returns
    -------
    float array (N, 3)
        Red, green and blue in [0, 1]: the three leading axes of the cluster means as the keys see them.

    Examples
    --------
    >>> rows = np.float32([[0, 0], [0, 1], [9, 9], [9, 8]]) @ np.eye(2, 4, dtype=np.float32)
    >>> found = coloured(rows, rows, 2, 1)
    >>> bool((found[0] == found[1]).all() and (found[2] == found[3]).all() and (found[0] != found[2]).any())
    True
    """
    q, k = (np.ascontiguousarray(rows, np.float32)[None, None] for rows in (query, key))
    queries, keys = _ragged.locate(q, k, None, None, None, None)
    tokens, key_tokens = queries.indexed(), keys.indexed()
    axes, _, _ = axes_between(q, tokens, k, key_tokens, min(AXES, q.shape[3]), n_threads)
    labels = group_along(q, tokens, axes, np.array([n_clusters]), n_threads).labels[0]
    places = q[0, 0] @ axes[0, 0].T
    counts = np.maximum(np.bincount(labels, minlength=n_clusters), 1)
    means = np.stack([np.bincount(labels, column, n_clusters) / counts for column in places.T], axis=1)
    leading = means[:, :3] if means.shape[1] >= 3 else np.pad(means, ((0, 0), (0, 3 - means.shape[1])))
    # ranks, so that every colour is used: two far clusters do not leave the others grey
    ranks = leading.argsort(axis=0).argsort(axis=0) / max(n_clusters - 1, 1)
    return ranks[labels]


def grid(n_tokens: int) -> tuple[int, int] | None:
    """(special tokens, side) if the rest is a square; the fewest special ones.

    Examples
    --------
    >>> grid(5330), grid(1024), grid(6752)
    ((1, 73), (0, 32), None)
    """
    for special in range(min(MOST_SPECIAL, n_tokens) + 1):
        side = math.isqrt(n_tokens - special)
        if side >= 8 and side * side == n_tokens - special:
            return special, side
    return None
