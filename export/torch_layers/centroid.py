"""Centroid attention (Wu, Liu, Liu 2021, arXiv 2102.08606), to be trained.

Symbols: batch B, heads H, inputs N, centroids M, neighbours of a centroid K, features of a head D.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyclattn.errors import ArgumentError, ShapeError
from pyclattn.functional._check import one_of
from pyclattn.functional.centroid import NORMALIZATIONS
from pyclattn.layers.centroid import STARTS
from pyclattn_export.torch_layers import points
from pyclattn_export.torch_layers.attention import width_of_head
from pyclattn_export.torch_layers.operators import Result, operator


@operator(
    "query", "key", "value", "neighbors", "key_padding_mask", "centroid_padding_mask",
    result=lambda query, value, **_: Result((*query.shape[:-1], value.shape[-1]), value.dtype),
)  # fmt: skip
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

    Raises
    ------
    ArgumentError, ShapeError
        For an unknown word, and where there are more centroids than inputs.
    """
    one_of("normalize", normalize, NORMALIZATIONS)
    if query.shape[2] > key.shape[2]:
        raise ShapeError(
            f"query must have at most as many centroids as there are inputs, got {query.shape[2]} > {key.shape[2]}"
        )
    query = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    near = None if neighbors is None else neighbors.clamp_min(0)
    if near is None:
        logits = query @ key.transpose(-1, -2)
    else:
        logits = (query[..., None, :] @ _gathered(key, near).transpose(-1, -2))[..., 0, :]
    for is_absent in _absent(neighbors, key_padding_mask, centroid_padding_mask):
        logits = logits.masked_fill(is_absent[:, None], -torch.inf)
    weights = _weights(logits, normalize, near, key.shape[2])
    if near is None:
        return weights @ value
    return (weights[..., None, :] @ _gathered(value, near))[..., 0, :]


def _absent(neighbors: Tensor | None, inputs: Tensor | None, centroids: Tensor | None) -> list[Tensor]:
    """What keeps pairs (B, M, N or K) apart: no such neighbour, padding of either side."""
    found = [] if neighbors is None else [neighbors < 0]
    if inputs is not None:
        found.append(inputs[:, None] if neighbors is None else _at(inputs, neighbors.clamp_min(0)))
    return found if centroids is None else [*found, centroids[..., None]]


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


def _shares(logits: Tensor, highest: Callable, total: Callable) -> Tensor:
    """A softmax over whatever `highest` and `total` go over; zeros where that holds no pair."""
    top = highest(logits.detach())
    weights = torch.exp(logits - torch.where(torch.isfinite(top), top, 0))
    mass = total(weights)
    return weights / torch.where(mass > 0, mass, 1)


def _gathered(x: Tensor, neighbors: Tensor) -> Tensor:
    """(B, H, N, F) at (B, M, K) as (B, H, M, K, F)."""
    index = neighbors.flatten(1)[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[-1])
    return x.gather(2, index).unflatten(2, tuple(neighbors.shape[1:]))


def _at(x: Tensor, positions: Tensor) -> Tensor:
    """(B, N) at (B, M, K)."""
    return x.gather(1, positions.flatten(1)).view_as(positions)


def _rows(x: Tensor, positions: Tensor) -> Tensor:
    """(B, N, F) at (B, M)."""
    return x.gather(1, positions[..., None].expand(-1, -1, x.shape[-1]))


class Centroids(NamedTuple):
    """Where centroids start: `pyclattn.layers.centroid.Centroids`, as tensors.

    Attributes
    ----------
    tokens : Tensor (B, M, dim)
    padding_mask : Tensor (B, M), optional
    indices : Tensor (B, M), optional
    neighbors : Tensor (B, M, K), optional
    """

    tokens: Tensor
    padding_mask: Tensor | None = None
    indices: Tensor | None = None
    neighbors: Tensor | None = None


class CentroidAttention(nn.Module):
    """The twin of `pyclattn.layers.CentroidAttention`: N tokens into M centroids.

    Parameters
    ----------
    dim : int
        Width of the tokens.
    n_heads : int
        A divisor of ``dim``.
    n_centroids, init, normalize, n_steps, eps, n_neighbors, grid, has_class_token, seed, scale
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
        width_of_head(dim, n_heads)
        self.init, self.normalize = one_of("init", init, STARTS), one_of("normalize", normalize, NORMALIZATIONS)
        self.n_neighbors, self.grid, self.seed = n_neighbors, grid, seed
        self.has_class_token, self.scale = has_class_token, scale
        self.query_proj, self.key_proj, self.value_proj, self.out_proj = (
            nn.Linear(dim, dim, bias=bias) for _ in range(4)
        )

    def forward(
        self,
        x: Tensor,
        coordinates: Tensor | None = None,
        *,
        start: Centroids | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Tokens (B, N, dim), with coordinates (B, N, P) where the start or neighbours need them, to (B, M, dim)."""
        start = self.begin(x, coordinates, key_padding_mask=key_padding_mask) if start is None else start
        found, absent = start.tokens, start.padding_mask
        key, value = self._heads(self.key_proj(x)), self._heads(self.value_proj(x))
        for _ in range(self.n_steps):
            gathered = centroid_attention(
                self._heads(self.query_proj(found)), key, value, normalize=self.normalize, neighbors=start.neighbors,
                key_padding_mask=key_padding_mask, centroid_padding_mask=absent, scale=self.scale,
            )  # fmt: skip
            found = found + self.eps * self.out_proj(gathered.transpose(1, 2).flatten(2))
        return found if absent is None else found.masked_fill(absent[..., None], 0)

    def begin(
        self, x: Tensor, coordinates: Tensor | None = None, *, key_padding_mask: Tensor | None = None
    ) -> Centroids:
        """Where the centroids of these tokens start, with their padding mask for the layers that follow."""
        if self.init == "given":
            raise ArgumentError("init='given' needs start=Centroids(...) in the call")
        if coordinates is None and (self.init == "farthest" or self.n_neighbors is not None):
            raise ArgumentError(f"init={self.init!r} with n_neighbors={self.n_neighbors} needs coordinates, got None")
        first = int(self.has_class_token)
        body, padding = x[:, first:], None if key_padding_mask is None else key_padding_mask[:, first:]
        if self.init == "mean_pool":
            tokens = points.mean_pool_tokens(body, self.n_centroids, grid=self.grid, key_padding_mask=padding)
            start = Centroids(tokens, points.empty_pools(padding, self.n_centroids, self.grid))
        elif self.init == "random":
            start = self._at_tokens(
                points.random_positions(body, self.n_centroids, self.seed, padding), body, coordinates, padding
            )
        else:
            found = points.farthest_point_sampling(coordinates, self.n_centroids, padding)
            start = self._at_tokens(found, body, coordinates, padding)
        return _with_class_token(start, x, key_padding_mask) if self.has_class_token else start

    def _at_tokens(self, indices: Tensor, x: Tensor, coordinates: Tensor | None, padding: Tensor | None) -> Centroids:
        """Centroids that start from single tokens."""
        absent, at, neighbors = None if padding is None else indices < 0, indices.clamp_min(0), None
        tokens = _rows(x, at)
        if self.n_neighbors is not None:
            centers = _rows(coordinates, at)
            if absent is not None:  # what stands in padding may be anything
                centers = centers.masked_fill(absent[..., None], 0)
            neighbors = points.nearest_neighbors(centers, coordinates, self.n_neighbors, padding)
        if absent is not None:
            tokens = tokens.masked_fill(absent[..., None], 0)
        return Centroids(tokens, absent, indices, neighbors)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)


def _with_class_token(start: Centroids, x: Tensor, padding: Tensor | None) -> Centroids:
    """Token 0 stands before the others."""
    tokens, absent, indices = torch.cat([x[:, :1], start.tokens], 1), start.padding_mask, start.indices
    if absent is not None and padding is not None:
        absent = torch.cat([padding[:, :1], absent], 1)
        tokens = tokens.masked_fill(absent[..., None], 0)
    if indices is not None:
        indices = torch.cat([torch.zeros_like(indices[:, :1]), torch.where(indices < 0, -1, indices + 1)], 1)
    return Centroids(tokens, absent, indices)
