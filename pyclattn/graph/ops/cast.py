"""CAST attention: the public function, its keyword arguments as attributes."""

from __future__ import annotations

import numpy as np

from pyclattn.errors import ShapeError
from pyclattn.functional import cast
from pyclattn.graph.ops.registry import op
from pyclattn.graph.spec import Kernel, Node, Spec

INPUTS = {"query": 4, "key": 4, "value": 4, "surrogate_tokens": 3, "gate": 2, "key_padding_mask": 2}  # name -> rank


@op("pyclattn:cast_attention")
def _cast_attention(node: Node) -> Kernel:
    """query (B, H, N, D), key, value, surrogate_tokens (C, H, D), gate (B, N), key_padding_mask."""
    for i, (name, rank) in enumerate(INPUTS.items()):
        if name == "key_padding_mask" and not node.has(i):
            continue
        if len(node.shape(i)) != rank:
            raise ShapeError(f"{name} must have rank {rank}, got shape {node.shape(i)}")
    shapes, dtype = [node.shape(i) for i in range(3)], node.dtype(0)
    options = {
        "cluster_size": node.attr("cluster_size"), "clustering": node.attr("clustering", "topk"),
        "attention": node.attr("attention", "softmax"), "gate_temperature": bool(node.attr("gate_temperature", True)),
        "scale": node.attr("scale", None), "n_threads": node.settings.n_threads,
    }  # fmt: skip
    is_direct = dtype == np.float32

    def bind(ins, outs, scratch):
        more = {**options, "key_padding_mask": ins[5] if node.has(5) else None}

        def run():
            if is_direct:
                cast.cast_attention(*ins[:5], **more, out=outs[0])
            else:
                outs[0][...] = cast.cast_attention(*ins[:5], **more)

        return run

    out = Spec((*shapes[0][:3], shapes[2][3]), dtype)
    copied = 0 if is_direct else 4 * (out.size + sum(node.spec(i).size for i in range(5)))
    working = cast.working_bytes(*shapes, n_clusters=node.shape(3)[0], **options)
    return Kernel([out], bind, transient=copied + working)
