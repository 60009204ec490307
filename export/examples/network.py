"""What the examples' networks are put together from: one block around any attention, and a head that classifies."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MakeAttention = Callable[[], nn.Module]


class SelfAttention(nn.Module):
    """Exact attention of tokens to themselves, what the other methods are compared with."""

    def __init__(self, dim: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.query_proj, self.key_proj, self.value_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """x (B, N, dim) to the same shape; key_padding_mask (B, N), True where there is padding."""
        heads = (self._cut(project(x)) for project in (self.query_proj, self.key_proj, self.value_proj))
        mask = None if key_padding_mask is None else ~key_padding_mask[:, None, None]
        attended = F.scaled_dot_product_attention(*heads, attn_mask=mask)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def _cut(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)


class Nothing(nn.Module):
    """No attention at all: what a network reaches that looks at its tokens one by one."""

    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x)


class Block(nn.Module):
    """Attention and feed-forward with their residuals, pre-norm."""

    def __init__(self, attention: nn.Module, dim: int, hidden: int):
        super().__init__()
        self.attention = attention
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), key_padding_mask=key_padding_mask)
        return x + self.feed_forward(self.feed_forward_norm(x))


class CentroidBlock(nn.Module):
    """N tokens to M centroids, and the feed-forward after them, pre-norm."""

    def __init__(self, attention: nn.Module, dim: int, hidden: int):
        super().__init__()
        self.attention = attention  # its residual is its own: centroids are moved, not replaced
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor, coordinates: Tensor | None = None) -> Tensor:
        """x (B, N, dim) and coordinates (B, N, axes), where the attention needs them, to (B, M, dim)."""
        x = self.attention(self.attention_norm(x), coordinates)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Classifier(nn.Module):
    """Blocks, the mean over tokens, and a linear layer."""

    def __init__(self, embed: nn.Module, blocks: list[nn.Module], dim: int, n_classes: int):
        super().__init__()
        self.embed, self.blocks = embed, nn.ModuleList(blocks)
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, n_classes)

    def forward(self, inputs: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """What ``embed`` takes, and (B, N) True where there is padding, to logits (B, n_classes)."""
        x = self.embed(inputs)
        for block in self.blocks:
            x = block(x, key_padding_mask)
        return self.head(pooled(self.norm(x), key_padding_mask))


def pooled(x: Tensor, key_padding_mask: Tensor | None) -> Tensor:
    """The mean over tokens that are no padding."""
    if key_padding_mask is None:
        return x.mean(1)
    kept = (~key_padding_mask)[..., None].to(x.dtype)
    return (x * kept).sum(1) / kept.sum(1)


class WithPosition(nn.Module):
    """Embedded tokens and a learned vector for each position."""

    def __init__(self, n_tokens: int, length: int, dim: int):
        super().__init__()
        self.token = nn.Embedding(n_tokens, dim)
        self.position = nn.Parameter(0.02 * torch.randn(length, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.token(tokens) + self.position
