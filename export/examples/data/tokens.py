"""Sequences of random letters with short words planted in them, misspelt; the label is the word that stands there most.

Ten words of 8 letters over an alphabet of 20. In 512 letters the label's word is planted 9 times, three other words
3 times each, and each of their letters is another one with probability 0.15.
"""

from __future__ import annotations

import numpy as np

LENGTH = 512
N_LETTERS, N_CLASSES, WORD = 20, 10, 8
OFTEN, SELDOM, N_OTHERS = 9, 3, 3
MUTATION = 0.15


def words() -> np.ndarray:
    """The ten words: int64 (10, 8)."""
    return np.random.default_rng(2024).integers(0, N_LETTERS, (N_CLASSES, WORD))


def generate(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequences and their labels.

    Parameters
    ----------
    n : int
    seed : int

    Returns
    -------
    tokens : int64 array (n, 512)
    labels : int64 array (n,)

    Examples
    --------
    >>> tokens, labels = generate(3, seed=0)
    >>> tokens.shape, labels
    ((3, 512), array([0, 1, 2]))
    """
    rng = np.random.default_rng(seed)
    tokens, labels = rng.integers(0, N_LETTERS, (n, LENGTH)), np.arange(n) % N_CLASSES
    known = words()
    n_planted = OFTEN + N_OTHERS * SELDOM
    for row, label in zip(tokens, labels):
        others = rng.permutation(np.delete(np.arange(N_CLASSES), label))[:N_OTHERS]
        planted = known[np.concatenate([np.full(OFTEN, label), np.repeat(others, SELDOM)])]
        wrong = rng.random(planted.shape) < MUTATION
        planted = np.where(wrong, rng.integers(0, N_LETTERS, planted.shape), planted)
        # words do not overlap: slots of a word's length, each used once
        starts = WORD * rng.permutation(LENGTH // WORD)[:n_planted]
        row[starts[:, None] + np.arange(WORD)] = planted
    return tokens, labels
