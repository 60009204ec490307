"""EncoderLayer and Encoder: attention and feed-forward with their residuals, post-norm or pre-norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyclattn import _threads
from pyclattn.arrays import Float32, Given
from pyclattn.layers.attention import Method, MultiHeadAttention
from pyclattn.layers.basic import FeedForward, Norm
from pyclattn.layers.cast import CASTAttention
from pyclattn.plan import Plan


@dataclass(frozen=True, eq=False)
class EncoderLayer:
    """One layer of an encoder.

    Post-norm (BERT): ``x = norm(x + attention(x)); x = norm(x + feed_forward(x))``.
    Pre-norm (ViT): ``x = x + attention(norm(x)); x = x + feed_forward(norm(x))``.

    Parameters
    ----------
    attention : MultiHeadAttention, ClusteredAttention or CASTAttention
    feed_forward : FeedForward
    attention_norm, feed_forward_norm : LayerNorm or RMSNorm
    is_pre_norm : bool

    Examples
    --------
    >>> import numpy as np
    >>> from pyclattn.layers import FeedForward, LayerNorm, Linear
    >>> rng = np.random.default_rng(0)
    >>> def linear(n_out, n_in):
    ...     return Linear(rng.standard_normal((n_out, n_in), dtype=np.float32) / n_in**0.5, np.zeros(n_out))
    >>> layer = EncoderLayer(
    ...     MultiHeadAttention(n_heads=2, qkv=linear(24, 8), out=linear(8, 8)),
    ...     FeedForward(linear(32, 8), linear(8, 32)),
    ...     LayerNorm(np.ones(8)),
    ...     LayerNorm(np.ones(8)),
    ... )
    >>> layer(rng.standard_normal((1, 5, 8), dtype=np.float32)).shape
    (1, 5, 8)
    """

    attention: MultiHeadAttention | CASTAttention
    feed_forward: FeedForward
    attention_norm: Norm
    feed_forward_norm: Norm
    is_pre_norm: bool = False

    def __call__(self, x: Given, *, n_threads: int | None = None, **how: Any) -> Float32:
        """x (B, L, width), or (T, width) with ``offsets``, to the same shape.

        Parameters
        ----------
        x : array
        n_threads : int, optional
        **how
            Masks, offsets, angles and ``attention``, as the layer's attention takes them.
        """
        n = _threads.resolve(n_threads)
        if self.is_pre_norm:
            x = self.attention(self.attention_norm(x, n_threads=n), add=x, n_threads=n, **how)
            return self.feed_forward(self.feed_forward_norm(x, n_threads=n), add=x, n_threads=n)
        x = self.attention_norm(self.attention(x, n_threads=n, **how), add=x, n_threads=n)
        return self.feed_forward_norm(self.feed_forward(x, n_threads=n), add=x, n_threads=n)


@dataclass(frozen=True, eq=False)
class Encoder:
    """Layers one after the other, and a last norm where the model has one.

    Parameters
    ----------
    layers : tuple of EncoderLayer
        The same layer may stand at several places (ALBERT).
    norm : LayerNorm or RMSNorm, optional

    Examples
    --------
    >>> import numpy as np
    >>> from pyclattn.layers import LayerNorm
    >>> encoder = Encoder((), LayerNorm(np.ones(2)))
    >>> encoder(np.array([[[1, 3]]], np.float32)).round(3)
    array([[[-1.,  1.]]], dtype=float32)
    """

    layers: tuple[EncoderLayer, ...]
    norm: Norm | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))

    @property
    def attentions(self) -> list[str]:
        """Names a Plan can name, one a layer that has a name: CAST's own clusters give way to no other method."""
        return [layer.attention.name for layer in self.layers if isinstance(layer.attention, MultiHeadAttention)]

    def __call__(
        self, x: Given, *, attention: Method | None = None, n_threads: int | None = None, **how: Any
    ) -> Float32:
        """x (B, L, width), or (T, width) with ``offsets``, to the same shape.

        Parameters
        ----------
        x : array
        attention : str, mapping or Plan, optional
            As `pyclattn.load` takes it, with the names in `attentions`; what each layer says by default.
        n_threads : int, optional
        **how
            Masks, offsets and angles, as of `MultiHeadAttention`.

        Raises
        ------
        ArgumentError
            For a name that is not among `attentions`.
        """
        n, plan = _threads.resolve(n_threads), attention if attention is None else Plan.of(attention, self.attentions)
        for layer in self.layers:
            method = {"attention": plan} if isinstance(layer.attention, MultiHeadAttention) else {}
            x = layer(x, n_threads=n, **method, **how)
        return x if self.norm is None else self.norm(x, n_threads=n)
