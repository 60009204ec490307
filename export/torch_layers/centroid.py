"""Centroid attention (Wu, Liu, Liu 2021, arXiv 2102.08606), to be trained.

Symbols: batch B, heads H, inputs N, centroids M, neighbours of a centroid K, features of a head D.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from pyclattn_export.torch_layers import points


def centroid_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    normalize: str = "centroids",
    neighbors: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    centroid_padding_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """One step of centroids towards the inputs that are theirs: `pyclattn.centroid_attention`.

    Parameters
    ----------
    query : Tensor (B, H, M, D)
        Of the centroids.
    key, value : Tensor (B, H, N, D), (B, H, N, E)
        Of the inputs.
    normalize, neighbors, key_padding_mask, centroid_padding_mask, scale
        As of `pyclattn.centroid_attention`.

    Returns
    -------
    Tensor (B, H, M, E)
    """
    query = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    if neighbors is None:
        logits = query @ key.transpose(-1, -2)
    else:
        logits = (query[..., None, :] @ _gathered(key, neighbors).transpose(-1, -2))[..., 0, :]
    if key_padding_mask is not None:
        is_padded = key_padding_mask[:, None]
        if neighbors is not None:
            is_padded = key_padding_mask.gather(1, neighbors.flatten(1)).view_as(neighbors)
        logits = logits.masked_fill(is_padded[:, None], -torch.inf)
    if centroid_padding_mask is not None:
        logits = logits.masked_fill(centroid_padding_mask[:, None, :, None], -torch.inf)
    weights = _weights(logits, normalize, neighbors, key.shape[2])
    if neighbors is None:
        return weights @ value
    return (weights[..., None, :] @ _gathered(value, neighbors))[..., 0, :]


def _weights(logits: Tensor, normalize: str, neighbors: Tensor | None, n_inputs: int) -> Tensor:
    """Normalised logits (B, H, M, N), or (B, H, M, K) of neighbours; minus infinity is no pair and weighs 0."""
    if normalize == "inputs":
        return _shares(logits, lambda x: x.amax(-1, keepdim=True), lambda x: x.sum(-1, keepdim=True))
    if neighbors is None:
        shares = _shares(logits, lambda x: x.amax(-2, keepdim=True), lambda x: x.sum(-2, keepdim=True))
    else:
        # over the centroids that hold an input: what its pairs add up to, scattered to the input and read back
        index = neighbors.flatten(1)[:, None].expand(-1, logits.shape[1], -1)

        def over_centroids(x: Tensor, reduce: str, start: float) -> Tensor:
            found = x.new_full((*x.shape[:2], n_inputs), start)
            return found.scatter_reduce(2, index, x.flatten(2), reduce).gather(2, index).view_as(x)

        shares = _shares(
            logits, lambda x: over_centroids(x, "amax", -torch.inf), lambda x: over_centroids(x, "sum", 0.0)
        )
    if normalize == "centroids":
        return shares
    mass = shares.sum(-1, keepdim=True)
    return shares / torch.where(mass > 0, mass, 1)


def _shares(logits: Tensor, highest, total) -> Tensor:
    """A softmax over whatever `highest` and `total` go over; zeros where that holds no pair."""
    top = highest(logits.detach())
    weights = torch.exp(logits - torch.where(torch.isfinite(top), top, 0))
    mass = total(weights)
    return weights / torch.where(mass > 0, mass, 1)


def _gathered(x: Tensor, neighbors: Tensor) -> Tensor:
    """(B, H, N, F) at (B, M, K) as (B, H, M, K, F)."""
    index = neighbors.flatten(1)[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[-1])
    return x.gather(2, index).unflatten(2, tuple(neighbors.shape[1:]))


class CentroidAttention(nn.Module):
    """The twin of `pyclattn.layers.CentroidAttention`: N tokens into M centroids.

    Parameters
    ----------
    dim : int
        Width of the tokens.
    n_heads : int
        A divisor of ``dim``.
    n_centroids : int
        M.
    init, normalize, n_steps, eps, n_neighbors, grid, has_class_token, seed, scale
        As of `pyclattn.layers.CentroidAttention`.
    bias : bool
        Whether the projections have one.

    Examples
    --------
    >>> import torch
    >>> layer = CentroidAttention(32, n_heads=4, n_centroids=10, n_neighbors=16)
    >>> layer(torch.randn(2, 200, 32), torch.randn(2, 200, 3)).shape
    torch.Size([2, 10, 32])
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        n_centroids: int,
        *,
        init: str = "farthest",
        normalize: str = "centroids",
        n_steps: int = 1,
        eps: float = 1.0,
        n_neighbors: int | None = None,
        grid: tuple[int, int] | None = None,
        has_class_token: bool = False,
        seed: int = 0,
        scale: float | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.n_heads, self.n_centroids, self.n_steps, self.eps = n_heads, n_centroids, n_steps, eps
        self.init, self.n_neighbors, self.grid, self.seed = init, n_neighbors, grid, seed
        self.has_class_token, self.normalize, self.scale = has_class_token, normalize, scale
        self.query_proj, self.key_proj, self.value_proj, self.out_proj = (
            nn.Linear(dim, dim, bias=bias) for _ in range(4)
        )

    def forward(
        self,
        x: Tensor,
        coordinates: Tensor | None = None,
        *,
        centroids: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Tokens (B, N, dim), their coordinates (B, N, axes) where ``init`` or neighbours need them, to (B, M, dim)."""
        found, neighbors, missing = self.start(x, coordinates, centroids, key_padding_mask)
        key, value = self._heads(self.key_proj(x)), self._heads(self.value_proj(x))
        for _ in range(self.n_steps):
            step = centroid_attention(
                self._heads(self.query_proj(found)), key, value, normalize=self.normalize, neighbors=neighbors,
                key_padding_mask=key_padding_mask, centroid_padding_mask=missing, scale=self.scale,
            )  # fmt: skip
            found = found + self.eps * self.out_proj(step.transpose(1, 2).flatten(2))
        return found if missing is None else found.masked_fill(missing[..., None], 0)

    def start(
        self, x: Tensor, coordinates: Tensor | None, centroids: Tensor | None, key_padding_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Centroids (B, M, dim), their neighbours (B, M, K), and which of them there are no tokens for (B, M)."""
        if self.init == "given":
            return centroids, None, None
        if self.init == "mean_pool":
            first = int(self.has_class_token)
            pooled = points.mean_pool_tokens(x[:, first:], self.n_centroids, grid=self.grid)
            return torch.cat([x[:, :first], pooled], 1), None, None
        if self.init == "random":
            order = torch.from_numpy(np.random.default_rng(self.seed).permutation(x.shape[1])).to(x.device)
            index = order[: self.n_centroids].expand(len(x), -1)
        else:
            index = points.farthest_point_sampling(coordinates, self.n_centroids, key_padding_mask)
        missing = None if key_padding_mask is None else index < 0
        index = index.clamp_min(0)
        neighbors = None
        if self.n_neighbors is not None:
            chosen = coordinates.gather(1, index[..., None].expand(-1, -1, coordinates.shape[-1]))
            neighbors = points.nearest_neighbors(chosen, coordinates, self.n_neighbors, key_padding_mask)
        return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1])), neighbors, missing

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
