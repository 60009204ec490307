"""Clustered attention of models that were trained with it: the public functions, their keyword arguments as attributes.

Attention that a model was trained without, and a plan replaces, is `pyclattn:Attention`.
"""

from __future__ import annotations

from collections.abc import Callable

from pyclattn.errors import ShapeError
from pyclattn.functional import clustered
from pyclattn.graph.ops.registry import op
from pyclattn.graph.spec import Kernel, Node, Spec, simple

MASKS = ("key_padding_mask", "query_padding_mask")
OPTIONS = ("n_clusters", "topk", "clustering", "n_bits", "n_iterations", "seed", "scale")


def _kernel(node: Node, function: Callable) -> Kernel:
    """query (B, H, L, D), key (B, H', S, D), value (B, H', S, E), key_padding_mask, query_padding_mask."""
    shapes = [node.shape(i) for i in range(3)]
    if any(len(shape) != 4 for shape in shapes):
        raise ShapeError(f"query, key and value must have rank 4, got {', '.join(map(str, shapes))}")
    given = {name: i for i, name in enumerate(MASKS, 3) if node.has(i)}
    for i in given.values():
        node.spec(i)  # its shape must be known too
    options = {name: node.attr(name) for name in OPTIONS if node.attr(name, None) is not None}
    options["n_threads"] = node.settings.n_threads
    working = clustered.working_bytes(*shapes, **options)
    if node.attr("is_causal", False):
        options["is_causal"] = True

    def run(*ins):
        return function(*ins[:3], **{name: ins[i] for name, i in given.items()}, **options)

    kernel = simple([Spec((*shapes[0][:3], shapes[2][3]), node.dtype(0))], run)
    kernel.transient += working
    return kernel


@op("pyclattn:clustered_attention")
def _clustered_attention(node: Node) -> Kernel:
    return _kernel(node, clustered.clustered_attention)


@op("pyclattn:improved_clustered_attention")
def _improved_clustered_attention(node: Node) -> Kernel:
    return _kernel(node, clustered.improved_clustered_attention)
