"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), in both layouts models use."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyclattn.arrays import Float32, Given
from pyclattn.errors import ArgumentError, ShapeError
from pyclattn.graph import blocks
from pyclattn.layers import _check

LAYOUTS = ("half", "interleaved")


@dataclass(frozen=True, eq=False)
class Angles:
    """Cosines and sines of tokens, made once for all layers.

    Parameters
    ----------
    cos, sin : array (length, R / 2) or (batch, length, R / 2)
        The first R features of each head are rotated, the rest stays.
    layout : {"half", "interleaved"}
        "half": feature i is paired with i + R / 2 (LLaMA, GPT-NeoX). "interleaved": 2 i with 2 i + 1 (RoFormer,
        GPT-J, LightGlue).

    Examples
    --------
    >>> turns = np.array([[0.0, 0.0], [np.pi, 0.1]])
    >>> angles = Angles(np.cos(turns), np.sin(turns), "interleaved")
    >>> rotate(np.ones((1, 1, 2, 4), np.float32), angles)[0, 0, 1].round(2)
    array([-1.  , -1.  ,  0.9 ,  1.09], dtype=float32)
    """

    cos: Float32
    sin: Float32
    layout: str = "half"

    def __post_init__(self) -> None:
        _layout(self.layout)
        for name in ("cos", "sin"):
            object.__setattr__(self, name, _check.floats(f"{name} of Angles", getattr(self, name)))
        if self.cos.shape != self.sin.shape or self.cos.ndim < 2:
            raise ShapeError(
                f"cos and sin of Angles must have one shape (..., length, R / 2), got {self.cos.shape} "
                f"and {self.sin.shape}"
            )

    @classmethod
    def of_twice(cls, cos: Given, sin: Given, layout: str = "half") -> Angles:
        """From arrays (..., length, R) with each angle twice, at both features of its pair."""
        halves = []
        for name, given in (("cos", cos), ("sin", sin)):
            array = _check.floats(f"{name} of Angles", given)
            if array.ndim < 2 or array.shape[-1] % 2:
                raise ShapeError(f"{name} with each angle twice must be (..., length, R), R even, got {array.shape}")
            halves.append(array[..., 0::2] if layout == "interleaved" else array[..., : array.shape[-1] // 2])
        return cls(halves[0], halves[1], layout)

    def check(self, batch: int, length: int, head_dim: int) -> None:
        """Raise ShapeError unless heads (batch, H, length, head_dim) can be rotated."""
        shape = self.cos.shape
        if shape[-2] != length or len(shape) > 3 or (len(shape) == 3 and shape[0] not in (1, batch)):
            wanted = f"({length}, R / 2) or ({batch}, {length}, R / 2)"
            raise ShapeError(f"cos and sin of Angles must have shape {wanted}, got {shape}")
        if 2 * shape[-1] > head_dim:
            raise ShapeError(f"cos and sin of {shape[-1]} pairs rotate {2 * shape[-1]} features, heads have {head_dim}")


@dataclass(frozen=True, eq=False)
class Rotary:
    """What makes angles from positions.

    Parameters
    ----------
    frequencies : array (R / 2,), or (R / 2, n_coordinates)
        Angle of a step; with several coordinates (pixels of a keypoint, say) their angles add up.
    layout : {"half", "interleaved"}
        As of `Angles`.

    Examples
    --------
    >>> rotary = Rotary.of(4)
    >>> rotary.frequencies
    array([1.  , 0.01], dtype=float32)
    >>> rotary.angles(10).cos.shape
    (10, 2)
    """

    frequencies: Float32
    layout: str = "half"

    def __post_init__(self) -> None:
        _layout(self.layout)
        array = _check.floats("frequencies of Rotary", self.frequencies)
        if array.ndim not in (1, 2):
            raise ShapeError(f"frequencies of Rotary must be (R / 2,) or (R / 2, n_coordinates), got {array.shape}")
        object.__setattr__(self, "frequencies", array)

    @classmethod
    def of(cls, n_features: int, base: float = 10000.0, layout: str = "half") -> Rotary:
        """The usual frequencies, ``base ** (-2 i / n_features)``."""
        if n_features < 2 or n_features % 2:
            raise ArgumentError(f"n_features of Rotary must be even and at least 2, got {n_features}")
        return cls((base ** (-np.arange(0, n_features, 2) / n_features)).astype(np.float32), layout)

    def angles(self, positions: Given) -> Angles:
        """Cosines and sines.

        Parameters
        ----------
        positions : int, or array (..., length), or (..., length, n_coordinates)
            A number n stands for 0 .. n - 1.

        Returns
        -------
        Angles
            cos and sin (..., length, R / 2).
        """
        if isinstance(positions, (int, np.integer)):
            positions = np.arange(positions)
        at = np.asarray(positions)
        if self.frequencies.ndim == 1:
            # in float64: position 30,000 times a frequency has no digits left for the angle in float32
            turns = at.astype(np.float64)[..., None] * self.frequencies.astype(np.float64)
        else:
            wanted = self.frequencies.shape[1]
            if at.ndim < 2 or at.shape[-1] != wanted:
                raise ShapeError(f"positions must have shape (..., length, {wanted}), got {at.shape}")
            turns = at.astype(np.float64) @ self.frequencies.T.astype(np.float64)
        return Angles(np.cos(turns).astype(np.float32), np.sin(turns).astype(np.float32), self.layout)


def rotate(x: Float32, angles: Angles, n_threads: int = 1) -> Float32:
    """Rotate heads in place.

    Parameters
    ----------
    x : float32 array (B, H, L, D)
        Any strides with contiguous rows; written to.
    angles : Angles
        cos and sin (L, R / 2) or (B, L, R / 2), R at most D.
    n_threads : int

    Returns
    -------
    float32 array
        ``x``.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.ones((1, 1, 2, 2), np.float32)
    >>> rotate(x, Rotary.of(2).angles(2)).round(2)
    array([[[[ 1.  ,  1.  ],
             [-0.3 ,  1.38]]]], dtype=float32)
    """
    batch, _, length, head_dim = x.shape
    angles.check(batch, length, head_dim)
    cos, sin, half = angles.cos, angles.sin, angles.cos.shape[-1]
    rows = x.swapaxes(1, 2)[..., : 2 * half]  # (B, L, H, R): a token's heads side by side
    cos, sin = (np.broadcast_to(a, (batch, length, half))[:, :, None] for a in (cos, sin))
    step = max(1, blocks.BLOCK // max(1, rows[:1, :1].size))
    pieces = [(b, slice(i, i + step)) for b in range(batch) for i in range(0, length, step)]
    function = _rotate_interleaved if angles.layout == "interleaved" else _rotate_half
    threads = n_threads if rows.size >= blocks.PARALLEL else 1
    blocks.share(lambda i: function(rows[pieces[i]], cos[pieces[i]], sin[pieces[i]]), len(pieces), threads)()
    return x


def _rotate_half(x: Float32, cos: Float32, sin: Float32) -> None:
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    turned = first * sin
    np.multiply(first, cos, first)
    first -= second * sin
    np.multiply(second, cos, second)
    second += turned


def _rotate_interleaved(x: Float32, cos: Float32, sin: Float32) -> None:
    pairs = x.view(np.complex64)  # (a, b) is a + i b, and a rotation a product
    np.multiply(pairs, cos + 1j * sin, pairs)


def _layout(layout: str) -> None:
    if layout not in LAYOUTS:
        raise ArgumentError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
