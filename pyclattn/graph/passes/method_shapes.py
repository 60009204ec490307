"""Shapes of what the operators of CAST, centroid and clustered attention give; see `shape_rules`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pyclattn.graph.program import Op

if TYPE_CHECKING:
    from pyclattn.graph.passes.shapes import Shapes


def _attention(known: Shapes, op: Op):
    """Query (B, H, L, D), value (B, H, S, E): (B, H, L, E)."""
    query, value = known.sure(op.inputs[0]), known.sure(op.inputs[2])
    return [(*query[:3], value[3])]


def _positions(known: Shapes, op: Op):
    """Of centroids among points or tokens (B, N, P)."""
    return [(known.sure(op.inputs[0])[0], op.attributes["n_centroids"])]


def _neighbors(known: Shapes, op: Op):
    return [(*known.sure(op.inputs[0])[:2], op.attributes["n_neighbors"])]


def _pooled(known: Shapes, op: Op):
    batch, _, width = known.sure(op.inputs[0])
    return [(batch, op.attributes["n_centroids"], width)]


ATTENTIONS = ("cast_attention", "centroid_attention", "clustered_attention", "improved_clustered_attention")
POSITIONS = ("farthest_point_sampling", "random_positions", "nearest_neighbors")
METHODS: dict[str, Callable[[Shapes, Op], list]] = {
    **{f"pyclattn:{name}": _attention for name in ATTENTIONS},
    **{f"pyclattn:{name}": _positions for name in POSITIONS},
    "pyclattn:nearest_neighbors": _neighbors,
    "pyclattn:mean_pool_tokens": _pooled,
}
