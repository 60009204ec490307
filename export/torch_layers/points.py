"""Where centroids start and what they gather from, on tensors: the twins of `pyclattn.functional.points`."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pyclattn.functional import _check
from pyclattn.functional.centroid import pool_counts
from pyclattn_export.torch_layers.operators import Result, operator

# Distances held at once by nearest_neighbors: 16 MB of float32.
PAIRS = 1 << 22


@operator(
    "points", "key_padding_mask",
    result=lambda points, n_centroids, **_: Result((points.shape[0], n_centroids), torch.int64),
)  # fmt: skip
@torch.no_grad()
def farthest_point_sampling(points: Tensor, n_centroids: int, key_padding_mask: Tensor | None = None) -> Tensor:
    """As `pyclattn.farthest_point_sampling`: positions (B, M) among points (B, N, P), -1 where none is left."""
    _check.n_centroids(n_centroids, points.shape[1])
    distance = torch.full_like(points[..., 0], torch.inf)
    if key_padding_mask is not None:
        distance = distance.masked_fill(key_padding_mask, -torch.inf)
    rows, found = torch.arange(len(points), device=points.device), []
    for _ in range(n_centroids):
        farthest, position = distance.max(-1)
        found.append(torch.where(farthest > -torch.inf, position, -1))
        distance = torch.minimum(distance, _distances(points, points[rows, position][:, None]))
        distance[rows, position] = -torch.inf
    return torch.stack(found, 1)


@operator(
    "queries", "points", "key_padding_mask",
    result=lambda queries, n_neighbors, **_: Result((*queries.shape[:2], n_neighbors), torch.int64),
)  # fmt: skip
@torch.no_grad()
def nearest_neighbors(
    queries: Tensor, points: Tensor, n_neighbors: int, key_padding_mask: Tensor | None = None
) -> Tensor:
    """As `pyclattn.nearest_neighbors`: positions (B, M, K) among points (B, N, P), -1 where there are not enough."""
    found, step = [], max(1, PAIRS // max(1, points.shape[0] * points.shape[1]))
    for part in queries.split(step, 1):
        distance = _distances(part[:, :, None], points[:, None])
        if key_padding_mask is not None:
            distance = distance.masked_fill(key_padding_mask[:, None], torch.inf)
        nearest, positions = (x[..., :n_neighbors] for x in distance.sort(dim=-1, stable=True))
        found.append(torch.where(nearest < torch.inf, positions, -1))
    return torch.cat(found, 1)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared, summed in the order of the coordinates: to the bit what pyclattn compares."""
    total = (a[..., 0] - b[..., 0]).square()
    for i in range(1, a.shape[-1]):
        total = total + (a[..., i] - b[..., i]).square()
    return total


@operator(
    "tokens", "key_padding_mask",
    result=lambda tokens, n_centroids, **_: Result((tokens.shape[0], n_centroids), torch.int64),
)  # fmt: skip
@torch.no_grad()
def random_positions(tokens: Tensor, n_centroids: int, seed: int = 0, key_padding_mask: Tensor | None = None) -> Tensor:
    """As `pyclattn.functional.centroid.random_positions`: (B, M) among tokens (B, N, width), -1 where none is left."""
    _check.n_centroids(n_centroids, tokens.shape[1])
    drawn = torch.from_numpy(np.random.default_rng(seed).permutation(tokens.shape[1])).to(tokens.device)
    if key_padding_mask is None:
        return drawn[:n_centroids].expand(len(tokens), -1)
    is_padded, order = key_padding_mask[:, drawn].sort(dim=1, stable=True)
    return torch.where(is_padded, -1, drawn[order])[:, :n_centroids]


@operator(
    "tokens", "key_padding_mask",
    result=lambda tokens, n_centroids, **_: Result((tokens.shape[0], n_centroids, tokens.shape[2]), tokens.dtype),
)  # fmt: skip
def mean_pool_tokens(
    tokens: Tensor, n_centroids: int, *, grid: tuple[int, int] | None = None, key_padding_mask: Tensor | None = None
) -> Tensor:
    """As `pyclattn.mean_pool_tokens`: (B, N, width) to (B, M, width)."""
    _check.n_centroids(n_centroids, tokens.shape[1])
    pool_counts(None, tokens.shape[1], n_centroids, grid)  # refuses a grid that does not fit
    if key_padding_mask is not None:
        tokens = tokens.masked_fill(key_padding_mask[..., None], 0)
    counts = _in_pools(_present(tokens, key_padding_mask), n_centroids, grid)
    return _in_pools(tokens, n_centroids, grid) / counts.clamp_min(1)


def empty_pools(key_padding_mask: Tensor | None, n_centroids: int, grid: tuple[int, int] | None) -> Tensor | None:
    """Which groups of `mean_pool_tokens` hold nothing but padding: (B, M)."""
    if key_padding_mask is None:
        return None
    return mean_pool_tokens((~key_padding_mask)[..., None].float(), n_centroids, grid=grid)[..., 0] == 0


def _present(tokens: Tensor, key_padding_mask: Tensor | None) -> Tensor:
    """1 for a token, 0 for padding: (B or 1, N, 1)."""
    if key_padding_mask is None:
        return torch.ones_like(tokens[:1, :, :1])
    return (~key_padding_mask)[..., None].to(tokens.dtype)


def _in_pools(x: Tensor, n_centroids: int, grid: tuple[int, int] | None) -> Tensor:
    """Sums over the groups."""
    length = x.shape[1]
    if grid is not None:
        side = math.isqrt(length // n_centroids)
        squares = x.unflatten(1, (grid[0] // side, side, grid[1] // side, side))
        return squares.sum((2, 4)).flatten(1, 2)
    starts = torch.arange(n_centroids, device=x.device) * length // n_centroids
    group = torch.bucketize(torch.arange(length, device=x.device), starts, right=True) - 1
    return x.new_zeros(len(x), n_centroids, x.shape[2]).index_add(1, group, x)
