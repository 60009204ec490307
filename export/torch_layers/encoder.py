"""Feed-forward, encoder layer and encoder around any attention of this package, to be trained."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from pyclattn.functional._check import one_of

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh"), "silu": F.silu}
NORMS = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


class FeedForward(nn.Module):
    """The twin of `pyclattn.layers.FeedForward`.

    Parameters
    ----------
    dim, hidden : int
    activation : {"gelu", "gelu_tanh", "relu", "silu"}
    is_gated : bool
        ``down(activation(gate(x)) * up(x))``: with "silu" SwiGLU, with "gelu" GEGLU.
    dropout : float
        In training, of the hidden features.
    bias : bool
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        activation: str = "gelu",
        is_gated: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.activation, self.dropout = ACTIVATIONS[one_of("activation", activation, tuple(ACTIVATIONS))], dropout
        self.up, self.down = nn.Linear(dim, hidden, bias=bias), nn.Linear(hidden, dim, bias=bias)
        self.gate = nn.Linear(dim, hidden, bias=bias) if is_gated else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to the same shape."""
        hidden = self.activation(self.up(x)) if self.gate is None else self.activation(self.gate(x)) * self.up(x)
        return self.down(F.dropout(hidden, self.dropout, self.training))


class EncoderLayer(nn.Module):
    """The twin of `pyclattn.layers.EncoderLayer`.

    Parameters
    ----------
    attention : Module
        `MultiHeadAttention`, `ClusteredAttention` or `CASTAttention`.
    feed_forward : FeedForward
    is_pre_norm : bool
    norm : {"layer", "rms"}
    epsilon : float
    dropout : float
        In training, of what attention and feed-forward give.

    Examples
    --------
    >>> import torch
    >>> from pyclattn_export.torch_layers import CASTAttention
    >>> attention = CASTAttention(32, n_heads=4, n_clusters=8, cluster_size=16)
    >>> EncoderLayer(attention, FeedForward(32, 64), is_pre_norm=True)(torch.randn(2, 100, 32)).shape
    torch.Size([2, 100, 32])
    """

    def __init__(
        self,
        attention: nn.Module,
        feed_forward: FeedForward,
        *,
        is_pre_norm: bool = False,
        norm: str = "layer",
        epsilon: float = 1e-5,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        dim, kind = feed_forward.up.in_features, NORMS[one_of("norm", norm, tuple(NORMS))]
        self.attention, self.feed_forward = attention, feed_forward
        self.attention_norm, self.feed_forward_norm = (kind(dim, eps=epsilon) for _ in range(2))
        self.is_pre_norm, self.dropout = is_pre_norm, nn.Dropout(dropout)

    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """(B, L, dim) to the same shape."""
        if self.is_pre_norm:
            x = x + self.dropout(self.attention(self.attention_norm(x), key_padding_mask))
            return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        x = self.attention_norm(x + self.dropout(self.attention(x, key_padding_mask)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class Encoder(nn.Module):
    """The twin of `pyclattn.layers.Encoder`.

    Parameters
    ----------
    layers : iterable of EncoderLayer
    norm : Module, optional
        A last norm.
    """

    def __init__(self, layers: Iterable[EncoderLayer], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.layers, self.norm = nn.ModuleList(layers), norm

    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """(B, L, dim) to the same shape."""
        for layer in self.layers:
            x = layer(x, key_padding_mask)
        return x if self.norm is None else self.norm(x)
