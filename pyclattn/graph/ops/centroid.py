"""Centroid attention and where its centroids start: the public functions, their keyword arguments as attributes.

Inputs are the functions' arrays in the order below; a mask or ``neighbors`` may be left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pyclattn.errors import ShapeError
from pyclattn.functional import centroid, points
from pyclattn.graph.ops.registry import op
from pyclattn.graph.spec import Kernel, Node, Spec, simple


def _calling(
    node: Node, out: Spec, function: Callable[..., Any], needed: int, names: tuple[str, ...], **options: Any
) -> Kernel:
    """A call of ``function`` with ``needed`` arrays, and those of ``names`` that are given."""
    given = {name: i for i, name in enumerate(names, needed) if node.has(i)}
    for i in given.values():
        node.spec(i)  # its shape must be known too

    def run(*ins):
        return function(*ins[:needed], **{name: ins[i] for name, i in given.items()}, **options)

    return simple([out], run)


def _rank(node: Node, i: int, name: str, rank: int) -> tuple[int, ...]:
    shape = node.shape(i)
    if len(shape) != rank:
        raise ShapeError(f"{name} must have rank {rank}, got shape {shape}")
    return shape


@op("pyclattn:centroid_attention")
def _centroid_attention(node: Node) -> Kernel:
    """query (B, H, M, D), key, value, neighbors, key_padding_mask, centroid_padding_mask."""
    shapes = [_rank(node, i, name, 4) for i, name in enumerate(("query", "key", "value"))]
    kernel = _calling(
        node, Spec((*shapes[0][:3], shapes[2][3]), node.dtype(0)), centroid.centroid_attention, 3,
        ("neighbors", "key_padding_mask", "centroid_padding_mask"), normalize=node.attr("normalize", "centroids"),
        scale=node.attr("scale", None), n_threads=node.settings.n_threads,
    )  # fmt: skip
    near = _rank(node, 3, "neighbors", 3)[2] if node.has(3) else None
    kernel.transient += centroid.working_bytes(*shapes, n_neighbors=near, n_threads=node.settings.n_threads)
    return kernel


@op("pyclattn:farthest_point_sampling")
def _farthest_point_sampling(node: Node) -> Kernel:
    """points (B, N, P), key_padding_mask."""
    n_batch, n_points, depth = _rank(node, 0, "points", 3)
    n, threads = node.attr("n_centroids"), node.settings.n_threads
    kernel = _calling(
        node, Spec((n_batch, n), np.int64), points.farthest_point_sampling, 1, ("key_padding_mask",), n_centroids=n,
        n_threads=threads,
    )  # fmt: skip
    kernel.transient += points.working_bytes((n_batch, n_points, depth), n_threads=threads)
    return kernel


@op("pyclattn:nearest_neighbors")
def _nearest_neighbors(node: Node) -> Kernel:
    """queries (B, M, P), points (B, N, P), key_padding_mask. All points, where there are fewer than are asked for."""
    shape, others, threads = _rank(node, 0, "queries", 3), _rank(node, 1, "points", 3), node.settings.n_threads
    k = min(node.attr("n_neighbors"), others[1])
    kernel = _calling(
        node, Spec((*shape[:2], k), np.int64), points.nearest_neighbors, 2, ("key_padding_mask",), n_neighbors=k,
        n_threads=threads,
    )  # fmt: skip
    kernel.transient += points.working_bytes(others, shape[1], k, n_threads=threads)
    return kernel


@op("pyclattn:mean_pool_tokens")
def _mean_pool_tokens(node: Node) -> Kernel:
    """tokens (B, N, width), key_padding_mask."""
    shape, n, grid = _rank(node, 0, "tokens", 3), node.attr("n_centroids"), node.attr("grid", None)
    kernel = _calling(
        node, Spec((shape[0], n, shape[2]), node.dtype(0)), centroid.mean_pool_tokens, 1, ("key_padding_mask",),
        n_centroids=n, grid=None if grid is None else tuple(grid),
    )  # fmt: skip
    kernel.transient += node.spec(0).nbytes * (node.has(1) + (grid is not None))
    return kernel


@op("pyclattn:random_positions")
def _random_positions(node: Node) -> Kernel:
    """tokens (B, N, width), key_padding_mask."""
    n_batch, n_tokens, _ = _rank(node, 0, "tokens", 3)
    n, seed = node.attr("n_centroids"), node.attr("seed", 0)

    def draw(tokens, key_padding_mask=None):
        return np.broadcast_to(centroid.random_positions(n_tokens, n, seed, key_padding_mask), (n_batch, n))

    return _calling(node, Spec((n_batch, n), np.int64), draw, 1, ("key_padding_mask",))
