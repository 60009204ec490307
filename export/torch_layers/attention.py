"""Exact multi-head attention, to be trained: what the other twins are measured against, and may be swapped with."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from pyclattn.errors import ArgumentError


def width_of_head(dim: int, n_heads: int) -> int:
    if n_heads < 1 or dim % n_heads:
        raise ArgumentError(f"n_heads must be a divisor of dim = {dim}, got {n_heads}")
    return dim // n_heads


class MultiHeadAttention(nn.Module):
    """The twin of `pyclattn.layers.MultiHeadAttention`, of tokens to themselves.

    Parameters
    ----------
    dim : int
        Width of the tokens.
    n_heads : int
    head_dim, value_dim : int, optional
        Features of a head of queries and keys, and of values; by default ``dim`` is shared out.
    scale : float, optional
        Factor on the logits, 1/sqrt(head_dim) by default.
    bias : bool
        Whether the projections have one.

    Examples
    --------
    >>> import torch
    >>> MultiHeadAttention(32, n_heads=4)(torch.randn(2, 100, 32)).shape
    torch.Size([2, 100, 32])
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        *,
        head_dim: int | None = None,
        value_dim: int | None = None,
        scale: float | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        head_dim, value_dim = head_dim or width_of_head(dim, n_heads), value_dim or width_of_head(dim, n_heads)
        self.n_heads, self.scale = n_heads, scale
        self.query, self.key = (nn.Linear(dim, n_heads * head_dim, bias=bias) for _ in range(2))
        self.value = nn.Linear(dim, n_heads * value_dim, bias=bias)
        self.out = nn.Linear(n_heads * value_dim, dim, bias=bias)

    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """Tokens (B, L, dim), and a mask (B, L) that is True at padding, to (B, L, dim)."""
        query, key, value = (
            project(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        return self.out(self.attend(query, key, value, key_padding_mask).transpose(1, 2).flatten(2))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        """Between heads (B, H, L, D)."""
        mask = None if key_padding_mask is None else ~key_padding_mask[:, None, None]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.scale)
