"""Where centroids start and what they gather from, on tensors: the twins of `pyclattn.functional.points`."""

from __future__ import annotations

import torch
from torch import Tensor

# Distances held at once by nearest_neighbors: 16 MB of float32.
PAIRS = 1 << 22


@torch.no_grad()
def farthest_point_sampling(points: Tensor, n_samples: int, key_padding_mask: Tensor | None = None) -> Tensor:
    """Indices (B, M) of the first valid point (B, N, dim) and of those farthest from all chosen before; -1 beyond the
    valid ones. Ties go to the lowest index."""
    batch, n_points, _ = points.shape
    distance = points.new_full((batch, n_points), torch.inf)
    if key_padding_mask is not None:
        distance = distance.masked_fill(key_padding_mask, -torch.inf)
    rows, found = torch.arange(batch, device=points.device), []
    for _ in range(n_samples):
        farthest, index = distance.max(-1)
        found.append(torch.where(farthest > -torch.inf, index, -1))
        step = (points - points[rows, index][:, None]).square().sum(-1)
        distance = torch.minimum(distance, step)
        distance[rows, index] = -torch.inf
    return torch.stack(found, 1)


@torch.no_grad()
def nearest_neighbors(
    queries: Tensor, points: Tensor, n_neighbors: int, key_padding_mask: Tensor | None = None
) -> Tensor:
    """Indices (B, M, K) of the points (B, N, dim) nearest to each query (B, M, dim), nearest first, ties to the lowest
    index."""
    found, step = [], max(1, PAIRS // max(1, points.shape[0] * points.shape[1]))
    for part in queries.split(step, 1):
        distance = sum(
            (part[..., i, None] - points[:, None, :, i]).square() for i in range(points.shape[-1])
        )  # cdist would take differences of large numbers
        if key_padding_mask is not None:
            distance = distance.masked_fill(key_padding_mask[:, None], torch.inf)
        found.append(distance.sort(dim=-1, stable=True).indices[..., :n_neighbors])
    return torch.cat(found, 1)


def mean_pool_tokens(x: Tensor, n_centroids: int, *, grid: tuple[int, int] | None = None) -> Tensor:
    """Means (B, M, width) of N / M neighbours among tokens (B, N, width), squares of patches where a grid is given."""
    batch, length, width = x.shape
    if grid is None:
        return torch.stack([part.mean(1) for part in x.tensor_split(n_centroids, 1)], 1)
    side = round((length / n_centroids) ** 0.5)
    squares = x.view(batch, grid[0] // side, side, grid[1] // side, side, width)
    return squares.mean((2, 4)).flatten(1, 2)
