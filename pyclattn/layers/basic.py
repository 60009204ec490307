"""Layers that know one token at a time: Linear, LayerNorm, RMSNorm, Embedding, FeedForward."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pyclattn import _threads
from pyclattn.arrays import Float32, Given
from pyclattn.errors import ArgumentError, DTypeError, ShapeError
from pyclattn.functional.dense import Packed, aligned, pack_weight
from pyclattn.graph.ops import norm
from pyclattn.layers import _check, _compute

# Rows of one block of a FeedForward: 1024 x 1536 hidden features are 6 MB, and products this high lose nothing.
BLOCK = 1024


def check_activation(name: str | None) -> None:
    """Raise ArgumentError, with the names there are, unless it is one of them or None."""
    if name is not None and name not in _compute.ACTIVATIONS:
        raise ArgumentError(f"activation must be None or one of {', '.join(_compute.ACTIVATIONS)}, got {name!r}")


@dataclass(frozen=True, eq=False)
class Linear:
    """``x weight^T + bias``.

    Parameters
    ----------
    weight : array (out, in)
        As PyTorch keeps it. float32; other float types are converted once.
    bias : array (out,), optional

    Examples
    --------
    >>> import numpy as np
    >>> layer = Linear(np.array([[1, 2], [3, 4], [5, 6]], np.float32))
    >>> layer(np.array([[1, 1]], np.float32))
    array([[ 3.,  7., 11.]], dtype=float32)
    """

    weight: Float32
    bias: Float32 | None = None

    def __post_init__(self) -> None:
        _check.set_weight(self, "weight", ("out", "in"))
        _check.set_weight(self, "bias", ("out",), optional=True)
        if self.bias is not None and len(self.bias) != len(self.weight):
            raise ShapeError(f"bias of Linear must have shape {self.weight.shape[:1]}, got {self.bias.shape}")

    @property
    def n_in(self) -> int:
        return self.weight.shape[1]

    @property
    def n_out(self) -> int:
        return self.weight.shape[0]

    @cached_property
    def packed(self) -> Packed:
        """The weight as products read it, packed at the first call and kept."""
        return pack_weight(self.weight.T)

    def rows(self, start: int, stop: int) -> Linear:
        """The part that makes outputs ``start:stop``, as a view."""
        return Linear(self.weight[start:stop], None if self.bias is None else self.bias[start:stop])

    def __call__(
        self, x: Given, *, activation: str | None = None, add: Given = None, n_threads: int | None = None
    ) -> Float32:
        """``activation(x weight^T + bias) + add``.

        Parameters
        ----------
        x : array (..., in)
        activation : {"relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "tanh", "sigmoid"}, optional
            Applied before the product leaves the cache.
        add : array (..., out), optional
            Added last: a residual.
        n_threads : int, optional

        Returns
        -------
        float32 array (..., out)

        Raises
        ------
        ShapeError, DTypeError, ArgumentError
            Before any work.
        """
        check_activation(activation)
        x = _check.features("Linear", x, self.n_in)
        shape = (*x.shape[:-1], self.n_out)
        add = _check.residual("Linear", add, shape)
        out = aligned(shape)
        self.into(x.reshape(-1, self.n_in), out.reshape(-1, self.n_out), activation, _threads.resolve(n_threads))
        if add is not None:
            _compute.add(add.reshape(-1, self.n_out), out.reshape(-1, self.n_out), _threads.resolve(n_threads))
        return out

    def into(self, x: Float32, out: Float32, activation: str | None, n_threads: int) -> None:
        """``activation(x weight^T + bias)`` of rows (rows, in) into (rows, out); nothing is checked."""
        _compute.multiply(x, self.packed, self.bias, activation, out, n_threads)


@dataclass(frozen=True, eq=False)
class LayerNorm:
    """Features with mean 0 and variance 1, times weight plus bias (Ba, Kiros, Hinton 2016, arXiv 1607.06450).

    Parameters
    ----------
    weight : array (width,)
    bias : array (width,), optional
    epsilon : float
        Added to the variance: 1e-5 in PyTorch, 1e-12 in BERT.

    Examples
    --------
    >>> import numpy as np
    >>> LayerNorm(np.ones(2, np.float32))(np.array([[1, 3]], np.float32)).round(3)
    array([[-1.,  1.]], dtype=float32)
    """

    weight: Float32
    bias: Float32 | None = None
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        _check.set_weight(self, "weight", ("width",))
        _check.set_weight(self, "bias", ("width",), optional=True)
        if self.bias is not None and self.bias.shape != self.weight.shape:
            raise ShapeError(f"bias of LayerNorm must have shape {self.weight.shape}, got {self.bias.shape}")
        object.__setattr__(self, "epsilon", _check.positive("LayerNorm", "epsilon", self.epsilon))

    def __call__(self, x: Given, *, add: Given = None, n_threads: int | None = None) -> Float32:
        """x (..., width) to the same shape; ``add`` of that shape is added to x first: a residual."""
        return _normalised(
            self, lambda rows, out: norm.layer_norm(rows, self.weight, self.bias, self.epsilon, out), x, add, n_threads
        )


@dataclass(frozen=True, eq=False)
class RMSNorm:
    """Features with mean square 1, times weight (Zhang and Sennrich 2019, arXiv 1910.07467).

    Parameters
    ----------
    weight : array (width,)
    epsilon : float
        Added to the mean square.

    Examples
    --------
    >>> import numpy as np
    >>> RMSNorm(np.ones(2, np.float32))(np.array([[3, 3]], np.float32)).round(3)
    array([[1., 1.]], dtype=float32)
    """

    weight: Float32
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        _check.set_weight(self, "weight", ("width",))
        object.__setattr__(self, "epsilon", _check.positive("RMSNorm", "epsilon", self.epsilon))

    def __call__(self, x: Given, *, add: Given = None, n_threads: int | None = None) -> Float32:
        """x (..., width) to the same shape; ``add`` of that shape is added to x first: a residual."""
        return _normalised(
            self, lambda rows, out: norm.rms_norm(rows, self.weight, self.epsilon, out), x, add, n_threads
        )


Norm = LayerNorm | RMSNorm


def _normalised(layer: Norm, function: _compute.Normalise, x: Given, add: Given, n_threads: int | None) -> Float32:
    kind, width = type(layer).__name__, len(layer.weight)
    x = _check.features(kind, x, width)
    add = _check.residual(kind, add, x.shape)
    out = np.empty(x.shape, np.float32)
    rows, residual = x.reshape(-1, width), None if add is None else add.reshape(-1, width)
    _compute.normalise(function, rows, residual, out.reshape(-1, width), _threads.resolve(n_threads))
    return out


@dataclass(frozen=True, eq=False)
class Embedding:
    """Rows of a table by number.

    Parameters
    ----------
    weight : array (rows, width)

    Examples
    --------
    >>> import numpy as np
    >>> Embedding(np.array([[0, 1], [2, 3]], np.float32))([[1, 0, 1]])
    array([[[2., 3.],
            [0., 1.],
            [2., 3.]]], dtype=float32)
    """

    weight: Float32

    def __post_init__(self) -> None:
        _check.set_weight(self, "weight", ("rows", "width"))

    def __call__(self, ids: Given) -> Float32:
        """ids (...) of whole numbers to (..., width)."""
        ids = np.asarray(ids)
        if ids.dtype.kind not in "iu":
            raise DTypeError(f"ids of Embedding must be whole numbers, got {ids.dtype}")
        if ids.size and (ids.min() < 0 or ids.max() >= len(self.weight)):
            raise ArgumentError(
                f"ids of Embedding must be from 0 to {len(self.weight) - 1}, got {ids.min()} to {ids.max()}"
            )
        return self.weight[ids]


@dataclass(frozen=True, eq=False)
class FeedForward:
    """``down(activation(up(x)))``; with a gate ``down(activation(gate(x)) * up(x))`` (SwiGLU, GEGLU).

    Worked in blocks of rows, so the hidden features of all tokens never exist at once.

    Parameters
    ----------
    up : Linear
        (hidden, width)
    down : Linear
        (width, hidden)
    gate : Linear, optional
        (hidden, width); Shazeer 2020, arXiv 2002.05202: "silu" makes SwiGLU, "gelu" GEGLU.
    activation : {"gelu", "gelu_tanh", "quick_gelu", "relu", "silu", "tanh", "sigmoid"}

    Examples
    --------
    >>> import numpy as np
    >>> up, down = Linear(np.eye(3, 2)), Linear(np.ones((2, 3)))
    >>> layer = FeedForward(up, down, activation="relu")
    >>> layer(np.array([[5, -1]], np.float32))
    array([[5., 5.]], dtype=float32)
    """

    up: Linear
    down: Linear
    gate: Linear | None = None
    activation: str = "gelu"

    def __post_init__(self) -> None:
        check_activation(self.activation)
        if self.down.n_in != self.up.n_out:
            raise ShapeError(
                f"down of FeedForward must take the {self.up.n_out} features that up makes, got {self.down.n_in}"
            )
        if self.gate is not None and self.gate.weight.shape != self.up.weight.shape:
            raise ShapeError(
                f"gate and up of FeedForward must have one shape, got {self.gate.weight.shape} "
                f"and {self.up.weight.shape}"
            )

    def __call__(self, x: Given, *, add: Given = None, n_threads: int | None = None) -> Float32:
        """x (..., width) to the same shape; ``add`` of that shape is added last, as a residual."""
        x = _check.features("FeedForward", x, self.up.n_in)
        shape = (*x.shape[:-1], self.down.n_out)
        add = _check.residual("FeedForward", add, shape)
        threads = _threads.resolve(n_threads)
        out = np.empty(shape, np.float32)
        rows, result = x.reshape(-1, self.up.n_in), out.reshape(-1, self.down.n_out)
        scratch = np.empty((2 if self.gate else 1, min(BLOCK, len(rows)), self.up.n_out), np.float32)
        for i in range(0, len(rows), BLOCK):
            self._block(rows[i : i + BLOCK], scratch[:, : len(rows) - i], result[i : i + BLOCK], threads)
        if add is not None:
            _compute.add(add.reshape(result.shape), result, threads)
        return out

    def _block(self, x: Float32, scratch: Float32, out: Float32, n_threads: int) -> None:
        """A block of rows (rows, width); the hidden features go through ``scratch`` (1 or 2, rows, hidden)."""
        hidden = scratch[0]
        if self.gate is None:
            self.up.into(x, hidden, self.activation, n_threads)
        else:
            self.gate.into(x, hidden, self.activation, n_threads)
            self.up.into(x, scratch[1], None, n_threads)
            _compute.times(scratch[1], hidden, n_threads)
        self.down.into(hidden, out, None, n_threads)
