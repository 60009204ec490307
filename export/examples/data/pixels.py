"""Handwritten digits as sequences of 1,024 pixels: 8 x 8 images made four times as wide and high, row after row."""

from __future__ import annotations

import numpy as np

SIZE = 32
N_CLASSES = 10
N_TEST = 360  # of the 1,797 images of scikit-learn
FURTHEST = 3  # pixels an image is moved by at most


def split(seed: int = 0, n: int = 1797) -> tuple[np.ndarray, np.ndarray]:
    """Which of n images are for training, and which for testing."""
    order = np.random.default_rng(seed).permutation(n)
    return order[N_TEST:], order[:N_TEST]


def sequences(images: np.ndarray, moves: np.ndarray | None = None) -> np.ndarray:
    """Images as sequences.

    Parameters
    ----------
    images : array (n, 8, 8)
        0 to 16.
    moves : int array (n, 2), optional
        Pixels down and to the right; what leaves the image is gone, what comes in is empty.

    Returns
    -------
    float32 array (n, 1024)
        0 to 1.

    Examples
    --------
    >>> sequences(np.full((1, 8, 8), 8))[0, :3]
    array([0.5, 0.5, 0.5], dtype=float32)
    """
    up = _interpolation(images.shape[-1], SIZE)
    large = (up @ (np.asarray(images, np.float32) / 16) @ up.T).astype(np.float32)
    if moves is not None:
        bordered = np.pad(large, ((0, 0), (FURTHEST, FURTHEST), (FURTHEST, FURTHEST)))
        top, left = (FURTHEST - np.asarray(moves)).T
        rows, columns = top[:, None, None] + np.arange(SIZE)[:, None], left[:, None, None] + np.arange(SIZE)
        large = bordered[np.arange(len(large))[:, None, None], rows, columns]
    return large.reshape(len(large), SIZE * SIZE)


def random_moves(n: int, rng: np.random.Generator) -> np.ndarray:
    """Moves for n images."""
    return rng.integers(-FURTHEST, FURTHEST + 1, (n, 2))


def places() -> np.ndarray:
    """Row and column of each token, -1 to 1: float32 (1024, 2)."""
    axis = np.linspace(-1, 1, SIZE, dtype=np.float32)
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)


def _interpolation(n_in: int, n_out: int) -> np.ndarray:
    """Linear interpolation between the middles of pixels, as a matrix (n_out, n_in)."""
    at = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(n_in))).astype(np.float32)
